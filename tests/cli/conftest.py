"""Command lines, run in this process as `softlabels` runs them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from softlabels.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as strict JSON: NaN and infinities are none."""

        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


CommandLine = Callable[..., Done]


@pytest.fixture
def softlabels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Run one command line as the executable does, in a terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Done:
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
        finally:
            signal.signal(signal.SIGINT, handler)  # an interrupted command ignores it to its end
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    """A few short samples as JSONL."""
    path = tmp_path_factory.mktemp("cli") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:9]))
    return path
