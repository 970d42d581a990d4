"""Checkpoints: whole or not at all, two of them, and a damaged one is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from softlabels.errors import InputError
from softlabels.training.checkpoint import START, Moment, clean, load, save
from softlabels.training.journal import METRICS, Journal, read


class Tied(nn.Module):
    """Two names for one tensor, as a head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def made(step: int) -> tuple[Moment, nn.Module, torch.optim.Optimizer]:
    """A model that has taken some steps, always the same ones."""
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(step):
        model.second(model.first(torch.rand(2, 3))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return Moment(step, 10 * step, 1.5, {"epoch": step}, {METRICS: step}), model, optimizer


def equal(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_on_from_the_newest_with_weights_moments_and_random_numbers(
    tmp_path: Path,
) -> None:
    for step in (1, 2, 3):
        moment, model, optimizer = made(step)
        save(tmp_path, moment, model, optimizer)
    expected = torch.rand(4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]
    _, fresh, anew = made(0)
    torch.manual_seed(9)
    assert load(tmp_path, fresh, anew) == moment
    assert torch.equal(torch.rand(4), expected)
    assert equal(fresh, model)
    assert fresh.first.weight is fresh.second.weight
    assert str(anew.state_dict()) == str(optimizer.state_dict())


def test_where_there_is_none_a_run_begins(tmp_path: Path) -> None:
    _, model, optimizer = made(1)
    assert load(tmp_path / "none", model, optimizer) == START
    assert equal(model, made(1)[1])


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, name: str, harm: str
) -> None:
    for step in (1, 2):
        save(tmp_path, *made(step))
    path = tmp_path / "step-000000002" / name
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if harm == "flip" else data[:-7])
    _, model, optimizer = made(0)
    with pytest.warns(UserWarning, match="step-000000002 is damaged"):
        assert load(tmp_path, model, optimizer).step == 1
    assert equal(model, made(1)[1])
    # The steps since then are taken again, and saved under the name of the damaged one.
    save(tmp_path, *made(2))
    assert load(tmp_path, model, optimizer).step == 2


def test_what_was_not_finished_is_no_checkpoint_and_is_cleaned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, *made(1))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, *made(2))
    _, model, optimizer = made(0)
    assert len(list(tmp_path.iterdir())) == 2
    assert load(tmp_path, model, optimizer).step == 1
    clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


def test_what_was_written_after_a_checkpoint_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.metrics("step", loss=1.0, other={"kl": float("inf")})
    lengths = journal.sync()
    journal.metrics("step", loss=2.0)
    journal.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "st')
    assert [line["loss"] for line in read(tmp_path / METRICS)] == [1.0, 2.0]
    journal = Journal(tmp_path, lengths)
    journal.metrics("evaluation", kl=3.0)
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines == [
        {"kind": "step", "loss": 1.0, "other": {"kl": None}},
        {"kind": "evaluation", "kl": 3.0},
    ]
    assert [line["kl"] for line in read(tmp_path / METRICS, "evaluation")] == [3.0]
    with pytest.raises(InputError, match=r"at the last checkpoint it had 999.*was changed"):
        Journal(tmp_path, {METRICS: 999})
