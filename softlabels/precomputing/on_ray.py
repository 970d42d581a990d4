"""executor="ray": actors of a Ray cluster, or of one begun on this machine for the job alone."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from softlabels.errors import LabellingError
from softlabels.precomputing.hand_out import IN_FLIGHT, TRIES, HandOut
from softlabels.precomputing.job import Job
from softlabels.precomputing.ray_cluster import connected
from softlabels.precomputing.step import Done
from softlabels.precomputing.tasks import Task
from softlabels.precomputing.worker import Failed, Worker, sent

if TYPE_CHECKING:
    from softlabels.precomputing.executors import Ray

_LOOK_S, _END_S = 1.0, 10.0


def label_on_actors(job: Job, out: str, tasks: Iterable[Task], how: Ray) -> Generator[Done]:
    """Label units by actors; the first one that finds room makes the plan of a new set.

    An actor that ends, by itself or with its node, gives its units to the others, and another one
    is asked for, which joins them when there is room.

    Raises:
        LabellingError: a unit ended several actors, or there is room for none.
        TeacherError, InputError: teacher or data cannot be sent to another process.
        SoftLabelsError: what an actor raised.
    """
    with connected(how.address) as ray:
        resources = how.resources or _resources(job.teacher, how.actors, alone=not how.address)
        dumps = importlib.import_module("ray.cloudpickle").dumps
        crew = _Crew(ray, sent(job, dumps), out, iter(tasks), resources, how)
        try:
            yield from crew.run()
        finally:
            crew.end()


class _Actor:
    """What runs in the cluster."""

    def __init__(self, job: bytes, out: str, threads: int, path: list[str]) -> None:
        self._job, self._out, self._threads = job, out, threads
        # A teacher's module may lie beside the script that names it.
        sys.path += [folder for folder in path if folder not in sys.path]
        self._worker: Worker | None = None

    def is_there(self) -> bool:
        return True

    def begin(self) -> Failed | None:
        torch.set_num_threads(self._threads)
        try:
            self._worker = Worker(pickle.loads(self._job), self._out)
        except Exception as error:
            return Failed.of(error)
        return None

    def label(self, task: Task) -> Done | Failed:
        assert self._worker is not None, "it is given units when it has begun"
        try:
            return self._worker(task)
        except Exception as error:
            return Failed.of(error)

    def close(self, *, whole: bool) -> None:
        if self._worker is not None:
            self._worker.close() if whole else self._worker.drop()


@dataclass(eq=False)
class _Member:
    """An actor, and what it has to do.

    Attributes:
        there: it has found room.
        ready: it has loaded what it needs.
    """

    actor: Any
    there: bool = False
    ready: bool = False
    tasks: dict[int, Task] = field(default_factory=dict)


class _Crew:
    """Actors while they are at work."""

    def __init__(
        self,
        ray: Any,
        job: bytes,
        out: str,
        tasks: Iterator[Task],
        resources: Mapping[str, float],
        how: Ray,
    ) -> None:
        self._ray, self._out, self._how = ray, out, how
        self._hand_out = HandOut(tasks)
        self._resources = dict(resources)
        self._job = ray.put(job)
        self._members: list[_Member] = []
        # What is waited for: whose it is; of a unit, which one.
        self._waiting: dict[Any, tuple[_Member, int | None]] = {}
        self._first: _Member | None = None  # it makes the plan, which the others go by
        self._begun, self._lost_early = False, 0
        self._seen_at = time.monotonic()

    def run(self) -> Iterator[Done]:
        for _ in range(self._how.actors):
            self._start()
        while self._hand_out.give(self._members, self._send):
            refs = list(self._waiting)
            ready, _ = self._ray.wait(refs, num_returns=1, timeout=_LOOK_S)
            for ref in ready:
                if ref in self._waiting:  # else of one that was lost just now
                    yield from self._take(ref)
            self._check_patience()

    def _send(self, member: _Member, task: Task) -> None:
        self._waiting[member.actor.label.remote(task)] = (member, task.number)

    def _take(self, ref: Any) -> Iterator[Done]:
        member, number = self._waiting.pop(ref)
        try:
            answer = self._ray.get(ref, timeout=_END_S)
        except self._ray.exceptions.RayTaskError:
            raise  # our own fault
        except self._ray.exceptions.RayError as error:
            self._replace(member, error)
            return
        if isinstance(answer, Failed):
            raise answer.again()
        if number is not None:
            del member.tasks[number]
            yield answer
        elif not member.there:
            member.there = True
            self._begin()
        else:
            member.ready, self._begun, self._lost_early = True, True, 0
            self._begin()

    def _begin(self) -> None:
        """Have those load that have found room: the first one alone, and then the others."""
        busy = {id(member) for member, _ in self._waiting.values()}
        for member in self._members:
            if self._first is not None and not self._begun:
                return
            if member.there and not member.ready and id(member) not in busy:
                self._first = self._first or member
                self._waiting[member.actor.begin.remote()] = (member, None)

    def _replace(self, member: _Member, error: Exception) -> None:
        """Give the units of one that ended back, and ask for another."""
        reason = str(error).strip().splitlines()[0]
        if not member.ready:
            self._lost_early += 1
            if self._lost_early >= TRIES:
                raise LabellingError(
                    f"{TRIES} actors ended before they could begin; the last one: {reason}. Data, "
                    "teacher, the folder and softlabels itself have to be on every node"
                ) from error
        self._hand_out.take_back(member, f"was lost: {reason}", error)
        self._waiting = {r: held for r, held in self._waiting.items() if held[0] is not member}
        self._members.remove(member)
        if self._first is member and not self._begun:
            self._first = None
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor)
        self._start()
        self._begin()

    def _start(self) -> None:
        amounts = dict(self._resources)
        cpus, gpus = amounts.pop("CPU", 0.0), amounts.pop("GPU", 0.0)
        # Ray's own restart would keep a lost actor's units until it finds room; others take them.
        actor = self._ray.remote(_Actor).options(
            num_cpus=cpus,
            num_gpus=gpus,
            resources=amounts,
            max_restarts=0,
            max_concurrency=IN_FLIGHT + 1,
        )
        member = _Member(actor.remote(self._job, self._out, max(1, int(cpus)), sys.path))
        self._members.append(member)
        self._waiting[member.actor.is_there.remote()] = (member, None)

    def _check_patience(self) -> None:
        now = time.monotonic()
        if any(member.there for member in self._members):
            self._seen_at = now
        elif now - self._seen_at > self._how.patience_s:
            raise LabellingError(
                f"for {self._how.patience_s:g} s the cluster had room for no actor: each wants "
                f"{_shown(self._resources)}, and of {_shown(self._ray.cluster_resources())} there "
                f"is {_shown(self._ray.available_resources())} left. Ask for less with resources= "
                "(--resources), a fraction for instance, or add nodes; what is finished stays"
            )

    def end(self) -> None:
        """Let them go, those in the middle of a unit too."""
        ending = [m.actor.close.remote(whole=not m.tasks) for m in self._members if m.ready]
        with suppress(self._ray.exceptions.RayError):
            if ending:
                self._ray.wait(ending, num_returns=len(ending), timeout=_END_S)
        for member in self._members:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(member.actor)


def _resources(teacher: Any, actors: int, *, alone: bool) -> dict[str, float]:
    """Of each actor, where the user does not say."""
    cores = len(os.sched_getaffinity(0))
    device = getattr(teacher, "device", None)
    cuda = {"GPU": 1.0} if device is not None and device.type == "cuda" else {}
    return {"CPU": float(max(1, cores // actors)) if alone else 1.0, **cuda}


def _shown(resources: Mapping[str, float]) -> str:
    names = [name for name in resources if not name.startswith(("node:", "object_store", "memory"))]
    return ", ".join(f"{resources[name]:g} {name}" for name in sorted(names)) or "nothing"
