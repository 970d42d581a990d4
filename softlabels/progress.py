"""What a running job tells: speed, time left, size, and whether its teacher is sound."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Seen:
    """What the labels of a batch show of their teacher.

    Attributes:
        positions: labelled.
        mass: Σ over them of the probability of the classes kept, at T = 1.
        nats: Σ of −log p(hard label), over the positions that have one.
        judged: how many have one.
    """

    positions: int
    mass: float
    nats: float
    judged: int

    def __add__(self, other: Seen) -> Seen:
        return self._sum(other, 1)

    def __sub__(self, other: Seen) -> Seen:
        return self._sum(other, -1)

    def _sum(self, other: Seen, sign: int) -> Seen:
        return Seen(
            positions=self.positions + sign * other.positions,
            mass=self.mass + sign * other.mass,
            nats=self.nats + sign * other.nats,
            judged=self.judged + sign * other.judged,
        )


NOTHING_SEEN = Seen(0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class Progress:
    """A running job at one moment.

    Attributes:
        units, source_rows: published so far, those of earlier runs included.
        total_rows: of the source; None for a stream.
        share: of the whole, 0 to 1, what is labelled and not yet published included; None for a
            stream.
        tokens: labelled by this run.
        bytes, written_positions: published by this run.
        seconds: since labelling began.
        skipped_rows: finished by earlier runs.
        seen: the sums over this run's batches.
    """

    units: int = 0
    source_rows: int = 0
    total_rows: int | None = None
    share: float | None = None
    tokens: int = 0
    bytes: int = 0
    written_positions: int = 0
    seconds: float = 0.0
    skipped_rows: int = 0
    seen: Seen = NOTHING_SEEN

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of this run."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Expected from the share done by this run; None when there is nothing to go by."""
        if self.share is None or not self.total_rows or not self.tokens:
            return None
        done = self.share - self.skipped_rows / self.total_rows
        return self.seconds * (1 - self.share) / done if done > 0 else None

    @property
    def mass_kept(self) -> float | None:
        """Mean probability, at a position, of the classes kept; None before any."""
        return self.seen.mass / self.seen.positions if self.seen.positions else None

    @property
    def bytes_per_position(self) -> float | None:
        """Of the shards published by this run; None before any."""
        return self.bytes / self.written_positions if self.written_positions else None

    @property
    def perplexity(self) -> float | None:
        """exp of the mean −log p(hard label) in this run; None before any.

        Near the number of classes, or above it, the teacher is broken or the text is not its own.
        """
        if not self.seen.judged:
            return None
        try:
            return math.exp(self.seen.nats / self.seen.judged)
        except OverflowError:
            return math.inf

    def to_json(self) -> dict[str, int | float | None]:
        """The fields of a line of the log; what is not known (yet) is null.

        Returns:
            share, source_rows, total_rows, units, skipped_rows, tokens, bytes, seconds: as the
            attributes. positions: labelled by this run. tokens_per_s, mass_kept,
            bytes_per_position, perplexity: as the properties, an infinite perplexity as the largest
            float, because JSON has no infinity. eta_s: seconds left.
        """
        fields = {
            "share": self.share,
            "source_rows": self.source_rows,
            "total_rows": self.total_rows,
            "units": self.units,
            "skipped_rows": self.skipped_rows,
            "tokens": self.tokens,
            "positions": self.seen.positions,
            "tokens_per_s": self.tokens_per_s,
            "eta_s": self.seconds_left,
            "mass_kept": self.mass_kept,
            "bytes": self.bytes,
            "bytes_per_position": self.bytes_per_position,
            "perplexity": self.perplexity,
            "seconds": self.seconds,
        }
        return {name: _for_json(value) for name, value in fields.items()}

    def __str__(self) -> str:
        rows = f"{self.source_rows:,}" + (f"/{self.total_rows:,}" if self.total_rows else "")
        left, size = self.seconds_left, self.bytes_per_position
        words = [
            f"{rows} samples",
            f"{self.tokens:,} tokens",
            f"{self.tokens_per_s:,.0f} tokens/s",
            "ETA " + ("?" if left is None else _clock(left)),
            f"{_size(self.bytes)} written" + ("" if size is None else f", {size:,.0f} a position"),
        ]
        if self.mass_kept is not None:
            words.append(f"mass kept {self.mass_kept:.4f}")
        if self.perplexity is not None:
            words.append(f"perplexity {self.perplexity:,.2f}")
        return " · ".join(words)


@dataclass
class _Begun:
    """A unit that is not published: its rows, and what was counted of it so far."""

    rows: int
    tokens: int = 0
    seen: Seen = NOTHING_SEEN


