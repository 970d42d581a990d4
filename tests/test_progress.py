"""What a running job tells is true: tokens a second, time left, bytes; on any kind of output."""

from __future__ import annotations

import os
import pty
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels import progress as room
from softlabels.progress import Progress, Tracker, shown


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(room, "time", made)
    return made


def test_tokens_a_second_and_time_left_are_of_this_run_alone(clock: Clock) -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, 100)
    clock.now += 50  # checking what is done takes its time, and is not labelling
    tracker.skip(40)
    assert (seen[-1].source_rows, seen[-1].skipped_rows, seen[-1].tokens) == (40, 40, 0)
    assert seen[-1].seconds_left is None
    tracker.start(20)
    clock.now += 4
    tracker.advance(300, 600)
    assert seen[-1].share == pytest.approx(0.5)
    assert seen[-1].tokens_per_s == pytest.approx(75)
    assert seen[-1].seconds_left == pytest.approx(4 * 0.5 / 0.1)
    clock.now += 4
    tracker.advance(300, 600)
    tracker.finish(1234)
    assert (seen[-1].units, seen[-1].source_rows, seen[-1].bytes) == (2, 60, 1234)
    assert seen[-1].seconds_left == pytest.approx(8 * 0.4 / 0.2)
    tracker.skip(20)  # finished by another run: no work of ours, and none left to do
    assert seen[-1].seconds_left == pytest.approx(8 * 0.2 / 0.2)


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(1, 50), min_size=1, max_size=4)),
        min_size=1,
        max_size=6,
    )
)
def test_every_event_counts_what_was_done_so_far(units: list[tuple[bool, list[int]]]) -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, 10 * len(units))
    tokens = 0
    for number, (skipped, batches) in enumerate(units):
        if skipped:
            tracker.skip(10)
        else:
            tracker.start(10)
            inside = 0
            for batch in batches:
                inside += batch
                tracker.advance(batch, sum(batches))
                assert seen[-1].tokens == tokens + inside
                done = number + inside / sum(batches)
                assert seen[-1].share == pytest.approx(done / len(units))
            tokens += inside
            tracker.finish(7)
        assert (seen[-1].units, seen[-1].source_rows) == (number + 1, 10 * (number + 1))
    shares = [event.share for event in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert seen[-1].skipped_rows == 10 * sum(skipped for skipped, _ in units)
    assert seen[-1].bytes == 7 * sum(not skipped for skipped, _ in units)
    assert seen[-1].seconds_left in (None, pytest.approx(0))


def test_a_stream_has_no_end_to_wait_for(clock: Clock) -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, None)
    tracker.start(5)
    clock.now += 2
    tracker.advance(10, 10)
    tracker.finish(3)
    assert (seen[-1].share, seen[-1].seconds_left) == (None, None)
    assert str(seen[-1]) == "5 samples · 10 tokens · 5 tokens/s · 3 B written · ETA ?"


def test_a_unit_without_tokens_divides_by_nothing() -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, 2)
    tracker.start(2)
    tracker.advance(0, 0)
    tracker.finish(0)
    assert (seen[-1].share, seen[-1].seconds_left) == (1.0, None)
    assert Progress().tokens_per_s == 0


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (
            Progress(
                source_rows=1_000, total_rows=4_000, share=0.25, tokens=2_500_000,
                bytes=999, seconds=3_600.0,
            ),
            "1,000/4,000 samples · 2,500,000 tokens · 694 tokens/s · 999 B written · ETA 3:00:00",
        ),
        (
            Progress(source_rows=1, bytes=1_500_000, seconds=1.0, tokens=1),
            "1 samples · 1 tokens · 1 tokens/s · 1.5 MB written · ETA ?",
        ),
        (
            Progress(source_rows=1, bytes=3_000_000_000_000_000, total_rows=2),
            "1/2 samples · 0 tokens · 0 tokens/s · 3000.0 TB written · ETA ?",
        ),
    ],
)  # fmt: skip
def test_a_line_says_it_all(progress: Progress, line: str) -> None:
    assert str(progress) == line


def test_a_file_gets_a_line_every_half_minute_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown(True) as report:
        for rows in range(1, 11):
            clock.now += 10
            report(Progress(source_rows=rows, total_rows=10))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]


@pytest.mark.parametrize("enabled", [False, None])
def test_nothing_is_shown_where_nobody_looks(
    enabled: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown(enabled) as report:
        report(Progress(source_rows=1, total_rows=1))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def in_a_terminal(enabled: bool | None, total: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal gets on standard error from a job of one unit."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with shown(enabled) as report:
            tracker = Tracker(report, total)
            tracker.start(5)
            tracker.advance(1000, 2000)
            tracker.advance(1000, 2000)
            tracker.finish(4000)
        terminal.write("the end")  # so that there is something to read
        terminal.flush()
        found = b""
        while not found.endswith(b"the end"):
            found += os.read(ours, 65_536)
    os.close(ours)
    return found.decode().removesuffix("the end")


@pytest.mark.parametrize("total", [5, None])
def test_a_terminal_gets_a_bar_and_standard_output_stays_clean(
    total: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    err = in_a_terminal(None, total, monkeypatch)
    assert capsys.readouterr().out == ""
    assert "labelling" in err
    assert ("5/5 samples" if total else "5 samples") in err
    assert "2,000 tokens" in err
    assert "4.0 kB written" in err


def test_a_terminal_gets_nothing_when_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_a_terminal(False, 5, monkeypatch) == ""
