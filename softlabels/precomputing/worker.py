"""A worker: labels whatever units it is given, in a process of its own, loaded once."""

from __future__ import annotations

import pickle
import shutil
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from softlabels.errors import InputError, LabellingError, TeacherError, quoted
from softlabels.format.manifest import Receipt
from softlabels.precomputing.job import Job
from softlabels.precomputing.step import Done, Step, begun
from softlabels.precomputing.tasks import Task
from softlabels.stores.target import earlier


@dataclass(frozen=True)
class Failed:
    """What a worker raised.

    Attributes:
        error: itself, or an error that says the same where it cannot leave its process.
        traceback: as text.
    """

    error: Exception
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """An error, such as it arrives elsewhere."""
        text = "".join(traceback.format_exception(error))
        if not isinstance(error, Exception):
            return cls(LabellingError(f"a worker raised {_reason(error)}"), text)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, text)

    def again(self) -> Exception:
        """The error, to be raised in the process that waited for the worker."""
        self.error.__cause__ = InOtherProcess(self.traceback)
        return self.error


class InOtherProcess(Exception):
    """Where an error comes from: the traceback of the process that raised it, as text."""


class Worker:
    """Labels units, one after another, and reads and writes others meanwhile.

    Any thread may give it a unit. The teacher runs in one thread alone.

    Args:
        job: as `sent` made it; the plan is the set's own, or made now.
        out: the set.
    """

    def __init__(self, job: Job, out: str) -> None:
        self._stack = ExitStack()
        job = replace(job, earlier=earlier(out))
        self._writer = self._stack.enter_context(begun(out, job))
        self._step = Step.of(job, self._writer)
        self._labelling = self._stack.enter_context(ThreadPoolExecutor(1, "softlabels-teacher"))

    def __call__(self, task: Task) -> Done:
        """Label a unit and publish it, unless it is published."""
        found = self._step.prepare(task)
        if isinstance(found, Receipt):
            return Done(task.number, found)
        return self._step.publish(self._labelling.submit(self._step.label, task, found).result())

    def close(self) -> None:
        """End, when nothing is in work."""
        self._stack.close()

    def drop(self) -> None:
        """Take away what is not finished, before the process ends in the middle of it."""
        shutil.rmtree(self._writer.scratch, ignore_errors=True)
        with suppress(OSError):  # another one is still at work in it
            self._writer.scratch.parent.rmdir()


def sent(job: Job, dumps: Callable[[object], bytes] = pickle.dumps) -> bytes:
    """A job as it goes to another process, without a stream, whose rows are handed over.

    Raises:
        TeacherError, InputError: the teacher, or the data, cannot be sent.
    """
    job = replace(job, source=replace(job.source, stream=None))
    try:
        dumps(job.teacher)
    except Exception as error:
        raise TeacherError(
            f"the teacher cannot be sent to another process: {_reason(error)}. Pass a model's name "
            "or folder, or a teacher that can be pickled (of functions at the top of a module); or "
            "label with workers=1"
        ) from error
    try:
        return dumps(job)
    except Exception as error:
        raise InputError(
            f"the data cannot be sent to another process: {_reason(error)}. Pass a path, a "
            "Dataset, or rows that can be pickled; or label with workers=1"
        ) from error


def _reason(error: BaseException) -> str:
    return quoted(f"{type(error).__name__}: {error}", limit=300)[1:-1]