class Tracker:
    """Turns what the stages of a job report into `Progress` events; any thread may call it.

    Units are published in the order in which they were started, each while later ones may be in
    work: `start` and `advance` are about the unit that is being labelled, `finish` is about the
    oldest one that is not published.

    Args:
        report: called with every event, one at a time.
        total_rows: of the source; None for a stream.
    """

    def __init__(self, report: Callable[[Progress], None], total_rows: int | None) -> None:
        self._report = report
        self._state = Progress(total_rows=total_rows, share=None if total_rows is None else 0.0)
        self._unpublished: deque[_Begun] = deque()  # the last one is being labelled
        self._unit_share = 0.0
        self._began = time.perf_counter()
        self._lock = threading.Lock()

    def skip(self, rows: int) -> None:
        """A unit was finished by an earlier run."""
        with self._lock:
            self._state = replace(self._state, skipped_rows=self._state.skipped_rows + rows)
            self._publish(rows)

    def start(self, rows: int) -> None:
        """Labelling of a unit begins; that of the one before is over."""
        with self._lock:
            if not self._state.tokens:
                self._began = time.perf_counter()
                self._state = replace(self._state, seconds=0.0)
            self._unpublished.append(_Begun(rows))
            self._unit_share = 0.0

    def again(self) -> None:
        """The unit that is being labelled begins again: what was counted of it is not done."""
        with self._lock:
            self._count(self._unpublished[-1], 0, NOTHING_SEEN)

    def advance(self, tokens: int, unit_tokens: int, seen: Seen | None = None) -> None:
        """A batch is labelled.

        Args:
            tokens: in it.
            unit_tokens: the unit's, in all.
            seen: what its labels show of the teacher.
        """
        with self._lock:
            unit = self._unpublished[-1]
            self._count(unit, unit.tokens + tokens, unit.seen + (seen or NOTHING_SEEN))
            # A bar does not go back while a unit that began again catches up.
            share = min(1.0, unit.tokens / max(1, unit_tokens))
            self._unit_share = max(self._unit_share, share)
            self._emit()

    def _count(self, unit: _Begun, tokens: int, seen: Seen) -> None:
        """Of this unit so much is labelled, whatever was said before."""
        state = self._state
        self._state = replace(
            state,
            tokens=state.tokens + tokens - unit.tokens,
            seen=state.seen + seen - unit.seen,
        )
        unit.tokens, unit.seen = tokens, seen

    def finish(
        self,
        bytes_written: int,
        positions: int = 0,
        *,
        tokens: int | None = None,
        seen: Seen = NOTHING_SEEN,
    ) -> None:
        """The oldest unit is published.

        Args:
            bytes_written: of its shard.
            positions: in it.
            tokens, seen: of all its batches; None for those that were told of.
        """
        with self._lock:
            unit = self._unpublished.popleft()
            if tokens is not None:
                self._count(unit, tokens, seen)
            self._state = replace(
                self._state,
                bytes=self._state.bytes + bytes_written,
                written_positions=self._state.written_positions + positions,
            )
            self._publish(unit.rows)

    def finish_elsewhere(
        self, rows: int, *, tokens: int, seen: Seen, bytes_written: int, positions: int
    ) -> None:
        """A unit was labelled and published by another process.

        Args:
            rows: of the unit.
            tokens, seen: of its batches.
            bytes_written, positions: of its shard.
        """
        with self._lock:
            state = self._state
            self._state = replace(
                state,
                tokens=state.tokens + tokens,
                seen=state.seen + seen,
                bytes=state.bytes + bytes_written,
                written_positions=state.written_positions + positions,
            )
            self._publish(rows)

    def _publish(self, rows: int) -> None:
        state = self._state
        self._state = replace(state, units=state.units + 1, source_rows=state.source_rows + rows)
        self._emit()

    def _emit(self) -> None:
        # A clock that is set back must not make the job younger.
        seconds = max(self._state.seconds, time.perf_counter() - self._began)
        state = replace(self._state, seconds=seconds)
        if state.total_rows:
            labelled: float = state.source_rows + sum(unit.rows for unit in self._unpublished)
            if self._unpublished:
                labelled -= self._unpublished[-1].rows * (1 - self._unit_share)
            state = replace(state, share=labelled / state.total_rows)
        self._state = state
        self._report(state)


@contextmanager
def shown(
    enabled: bool | None, *, doing: str = "labelling", first: str = "loading the teacher"
) -> Iterator[Callable[[Progress], None]]:
    """Show progress on standard error: a live bar in a terminal, else JSON lines.

    A line is an object of `event` ("progress" every 5 s; "finished", or "stopped" by an error, at
    the end), `doing` and the fields of `Progress.to_json`.

    Args:
        enabled: None shows it only in a terminal.
        doing: what the job does.
        first: what it does before there is progress.
    """
    in_terminal = sys.stderr.isatty()
    if enabled is False or (enabled is None and not in_terminal):
        yield lambda _: None
    elif in_terminal:
        with _bar(doing, first) as report:
            yield report
    else:
        with _lines(doing) as report:
            yield report


@contextmanager
def _bar(doing: str, first: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    columns = (
        TextColumn(doing),
        BarColumn(bar_width=20),
        # It is wrapped where it does not fit, not cut.
        TextColumn("{task.description}", markup=False, table_column=Column()),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(first, total=None)

        def report(progress: Progress) -> None:
            total = None if progress.share is None else 1.0
            bar.update(task, description=str(progress), completed=progress.share, total=total)

        yield report


@contextmanager
def _lines(doing: str, every_s: float = 5.0) -> Iterator[Callable[[Progress], None]]:
    shown_at = time.perf_counter()
    latest = Progress()

    def write(event: str) -> None:
        line = json.dumps({"event": event, "doing": doing, **latest.to_json()})
        with suppress(OSError):  # a log whose reader left, or whose disk is full, stops no job
            print(line, file=sys.stderr, flush=True)

    def report(progress: Progress) -> None:
        nonlocal shown_at, latest
        latest, now = progress, time.perf_counter()
        if not 0 <= now - shown_at < every_s:  # below 0: the clock was set back
            shown_at = now
            write("progress")

    try:
        yield report
    except BaseException:
        if latest != Progress():  # else nothing began
            write("stopped")
        raise
    write("finished")


def _for_json(value: int | float | None) -> int | float | None:
    if isinstance(value, float) and not math.isfinite(value):
        return sys.float_info.max if value > 0 else None
    return round(value, 6) if isinstance(value, float) else value


def _size(count: int) -> str:
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _clock(seconds: float) -> str:
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}"
