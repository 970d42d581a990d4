"""Ranks: batch b of an epoch is the same for every number of them, wherever one goes on from."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.errors import InputError
from softlabels.loading.ranks import Ranks

Batch = dict[str, Any]
Pair = tuple[str, int]


def ranks(labels: sl.LabelSet, world_size: int, **options: Any) -> list[sl.Loader]:
    settings: dict[str, Any] = {"batch_size": 2, "seed": 0} | options
    return [
        sl.loader(labels, rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]


def rounds(loaders: list[sl.Loader], steps: int | None = None) -> list[list[Pair]]:
    """The batches of all ranks in turn, without the fillers, which stand at the end alone."""
    taken = [list(itertools.islice(loader, steps)) for loader in loaders]
    assert len({len(batches) for batches in taken}) == 1
    batches = [batch for step in zip(*taken, strict=True) for batch in step]
    found = [pairs(batch) for batch in batches if batch["key"] != [None]]
    assert [batch["key"] == [None] for batch in batches] == [False] * len(found) + [True] * (
        len(batches) - len(found)
    )
    return found


def pairs(batch: Batch) -> list[Pair]:
    return list(zip(batch["key"], batch["part"].tolist(), strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", [None, 0])
def test_batches_are_the_same_on_any_number_of_ranks(
    labels: sl.LabelSet, world_size: int, seed: int | None
) -> None:
    alone = sl.loader(labels, batch_size=2, seed=seed)
    together = ranks(labels, world_size, seed=seed)
    for _ in range(2):
        expected = [pairs(batch) for batch in alone]
        assert len(together[0]) == -(-len(expected) // world_size)
        assert rounds(together) == expected


def test_every_rank_has_the_same_state_and_as_many_steps(labels: sl.LabelSet) -> None:
    loaders = ranks(labels, 3)
    for batches in zip(*loaders, strict=True):
        states = [loader.state_dict() for loader in loaders]
        assert states[0] == states[1] == states[2]
        assert len(batches) == 3
    assert [loader.state_dict()["epoch"] for loader in loaders] == [1, 1, 1]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=25)
def test_any_sequence_of_world_sizes_continues_the_same_order(
    labels: sl.LabelSet, sessions: list[tuple[int, int]]
) -> None:
    expected = [pairs(batch) for batch in ranks(labels, 1)[0]]
    found: list[list[Pair]] = []
    state = None
    for world_size, steps in [*sessions, (2, None)]:
        loaders = ranks(labels, world_size)
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(json.loads(json.dumps(state)))
        if state is not None and state["epoch"]:
            break
        found += rounds(loaders, steps)
        state = loaders[-1].state_dict()
    assert found == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_drop_last_gives_every_rank_full_batches_alone(
    labels: sl.LabelSet, world_size: int
) -> None:
    expected = [pairs(batch) for batch in sl.loader(labels, batch_size=2, seed=0)]
    loaders = ranks(labels, world_size, drop_last=True)
    kept = (len(labels) // 2) // world_size
    assert rounds(loaders) == expected[: kept * world_size]
    assert len(loaders[0]) == kept


def test_too_few_records_for_every_rank_are_refused_and_ranks_named(labels: sl.LabelSet) -> None:
    with pytest.raises(InputError, match=r"\d+ records to load, .*drop_last.*each of 50 ranks"):
        ranks(labels, 50, drop_last=True)


@pytest.mark.parametrize("options", [{}, {"row_length": 16}, {"max_length": 3}])
def test_a_filler_has_one_token_and_gives_no_loss_and_no_gradient(
    labels: sl.LabelSet, samples: list[Any], options: dict[str, Any]
) -> None:
    filler = list(ranks(labels, 100, data=samples, **options)[99])[-1]
    y, width = filler["soft_labels"], options.get("row_length", 1)
    assert filler["key"] == [None]
    assert filler["input_ids"].shape == y.shape == (1, width)
    assert filler["attention_mask"].sum() == 1
    assert len(filler["weight"]) == len(filler["note"]) == 1
    logits = torch.randn(1, width, 16, requires_grad=True)
    hard = sl.losses.next_tokens(
        filler["input_ids"],
        filler["attention_mask"],
        next_ids=filler["next_ids"],
        position_ids=filler.get("position_ids"),
    )
    loss = sl.losses.kl_divergence(logits, y).sum() + sl.losses.cross_entropy(logits, hard).sum()
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_ranks_are_the_user_s_or_torchrun_s(
    labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Ranks.find(None, None) == Ranks()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Ranks.find(None, None) == Ranks(1, 2)
    assert Ranks.find(0, 1) == Ranks(0, 1, given=True)
    assert rounds([sl.loader(labels, batch_size=2)]) == rounds(ranks(labels, 2, seed=None)[1:])
    for rank, world_size in ((0, None), (None, 2), (2, 2), (-1, 2)):
        with pytest.raises(InputError, match="rank"):
            sl.loader(labels, rank=rank, world_size=world_size)


def test_a_loader_made_before_torch_distributed_was_initialised_is_refused(
    labels: sl.LabelSet, tmp_path: Any
) -> None:
    early = sl.loader(labels, batch_size=2)
    early.ranks = Ranks(1, 2)
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match=r"rank 1 of 2, before.*rank 0 of 1"):
            next(iter(early))
        assert len(list(sl.loader(labels, batch_size=2))) == len(sl.loader(labels, batch_size=2))
    finally:
        torch.distributed.destroy_process_group()
