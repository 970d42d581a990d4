"""executor="local": processes on this machine, which take units as they get free."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from softlabels.errors import LabellingError
from softlabels.precomputing.hand_out import IN_FLIGHT, HandOut
from softlabels.precomputing.job import Job
from softlabels.precomputing.step import Done
from softlabels.precomputing.tasks import Task
from softlabels.precomputing.worker import Failed, Worker, sent
from softlabels.ranks import local_rank

_END_S = 10.0
_BEGIN, _READY = "begin", "ready"


def label_on_workers(job: Job, out: str, tasks: Iterable[Task], workers: int) -> Generator[Done]:
    """Label units in so many processes; the first one makes the plan of a new set.

    A process that is killed gives its units to the others, and another takes its place. However
    the iteration ends, no process is left.

    Raises:
        LabellingError: a unit ended several processes, or one ended before it could begin.
        TeacherError, InputError: teacher or data cannot be sent to another process.
        SoftLabelsError: what a worker raised.
    """
    crew = _Crew(sent(job), out, iter(tasks), _devices(job.teacher), workers)
    try:
        yield from crew.run()
    finally:
        crew.end()


@dataclass
class _Member:
    """A process, and what it has to do.

    Attributes:
        ready: it has loaded what it needs.
    """

    process: BaseProcess
    pipe: Connection
    number: int
    ready: bool = False
    tasks: dict[int, Task] = field(default_factory=dict)


class _Crew:
    """Processes while they are at work."""

    def __init__(
        self, job: bytes, out: str, tasks: Iterator[Task], devices: list[str | None], workers: int
    ) -> None:
        self._job, self._out, self._devices = job, out, devices
        self._hand_out = HandOut(tasks)
        cores = len(os.sched_getaffinity(0))
        self._threads = max(1, min(torch.get_num_threads(), cores // workers))
        self._workers, self._members, self._begun = workers, list[_Member](), False

    def run(self) -> Iterator[Done]:
        for number in range(self._workers):
            self._members.append(self._start(number))
        _send(self._members[0], _BEGIN)
        while self._hand_out.give(self._members, _send):
            sources: list[Any] = []
            for member in self._members:
                sources += [member.pipe, member.process.sentinel]
            heard = set(wait(sources))
            for member in list(self._members):
                yield from self._hear(member, heard)

    def _hear(self, member: _Member, heard: set[Any]) -> Iterator[Done]:
        ended = member.process.sentinel in heard
        try:
            while (member.pipe in heard or ended) and member.pipe.poll():
                yield from self._take(member, member.pipe.recv())
        except (EOFError, OSError):
            ended = True
        if ended:
            self._replace(member)

    def _take(self, member: _Member, message: Any) -> Iterator[Done]:
        if isinstance(message, Failed):
            raise message.again()
        if message == _READY:
            member.ready = True
            if not self._begun:  # the plan is there, which the others go by
                self._begun = True
                for other in self._members[1:]:
                    _send(other, _BEGIN)
            return
        del member.tasks[message.number]
        yield message

    def _replace(self, member: _Member) -> None:
        """Give the units of one that ended back, and its place to another."""
        member.process.join(_END_S)
        how = _how(member.process.exitcode)
        if not member.ready:
            raise LabellingError(
                f"worker {member.number} {how} before it could begin; what it printed says why. A "
                "script that labels with several workers has to do so below `if __name__ == "
                '"__main__":`, because each worker imports it'
            )
        self._hand_out.take_back(member, how)
        member.pipe.close()
        other = self._start(member.number)
        self._members[self._members.index(member)] = other
        _send(other, _BEGIN)

    def _start(self, number: int) -> _Member:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work,
            args=(theirs, self._job, self._out, self._threads),
            name=f"softlabels-worker-{number}",
            daemon=True,
        )
        # Its start would let Ctrl-C through to the process that is started with it.
        resource_tracker.ensure_running()
        with _environment(self._devices[number % len(self._devices)]):
            process.start()
        theirs.close()
        return _Member(process, ours, number)

    def end(self) -> None:
        """Let them go: each ends when its pipe does, at once if it is in the middle of a unit."""
        for member in self._members:
            member.pipe.close()
            if not member.ready:  # it loads, and would look up only then
                member.process.kill()
        until = time.monotonic() + _END_S
        for member in self._members:
            member.process.join(max(0.1, until - time.monotonic()))
            if member.process.is_alive():
                member.process.kill()
                member.process.join(_END_S)
            member.process.close()


def _send(member: _Member, what: Task | str) -> None:
    with suppress(OSError):  # it has ended, which is noticed when it is waited for
        member.pipe.send(what)


def _work(pipe: Connection, job: bytes, out: str, threads: int) -> None:
    """A worker's whole life: it ends when its pipe does, also because its driver was killed."""
    sending = threading.Lock()

    def answer(task: Task) -> None:
        try:
            made: Done | Failed = worker(task)
        except BaseException as error:  # SystemExit, a panic of Rust: nobody else would tell
            made = Failed.of(error)
        with sending, suppress(OSError):
            pipe.send(made)

    try:
        pipe.recv()
    except EOFError:
        return
    torch.set_num_threads(threads)
    try:
        worker = Worker(pickle.loads(job), out)
    except Exception as error:
        pipe.send(Failed.of(error))
        return
    pipe.send(_READY)
    with ThreadPoolExecutor(IN_FLIGHT, "softlabels-unit") as pool:
        given: list[Future[None]] = []
        with suppress(EOFError, OSError):
            while True:
                given = [one for one in given if not one.done()]
                given.append(pool.submit(answer, pipe.recv()))
        if not all(one.done() for one in given):
            worker.drop()
            os._exit(1)
    worker.close()


def _devices(teacher: Any) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each worker in turn; None as it is."""
    device = getattr(teacher, "device", None)
    if device is None or device.type != "cuda" or device.index is not None:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    local = local_rank()
    if local is not None:  # the others are for the other ranks of this machine
        names = [names[local % len(names)]]
    return list(names)


@contextmanager
def _environment(device: str | None) -> Iterator[None]:
    """What a new process inherits: its device, and no Ctrl-C, which the driver answers for all."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if device is not None:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"
