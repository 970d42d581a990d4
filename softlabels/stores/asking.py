"""Asking over a network: what may pass is asked again a few times, and every wait has an end."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from softlabels.errors import RemoteError, quoted

T = TypeVar("T")

# Without a byte for this long, a request has failed. A whole answer has as long again, and then
# what a slow line needs.
TIMEOUT_S = 30.0
_SLOWEST_BYTES_PER_S = 32 << 10
TRIES = 5
# Between tries: doubled every time, and cut by a random part so that readers do not march in step.
BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 10.0
_LONGEST_RETRY_AFTER_S = 60.0
# For an answer whose size is not told before.
WHOLE_S = 600.0
_GO_ON = (
    "see that the server can be reached, then go on; what the cache holds can be read without it, "
    "with SOFTLABELS_OFFLINE=1"
)


class Passing(Exception):
    """A request that may go well when it is made again.

    Attributes:
        wait_s: how long the server asks to wait.
    """

    def __init__(self, problem: str, *, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


def persist(
    what: str, attempt: Callable[[], T], *, failed: str = "cannot be read", todo: str = _GO_ON
) -> T:
    """Try a request until it goes well or has failed `TRIES` times.

    Args:
        what: was wanted.
        failed, todo: what an error says of it.

    Raises:
        RemoteError: it did not go well.
    """
    for tries in range(1, TRIES + 1):
        try:
            return attempt()
        except Passing as error:
            problem = str(error)
            backoff = min(_LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (tries - 1))
            wait = max(error.wait_s, backoff * random.uniform(0.5, 1))
            if tries == TRIES or wait > _LONGEST_RETRY_AFTER_S:
                break
            time.sleep(wait)
    raise RemoteError(
        f"{what} {failed} after {tries} {'tries' if tries > 1 else 'try'}: {problem}; {todo}"
    )


def longest_s(length: int) -> float:
    """Seconds that an answer of this many bytes may take."""
    return 2 * TIMEOUT_S + length / _SLOWEST_BYTES_PER_S


def told(error: BaseException) -> str:
    """An error in words, without what a URL may hold: credentials, and signed queries."""
    text = re.sub(r"(\w://)[^/\s@]*@", r"\1", str(error))
    text = re.sub(r"\?[^\s\"')]+", "?…", text)
    return f"{type(error).__name__}: {quoted(text, limit=160)}"
