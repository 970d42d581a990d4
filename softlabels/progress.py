"""What a running job tells: tokens a second, time left, bytes written."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """A running job at one moment.

    Attributes:
        units, source_rows: finished so far, those of earlier runs included.
        total_rows: of the source; None for a stream.
        share: of the whole, 0 to 1, the unit in work included; None for a stream.
        tokens: labelled by this run.
        bytes: written by this run.
        seconds: since labelling began.
        skipped_rows: finished by earlier runs.
    """

    units: int = 0
    source_rows: int = 0
    total_rows: int | None = None
    share: float | None = None
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    skipped_rows: int = 0

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

    def __str__(self) -> str:
        rows = f"{self.source_rows:,}" + (f"/{self.total_rows:,}" if self.total_rows else "")
        left = self.seconds_left
        return " · ".join(
            [
                f"{rows} samples",
                f"{self.tokens:,} tokens",
                f"{self.tokens_per_s:,.0f} tokens/s",
                f"{_size(self.bytes)} written",
                "ETA " + ("?" if left is None else _clock(left)),
            ]
        )


class Tracker:
    """Turns what the labeller reports into `Progress` events.

    Args:
        report: called with every event.
        total_rows: of the source; None for a stream.
    """

    def __init__(self, report: Callable[[Progress], None], total_rows: int | None) -> None:
        self._report = report
        self._state = Progress(total_rows=total_rows, share=None if total_rows is None else 0.0)
        self._unit_rows = self._unit_tokens = 0
        self._began = time.perf_counter()

    def skip(self, rows: int) -> None:
        """A unit was finished by an earlier run."""
        state = self._state
        self._state = replace(state, skipped_rows=state.skipped_rows + rows)
        self._finish(rows, 0)

    def start(self, rows: int) -> None:
        """A unit begins."""
        if not self._state.tokens:
            self._began = time.perf_counter()
        self._unit_rows, self._unit_tokens = rows, 0

    def advance(self, tokens: int, unit_tokens: int) -> None:
        """A batch is labelled: its tokens, and the unit's in all."""
        self._unit_tokens += tokens
        part = self._unit_rows * self._unit_tokens / max(1, unit_tokens)
        self._emit(tokens=self._state.tokens + tokens, inside=part)

    def finish(self, bytes_written: int) -> None:
        """The unit is published."""
        self._finish(self._unit_rows, bytes_written)

    def _finish(self, rows: int, bytes_written: int) -> None:
        state = self._state
        self._state = replace(state, units=state.units + 1, source_rows=state.source_rows + rows)
        self._emit(bytes=state.bytes + bytes_written)

    def _emit(self, *, inside: float = 0.0, **changes: int) -> None:
        state = replace(self._state, seconds=time.perf_counter() - self._began, **changes)
        if state.total_rows:
            state = replace(state, share=(state.source_rows + inside) / state.total_rows)
        self._state = state
        self._report(state)


@contextmanager
def shown(
    enabled: bool | None, *, doing: str = "labelling", first: str = "loading the teacher"
) -> Iterator[Callable[[Progress], None]]:
    """Show progress on standard error: a live bar in a terminal, else a line every 30 s.

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
        yield _lines(doing)


@contextmanager
def _bar(doing: str, first: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(doing),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(first, total=None)

        def report(progress: Progress) -> None:
            total = None if progress.share is None else 1.0
            bar.update(task, description=str(progress), completed=progress.share, total=total)

        yield report


def _lines(doing: str, every_s: float = 30.0) -> Callable[[Progress], None]:
    last = time.perf_counter()

    def report(progress: Progress) -> None:
        nonlocal last
        finished = progress.total_rows is not None and progress.source_rows == progress.total_rows
        if time.perf_counter() - last >= every_s or finished:
            last = time.perf_counter()
            print(f"{doing}: {progress}", file=sys.stderr, flush=True)

    return report


def _size(count: int) -> str:
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _clock(seconds: float) -> str:
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}"
