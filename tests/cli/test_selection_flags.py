"""Which selection the flags of `softlabels precompute` name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.cli.arguments import PrecomputeArguments
from softlabels.cli.label import _settings
from softlabels.errors import InputError


def chosen(**flags: Any) -> Any:
    arguments = PrecomputeArguments(teacher="t", data="d.jsonl", out=Path("o"), **flags)
    return _settings(arguments)["selection"]


@pytest.mark.parametrize(
    ("flags", "selection"),
    [
        ({}, None),
        ({"k": 5}, sl.TopK(5)),
        ({"top_p": 0.9}, sl.TopP(0.9)),
        ({"top_p": 0.9, "k": 5}, sl.TopP(0.9, 5)),
        ({"draws": 50}, sl.Sampled(50)),
        ({"draws": 50, "head": 0, "draw_seed": 3}, sl.Sampled(50, 0, 3)),
        ({"dense": True}, sl.Dense()),
    ],
)
def test_flags_name_a_selection(flags: dict[str, Any], selection: Any) -> None:
    assert chosen(**flags) == selection


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"k": 5, "draws": 5}, "--k or --top-p and --draws are two selections"),
        ({"top_p": 0.5, "dense": True}, "--k or --top-p and --dense are two selections"),
        ({"head": 5}, "--draws"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        chosen(**flags)
