"""Who labels: this process, several of this machine, or actors of a Ray cluster."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from softlabels.errors import InputError, quoted
from softlabels.precomputing.job import Job
from softlabels.precomputing.step import Done
from softlabels.precomputing.tasks import Task
from softlabels.precomputing.workers import label_on_workers


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Attributes:
        workers: how many; 1 is the process that asks.
    """

    workers: int

    def label(self, job: Job, out: str, tasks: Iterable[Task]) -> Generator[Done]:
        """See `softlabels.precomputing.workers.label_on_workers`."""
        return label_on_workers(job, out, tasks, self.workers)


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Actors of a Ray cluster, which see data, teacher and folder by the same paths.

    More actors than the cluster has room for wait, and join when a node does.

    Attributes:
        actors: how many, at most.
        address: of the cluster; None begins one on this machine, which listens here alone.
        resources: of each actor, as Ray names them: {"CPU": 4, "GPU": 1}. A fraction lets a lost
            node's actor find room on another one. By default a CPU, or an equal part of this
            machine's, and a GPU where the teacher runs on one here.
        patience_s: how long there may be room for no actor at all.
    """

    actors: int = 1
    address: str | None = None
    resources: Mapping[str, float] | None = None
    patience_s: float = 300.0

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise InputError(f"actors is {self.actors}; it must be at least 1")
        wrong = [name for name, amount in (self.resources or {}).items() if not amount >= 0]
        if wrong:
            raise InputError(f"resources has {quoted(wrong[0])} below 0; give an amount from 0 on")

    def label(self, job: Job, out: str, tasks: Iterable[Task]) -> Generator[Done]:
        """See `softlabels.precomputing.on_ray.label_on_actors`.

        Raises:
            InputError: the extra is not installed.
        """
        try:
            from softlabels.precomputing.on_ray import label_on_actors
        except ImportError as error:
            raise InputError(
                'executor="ray" needs an extra that is not installed: pip install '
                "'softlabels[ray]'"
            ) from error
        return label_on_actors(job, out, tasks, self)


Executor = Literal["local", "ray"] | Ray


def named(executor: Executor, workers: int) -> Local | Ray:
    """The executor of a name and a number of workers.

    Raises:
        InputError: there is no such executor, or no worker.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise InputError(f"workers is {workers!r}; it must be a whole number, at least 1")
    if isinstance(executor, Ray):
        if workers != 1:
            raise InputError(
                f"workers is {workers}, and the executor says how many itself: {executor.actors} "
                "actors; leave out workers"
            )
        return executor
    if executor == "ray":
        return Ray(actors=workers)
    if executor == "local":
        return Local(workers)
    raise InputError(f'executor is {executor!r}; expected "local", "ray" or an executors.Ray(…)')
