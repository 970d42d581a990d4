"""A batch as plain tensors and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import softlabels as sl
from softlabels.errors import InputError
from softlabels.integrations import from_tensors, to_tensors
from softlabels.labels import SoftLabels


def batch_of(labels: sl.LabelSet) -> dict[str, Any]:
    return next(iter(sl.loader(labels, batch_size=3)))


def test_a_batch_comes_back_from_its_tensors(labels: sl.LabelSet) -> None:
    batch = batch_of(labels)
    tensors = to_tensors(batch)
    for name in ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "mask"):
        assert tensors[f"soft_{name}"] is getattr(batch["soft_labels"], name)
    plain = {n for n, value in tensors.items() if not isinstance(value, torch.Tensor)}
    assert plain == {"soft_temperatures", "soft_classes", "soft_sampled"}
    back = from_tensors(tensors)
    assert set(back) == set(batch) - {"key"}
    for name in (*SoftLabels.FIELDS, "mask", "temperatures", "classes", "sampled"):
        assert getattr(back["soft_labels"], name) is getattr(batch["soft_labels"], name)


def test_labels_without_some_fields_come_back_without_them() -> None:
    y = sl.SoftLabels(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), sampled=True)
    tensors = to_tensors({"soft_labels": y})
    assert "soft_mask" not in tensors
    back = from_tensors(tensors)["soft_labels"]
    assert (back.mask, back.logsumexp, back.classes, back.sampled) == (None, None, None, True)


@pytest.mark.parametrize("several", [dict, list])
def test_labels_of_several_teachers_come_back_as_they_came(
    labels: sl.LabelSet, several: type
) -> None:
    sets = {"ids": labels, "b.1": labels} if several is dict else [labels, labels]
    for batch in sl.loader(sets, batch_size=3):
        (moved,) = DataLoader([to_tensors(batch)], batch_size=None)
        back, expected = from_tensors(moved)["soft_labels"], batch["soft_labels"]
        assert type(back) is several
        if several is dict:
            assert list(back) == list(expected)
            back, expected = list(back.values()), list(expected.values())
        for one, other in zip(back, expected, strict=True):
            assert one.log_probs is other.log_probs
            assert one.temperatures == other.temperatures


def test_a_dataloader_may_carry_them(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, batch_size=3)
    for tensors in DataLoader(loader, batch_size=None, collate_fn=to_tensors):
        for batch in DataLoader([tensors], batch_size=None):
            y = from_tensors(batch)["soft_labels"]
            assert y.temperatures == (1.0, 2.0)
            assert y.classes == 16


def test_what_cannot_be_turned_is_refused_in_words(labels: sl.LabelSet) -> None:
    batch = batch_of(labels)
    with pytest.raises(InputError, match="NoneType; to_tensors takes a batch"):
        to_tensors({"input_ids": batch["input_ids"]})
    with pytest.raises(InputError, match="column of the data is called soft_ids"):
        to_tensors(batch | {"soft_ids": batch["part"]})
    with pytest.raises(InputError, match=r"no soft_log_probs.*remove_unused_columns=False"):
        from_tensors({n: v for n, v in to_tensors(batch).items() if n != "soft_log_probs"})
