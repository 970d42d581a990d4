"""Loader and torch's DataLoader, torchdata's too: workers, states, pickles, page-locked memory."""

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
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
# torchdata 0.11 calls it; torch 2.13 warns of that.
old_torchdata = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


@forks
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


def test_spawned_workers_give_the_same_batches(
    labels: sl.LabelSet, samples: list[dict[str, Any]]
) -> None:
    loader = sl.loader(labels, samples, batch_size=3, seed=1)
    through = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert seen(through) == seen(sl.loader(labels, samples, batch_size=3, seed=1))


@forks
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_dataloaders_epochs_differ_if_it_is_told_of_them(
    labels: sl.LabelSet, workers: int
) -> None:
    loader, alone = (sl.loader(labels, batch_size=3, seed=1) for _ in range(2))
    through = DataLoader(loader, batch_size=None, num_workers=workers)
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(seen(through))
        assert epochs[-1] == seen(alone)
    assert epochs[0] != epochs[1]


def stateful(labels: sl.LabelSet, workers: int, **options: Any) -> Any:
    """Torchdata's DataLoader over a loader, which asks it for its state."""
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    loader = sl.loader(labels, seed=1, **options)
    return torchdata.StatefulDataLoader(loader, batch_size=None, num_workers=workers)


@forks
@old_torchdata
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stateful_dataloader_resumes_at_every_step(labels: sl.LabelSet, workers: int) -> None:
    def told(batches: Any) -> list[Any]:
        return [batch["part"].tolist() + batch["key"] for batch in batches]

    batches = told(stateful(labels, workers))
    through, states = stateful(labels, workers), []
    for _ in through:
        states.append(through.state_dict())
    assert len(states) == len(batches) == len(through)
    for taken, state in enumerate(states, 1):
        resumed = stateful(labels, workers)
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        if taken < len(batches) or workers:
            assert told(resumed) == batches[taken:]
        else:  # with its last batch an epoch is over
            following = sl.loader(labels, seed=1)
            following.set_epoch(1)
            assert told(resumed) == told(following)


@forks
@old_torchdata
def test_a_stateful_dataloader_resumes_a_ranks_share_of_packed_rows(labels: sl.LabelSet) -> None:
    options = {"batch_size": 1, "row_length": 7, "rank": 1, "world_size": 3}
    through = stateful(labels, 2, **options)
    batches = [batch["key"] for batch in through]
    assert len(batches) > 2
    states = [through.state_dict() for _ in through]
    for taken, state in enumerate(states, 1):
        resumed = stateful(labels, 2, **options)
        resumed.load_state_dict(state)
        assert [batch["key"] for batch in resumed] == batches[taken:]


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
