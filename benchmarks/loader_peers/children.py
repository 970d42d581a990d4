"""Processes of one system and one measure each, seen from the benchmark that starts them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from loader_peers import SYSTEMS

_BENCHMARKS = Path(__file__).resolve().parent.parent
# Of a process that has said all it had to; its workers may hang.
_END_S = 20


class Child:
    """A process that answers when it is asked; its first answer says that it is ready.

    Args:
        job: what `python -m loader_peers` takes.
    """

    def __init__(self, python: str, job: dict[str, Any]) -> None:
        self._job = job
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self._process = subprocess.Popen(
            [python, "-m", "loader_peers", json.dumps(job)],
            cwd=_BENCHMARKS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Its workers end with it.
            start_new_session=True,
        )

    def answer(self) -> dict[str, Any]:
        """The next one, waited for.

        Raises:
            SystemExit: it ended instead, with the last that it said.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = "".join(self._errors.readlines()[-12:])
            what = f"{SYSTEMS[self._job['system']].label}, {self._job['measure']}"
            raise SystemExit(f"{what} failed:\n{said}")
        found: dict[str, Any] = json.loads(line)
        return found

    def go_on(self) -> None:
        """Let it begin its next turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def turn(self) -> dict[str, Any]:
        """Let it go on, and wait for what it found."""
        self.go_on()
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end, with its workers."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def has(python: str, modules: tuple[str, ...]) -> bool:
    """Whether an interpreter finds them all.

    Raises:
        SystemExit: there is no such interpreter.
    """
    if shutil.which(python) is None:
        raise SystemExit(f"--peers {python}: no such interpreter; name one, …/bin/python")
    code = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    return subprocess.run([python, "-c", code, *modules]).returncode == 0
