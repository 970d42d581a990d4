"""`softlabels show` for people: colours, bars, a pager, one position, a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import softlabels as sl
from softlabels.cli import pager as pager_module


@pytest.fixture
def paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A terminal of ten lines whose pager writes into this file."""
    out, pager = tmp_path / "paged", tmp_path / "pager"
    pager.write_text(f'#!/bin/sh\necho "LESS=$LESS" > {out}\ncat >> {out}\n')
    pager.chmod(0o755)
    monkeypatch.setenv("PAGER", str(pager))
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("LESS", raising=False)
    monkeypatch.setattr(pager_module, "on_terminal", lambda: True)
    return out


def test_tokens_are_coloured_by_how_much_they_surprised(
    softlabels: Any, finished_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    y = sl.LabelSet.open(finished_set).get("doc-001")
    assert y.hard_log_probs is not None
    out = softlabels("show", finished_set, "doc-001", "--positions", 6).out
    running = out.splitlines()[1]
    coloured = sum(float(-h) >= 1 for h in y.hard_log_probs[:6])
    assert running.count("\x1b[0m") == coloured > 0
    assert "surprise in nats" in out.splitlines()[2]


def test_a_guess_has_a_bar_as_high_as_its_probability(softlabels: Any, finished_set: Path) -> None:
    out = softlabels("show", finished_set, "doc-001", "--positions", 4, "--top", 3).out
    y = sl.LabelSet.open(finished_set).get("doc-001")
    for t in range(4):
        for value in y.log_probs[t, :3].exp().tolist():
            assert " ▁▂▃▄▅▆▇█"[math.ceil(8 * value)] in out
            assert f" {value:.2f}" in out


def test_what_is_longer_than_the_terminal_goes_through_the_pager_whole(
    softlabels: Any, finished_set: Path, paged: Path
) -> None:
    y = sl.LabelSet.open(finished_set).get("doc-001")
    assert len(y) > 24
    done = softlabels("show", finished_set, "doc-001")
    assert (done.code, done.out) == (0, "")
    text = paged.read_text()
    assert text.startswith("LESS=FRX\n")
    assert f" {len(y) - 1} " in text
    assert "more positions" not in text


def test_what_fits_or_is_piped_is_not_paged(
    softlabels: Any, finished_set: Path, paged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = softlabels("show", finished_set, "doc-001", "--position", 0, "--top", 1)
    assert "position 0" in done.out
    monkeypatch.setattr(pager_module, "on_terminal", lambda: False)
    done = softlabels("show", finished_set, "doc-001")
    assert "more positions" in done.out
    assert not paged.exists()


def test_an_empty_pager_pages_nothing(
    softlabels: Any, finished_set: Path, paged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER", "")
    assert "more positions" in softlabels("show", finished_set, "doc-001").out
    assert not paged.exists()


def test_one_position_shows_its_classes_and_the_tail_at_every_temperature(
    softlabels: Any, finished_set: Path
) -> None:
    y = sl.LabelSet.open(finished_set).get("doc-001")[7]
    out = softlabels("show", finished_set, "doc-001", "--position", 7, "--top", 4).out
    for value in y.log_probs[:4].exp().tolist():
        assert f"{value:.4f}" in out
    assert f"{float(y.log_probs[5].exp()):.4f}" not in out
    assert y.log_tails is not None
    for name, tail in zip(("T = 1", "T = 2", "T = 4"), y.log_tails.exp().tolist(), strict=True):
        (line,) = [line for line in out.splitlines() if f"not kept, {name}" in line]
        assert f"{tail:.4f}" in line
        assert line.count("█") == int(30 * tail) or line.count("█") == int(30 * tail) + 1
    found = softlabels("show", finished_set, "doc-001", "--position", 7, "--json").json
    assert [line["position"] for line in found["positions"]] == [7]
    assert len(found["positions"][0]["ids"]) == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--position", -1), "--position is -1"),
        (("--position", 9999), "there is no position 9999"),
        (("--position", 1, "--start", 2), "leave out --start"),
        (("--position", 1, "--positions", 2), "leave out --start"),
        (("--html", "/nowhere/page.html"), "--html"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    softlabels: Any, finished_set: Path, arguments: tuple[Any, ...], words: str
) -> None:
    done = softlabels("show", finished_set, "doc-001", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_a_position_without_labels_is_refused(
    softlabels: Any, precompute: Any, tmp_path: Path
) -> None:
    precompute(tmp_path / "set", [{"id": "a", "ids": list(range(9))}], overlap=2)
    done = softlabels("show", tmp_path / "set", "a", "--part", 1, "--position", 0)
    assert done.code == 2
    assert "not labelled in this record" in done.err


def test_a_page_of_a_record_has_all_of_it(
    softlabels: Any, finished_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "record.html"
    done = softlabels("show", finished_set, "doc-001", "--html", out)
    assert (done.code, done.out) == (0, f"page: {out}\n")
    page = out.read_text()
    y = sl.LabelSet.open(finished_set).get("doc-001")
    assert page.count('<tr id="t') == len(y)
    assert 'href="#t0"' in page
