"""Loader and torch's DataLoader: workers, pickles, page-locked memory."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import softlabels as sl

TENSORS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def seen(batches: Any) -> list[tuple[str, int]]:
    """(key, part) of every record, in order."""
    return [p for b in batches for p in zip(b["key"], b["part"].tolist(), strict=True)]


# Python 3.12 warns of any fork in a process with threads; Arrow has some.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_dataloader_gives_the_same_batches_in_the_same_order(
    labels: sl.LabelSet, samples: list[dict[str, Any]], workers: int
) -> None:
    expected = list(sl.loader(labels, samples, batch_size=3, seed=1))
    loader = sl.loader(labels, samples, batch_size=3, seed=1)
    through = DataLoader(loader, batch_size=None, num_workers=workers)
    assert len(through) == len(expected)
    found = list(through)
    assert seen(found) == seen(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
        assert one["note"] == other["note"]
        for name in (*TENSORS, "mask"):
            assert bits(getattr(one["soft_labels"], name)) == bits(
                getattr(other["soft_labels"], name)
            )


def test_a_pickled_loader_goes_on_where_it_was(
    labels: sl.LabelSet, samples: list[dict[str, Any]]
) -> None:
    loader = sl.loader(labels, samples, batch_size=3, seed=1)
    state = next((loader.state_dict() for _ in loader), None)
    assert state is not None
    loader.load_state_dict(state)
    assert seen(pickle.loads(pickle.dumps(loader))) == seen(loader)


@pytest.mark.gpu
def test_batches_reach_a_gpu_from_page_locked_memory(labels: sl.LabelSet) -> None:
    for batch in DataLoader(sl.loader(labels, batch_size=3), batch_size=None, pin_memory=True):
        assert batch["input_ids"].is_pinned()
        soft = batch["soft_labels"]
        assert soft.ids.is_pinned()
        moved = soft.to("cuda", non_blocking=True)
        assert moved.ids.device.type == "cuda"
        assert bits(moved.log_probs.cpu()) == bits(soft.log_probs)
