"""Sets to attack."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Every attack is answered within a second or two; one that hangs must not hang the tests.
_LIMIT_S = 60


class TookTooLongError(BaseException):
    """Nothing in the library catches it."""


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def packed_set(tmp_path_factory: pytest.TempPathFactory, precompute: Any) -> Path:
    """A finished set in the codec compact, with probes; never changed."""
    out = tmp_path_factory.mktemp("packed") / "labels"
    precompute(out, codec="compact", probes=6)
    return out


@pytest.fixture
def packed(packed_set: Path, tmp_path: Path) -> Path:
    """A copy of it, to do what you like with."""
    from forge import copy

    return copy(packed_set, tmp_path / "packed")
