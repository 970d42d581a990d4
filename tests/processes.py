"""Processes forked from one that has loaded what jobs need: a new interpreter takes seconds to."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Callable
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "datasets",
        "numba",
        "softlabels.precomputing.run",
        "softlabels.training",
        "transformers.models.llama.modeling_llama",
        "transformers.tokenization_utils_tokenizers",
    ]
)


def killed(moment: str, function: str, count: int, job: Callable[[], object]) -> None:
    """Do a job in a process that dies by SIGKILL at a call of a function, and see that it died.

    Args:
        moment: "before" or "after" that call.
        function: its full name, such as "os.link".
        count: which call, from 1.
        job: can be pickled.
    """
    process = PROCESSES.Process(target=_die_in, args=(moment, function, count, job))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _die_in(moment: str, function: str, count: int, job: Callable[[], object]) -> None:
    owner_name, _, name = function.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    original, calls = getattr(owner, name), itertools.count(1)

    def killing(*args: Any, **kwargs: Any) -> Any:
        last = next(calls) == count
        if last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)
    job()
