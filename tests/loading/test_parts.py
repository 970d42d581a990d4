"""Parts of a sample: all of them, one drawn by (epoch, key), or each in turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import softlabels as sl
from softlabels.errors import InputError
from softlabels.loading.choice import drawn

Samples = list[dict[str, Any]]


def pairs(loader: Any) -> list[tuple[str, int]]:
    return [p for b in loader for p in zip(b["key"], b["part"].tolist(), strict=True)]


@pytest.mark.parametrize("parts", ["one", "cycle"])
@pytest.mark.parametrize("seed", [None, 4])
def test_an_epoch_has_one_part_of_every_sample(
    labels: sl.LabelSet, samples: Samples, parts: Any, seed: int | None
) -> None:
    loader = sl.loader(labels, samples, parts=parts, seed=seed, batch_size=3)
    assert len(loader) == 4
    for _ in range(6):
        epoch = dict(pairs(loader))
        assert list(sorted(epoch)) == sorted(s["id"] for s in samples)
        assert all(part in labels.parts(key) for key, part in epoch.items())


def test_cycled_parts_come_in_turn(labels: sl.LabelSet) -> None:
    loader = sl.loader(labels, parts="cycle")
    known = labels.parts("s1")
    assert [dict(pairs(loader))["s1"] for _ in range(2 * len(known))] == 2 * known


def test_a_drawn_part_depends_on_seed_epoch_and_key_alone(labels: sl.LabelSet) -> None:
    keys = labels.identities["key"].to_pylist()
    some = [i for i, key in enumerate(keys) if key not in ("s0", "s3")]
    whole, part = (sl.loader(labels, parts="one", records=r) for r in (None, some))
    other = sl.loader(labels, parts="one", seed=9, shuffle=False)
    differ = 0
    for _ in range(20):
        epoch = dict(pairs(whole))
        assert dict(pairs(part)) == {k: v for k, v in epoch.items() if k not in ("s0", "s3")}
        differ += dict(pairs(other)) != epoch
    assert differ > 10


def test_every_part_is_drawn_equally_often() -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 63, 200).astype(np.uint64)
    counts = np.full(200, 3)
    found = Counter(
        int(part) for epoch in range(300) for part in drawn(hashes, counts, epoch, seed=1)
    )
    # 60,000 draws: a standard deviation is 115.
    assert all(abs(found[part] - 20_000) < 6 * 115 for part in range(3))
    one, next_one = (drawn(hashes, counts, epoch, seed=1) for epoch in (0, 1))
    assert 100 < int((one != next_one).sum()) < 165  # 133 ± 6.7


@pytest.mark.parametrize("parts", ["one", "cycle"])
def test_a_state_goes_on_with_the_same_parts(labels: sl.LabelSet, parts: Any) -> None:
    loader = sl.loader(labels, parts=parts, seed=2, batch_size=3)
    for _ in range(3):
        batches, states = [], []
        for batch in loader:
            batches.append(pairs([batch]))
            states.append(loader.state_dict())
        assert states.pop()["epoch"] == states[0]["epoch"] + 1
        for step, state in enumerate(states, 1):
            resumed = sl.loader(labels, parts=parts, seed=2, batch_size=3)
            resumed.load_state_dict(state)
            assert [pairs([b]) for b in resumed] == batches[step:]
    with pytest.raises(InputError, match="another loader"):
        sl.loader(labels, seed=2).load_state_dict(loader.state_dict())


def test_other_parts_are_refused(labels: sl.LabelSet) -> None:
    with pytest.raises(InputError, match="'some'"):
        sl.loader(labels, parts="some")  # type: ignore[arg-type]
