"""What a running job tells is true: tokens a second, time left, bytes; on any kind of output."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pty
import sys
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels import progress as room
from softlabels.progress import Progress, Seen, Tracker, shown


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


def test_what_a_unit_that_begins_again_had_labelled_is_not_counted_twice() -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, 20)
    tracker.start(10)
    tracker.advance(6, 6, Seen(6, 3.0, 12.0, 6))
    tracker.start(10)
    tracker.advance(4, 8, Seen(4, 2.0, 4.0, 4))
    before = seen[-1]
    tracker.again()
    tracker.advance(2, 8, Seen(2, 1.0, 2.0, 2))
    assert (seen[-1].tokens, seen[-1].seen) == (8, Seen(8, 4.0, 14.0, 8))
    assert seen[-1].share == before.share == pytest.approx(0.75)  # it does not go back
    for _ in range(3):
        tracker.advance(2, 8, Seen(2, 1.0, 2.0, 2))
    assert (seen[-1].tokens, seen[-1].seen, seen[-1].share) == (14, Seen(14, 7.0, 20.0, 14), 1.0)


def test_a_unit_may_be_published_while_the_next_is_labelled() -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, 30)
    shares = []
    for step in (
        lambda: tracker.start(10), lambda: tracker.advance(5, 5),  # the first is labelled
        lambda: tracker.start(10), lambda: tracker.advance(4, 8),  # half of the second
        lambda: tracker.finish(100, 5),
        lambda: tracker.advance(4, 8),
        lambda: tracker.skip(10),
        lambda: tracker.finish(200, 8),
    ):  # fmt: skip
        step()
        shares.append(round(30 * (seen[-1].share or 0)) if seen else 0)
    assert shares == [0, 10, 10, 15, 15, 20, 30, 30]
    assert [event.source_rows for event in seen] == [0, 0, 10, 10, 20, 30]
    assert (seen[-1].bytes, seen[-1].written_positions, seen[-1].units) == (300, 13, 3)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_share_never_falls_and_never_passes_one_however_stages_interleave(
    units: list[int], data: st.DataObject
) -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, sum(units))
    started = published = 0
    while published < len(units):
        behind = started > published
        if started < len(units) and not (behind and data.draw(st.booleans())):
            tracker.start(units[started])
            started += 1
            for _ in range(data.draw(st.integers(0, 3))):
                tracker.advance(7, 21)
        else:
            tracker.finish(1, 1)
            published += 1
    shares = [event.share or 0 for event in seen]
    assert all(before <= after for before, after in pairwise(shares))
    assert shares[-1] == 1
    assert seen[-1].source_rows == sum(units)


def test_two_threads_lose_no_count() -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, 400)
    labelled = threading.Semaphore(0)

    def label() -> None:
        for _ in range(400):
            tracker.start(1)
            tracker.advance(3, 3, Seen(2, 1.0, 4.0, 1))
            labelled.release()

    def publish() -> None:
        for _ in range(400):
            labelled.acquire()
            tracker.finish(5, 2)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for work in (label, publish)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    last = seen[-1]
    assert (last.tokens, last.bytes, last.units, last.written_positions) == (1200, 2000, 400, 800)
    assert last.seen == Seen(800, 400.0, 1600.0, 400)
    assert len(seen) == 800
    assert [event.share for event in seen] == sorted(event.share or 0 for event in seen)


def test_a_stream_has_no_end_to_wait_for(clock: Clock) -> None:
    seen: list[Progress] = []
    tracker = Tracker(seen.append, None)
    tracker.start(5)
    clock.now += 2
    tracker.advance(10, 10)
    tracker.finish(3)
    assert (seen[-1].share, seen[-1].seconds_left) == (None, None)
    assert str(seen[-1]) == "5 samples · 10 tokens · 5 tokens/s · ETA ? · 3 B written"


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
            "1,000/4,000 samples · 2,500,000 tokens · 694 tokens/s · ETA 3:00:00 · 999 B written",
        ),
        (
            Progress(
                source_rows=1, bytes=1_500_000, seconds=1.0, tokens=1, written_positions=15_000,
                seen=Seen(positions=4, mass=3.9, nats=3 * math.log(20), judged=3),
            ),
            "1 samples · 1 tokens · 1 tokens/s · ETA ? · 1.5 MB written, 100 a position · "
            "mass kept 0.9750 · perplexity 20.00",
        ),
        (
            Progress(source_rows=1, bytes=3_000_000_000_000_000, total_rows=2),
            "1/2 samples · 0 tokens · 0 tokens/s · ETA ? · 3000.0 TB written",
        ),
    ],
)  # fmt: skip
def test_a_line_says_it_all(progress: Progress, line: str) -> None:
    assert str(progress) == line


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Standard error as JSON lines, of JSON's own numbers alone."""

    def no_json(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = capsys.readouterr().err.splitlines()
    return [json.loads(line, parse_constant=no_json) for line in lines]


def test_a_file_gets_a_line_every_five_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown(True, doing="deriving") as report:
        for rows in range(1, 11):
            clock.now += 2
            report(Progress(source_rows=rows, total_rows=10))
    lines = lines_of(capsys)
    assert [line["source_rows"] for line in lines] == [3, 6, 9, 10]
    assert [line["event"] for line in lines] == ["progress"] * 3 + ["finished"]
    assert {line["doing"] for line in lines} == {"deriving"}


def test_an_end_by_an_error_is_told_with_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        with shown(True) as report:
            report(Progress(source_rows=4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job()
    assert [(line["event"], line["source_rows"]) for line in lines_of(capsys)] == [("stopped", 4)]


def test_a_line_has_the_documented_fields_and_their_values(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown(True) as report:
        tracker = Tracker(report, 8)
        tracker.skip(2)
        tracker.start(2)
        clock.now += 4
        tracker.advance(30, 60, Seen(positions=20, mass=18.0, nats=20 * math.log(5), judged=20))
        tracker.advance(30, 60, Seen(positions=20, mass=19.0, nats=0.0, judged=0))
        tracker.finish(4_000, 40)
    [line] = lines_of(capsys)
    assert line == {
        "event": "finished", "doing": "labelling", "share": 0.5, "source_rows": 4, "total_rows": 8,
        "units": 2, "skipped_rows": 2, "tokens": 60, "positions": 40, "tokens_per_s": 15.0,
        "eta_s": 8.0, "mass_kept": 0.925, "bytes": 4_000, "bytes_per_position": 100.0,
        "perplexity": pytest.approx(5), "seconds": 4.0,
    }  # fmt: skip


def test_what_is_not_known_yet_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(True):
        pass
    [line] = lines_of(capsys)
    unknown = {name for name, value in line.items() if value is None}
    assert unknown == {
        "share", "total_rows", "eta_s", "mass_kept", "bytes_per_position", "perplexity"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nats", "perplexity", "written"),
    [(math.inf, math.inf, sys.float_info.max), (2_000.0, math.inf, sys.float_info.max)],
)
def test_a_hopeless_teacher_is_seen_in_a_line_that_is_still_json(
    nats: float, perplexity: float, written: float, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(seen=Seen(positions=1, mass=1.0, nats=nats, judged=1))
    assert progress.perplexity == perplexity
    with shown(True) as report:
        report(progress)
    assert lines_of(capsys)[0]["perplexity"] == written


def test_a_mass_that_is_not_a_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(True) as report:
        report(Progress(seen=Seen(positions=1, mass=math.nan, nats=math.nan, judged=1)))
    [line] = lines_of(capsys)
    assert (line["mass_kept"], line["perplexity"]) == (None, None)


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0])
def test_a_clock_that_jumps_silences_nothing_and_turns_no_number_around(
    clock: Clock, capsys: pytest.CaptureFixture[str], jump: float
) -> None:
    with shown(True) as report:
        tracker = Tracker(report, 40)
        tracker.start(40)
        for batch in range(40):
            clock.now += jump if batch == 10 else 2
            tracker.advance(10, 400)
    lines = lines_of(capsys)
    assert len(lines) > 10
    for name in ("seconds", "share", "tokens"):
        values = [line[name] for line in lines]
        assert values == sorted(values)
    assert all(line["eta_s"] >= 0 and line["tokens_per_s"] > 0 for line in lines)


def test_a_log_that_cannot_be_written_stops_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(sys, "stderr", Full())
    with shown(True) as report:
        report(Progress())


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
    monkeypatch.setenv("COLUMNS", "220")
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with shown(enabled) as report:
            tracker = Tracker(report, total)
            tracker.start(5)
            tracker.advance(1000, 2000)
            tracker.advance(1000, 2000, Seen(1000, 990.0, 1000 * math.log(12.5), 1000))
            tracker.finish(4000, 2000)
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
    for words in (
        "2,000 tokens", "4.0 kB written, 2 a position", "mass kept 0.9900", "perplexity 12.50"
    ):  # fmt: skip
        assert words in err


def test_a_terminal_gets_nothing_when_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_a_terminal(False, 5, monkeypatch) == ""
