"""Units handed out to workers as they get free, and taken back from those that end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from softlabels.errors import LabellingError
from softlabels.precomputing.tasks import Task

# Units that a worker has at a time: while one is labelled, the other is read or written.
IN_FLIGHT = 2
# A unit that ended so many workers would end the next one too.
TRIES = 3


class Member(Protocol):
    """A worker of this machine, or of another one.

    Attributes:
        ready: it has loaded what it needs.
        tasks: what it has to do, by number.
    """

    ready: bool
    tasks: dict[int, Task]


M = TypeVar("M", bound=Member)


class HandOut:
    """What is still to be done, and by how many workers each unit was tried.

    Args:
        tasks: in order; walked through as workers get free.
    """

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks
        self._next: deque[Task] = deque()  # given back, or looked at before
        self._tries: Counter[int] = Counter()

    def give(self, members: Sequence[M], send: Callable[[M, Task], object]) -> bool:
        """Give units to those who have the fewest; whether there is anything to wait for.

        Nobody gets a second one that another, about to begin, would go without.
        """
        while True:
            free = [m for m in members if m.ready and len(m.tasks) < IN_FLIGHT]
            if not free:
                return True
            member = min(free, key=lambda one: len(one.tasks))
            without = sum(not one.tasks for one in members)
            left = self._look(without + 1)
            if not left or (member.tasks and left <= without):
                return any(one.tasks for one in members)
            task = self._next.popleft()
            member.tasks[task.number] = task
            send(member, task)

    def _look(self, count: int) -> int:
        """How many of the next so many units there are."""
        while len(self._next) < count and (task := next(self._tasks, None)) is not None:
            self._next.append(task)
        return min(count, len(self._next))

    def take_back(self, member: Member, how: str, cause: Exception | None = None) -> None:
        """Have others do what a worker that ended had to do.

        Args:
            how: it ended, in words.

        Raises:
            LabellingError: a unit ended several workers.
        """
        for task in member.tasks.values():
            self._tries[task.number] += 1
            if self._tries[task.number] >= TRIES:
                raise LabellingError(_ended_each(task, how)) from cause
        self._next.extendleft(reversed(member.tasks.values()))


def _ended_each(task: Task, how: str) -> str:
    return (
        f"work unit {task.number} (rows {task.rows.start} to {task.rows.stop - 1}) was given to "
        f"{TRIES} workers, and each ended; the last one {how}. If the system's memory ran out, "
        "label with fewer workers, or a smaller unit_rows or batch_tokens"
    )
