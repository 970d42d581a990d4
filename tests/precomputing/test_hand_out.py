"""Who gets which unit: the fewest first, and nobody a second one that another would go without."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from softlabels.errors import LabellingError
from softlabels.precomputing.hand_out import IN_FLIGHT, TRIES, HandOut
from softlabels.precomputing.tasks import Task


@dataclass(eq=False)
class Worker:
    ready: bool = True
    tasks: dict[int, Task] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)


def send(worker: Worker, task: Task) -> None:
    worker.sent.append(task.number)


def units(count: int) -> HandOut:
    return HandOut(Task(number, range(number, number + 1)) for number in range(count))


def finish(worker: Worker) -> None:
    del worker.tasks[min(worker.tasks)]


def test_many_units_are_given_two_at_a_time() -> None:
    workers, out = [Worker(), Worker()], units(9)
    assert out.give(workers, send)
    assert [worker.sent for worker in workers] == [[0, 2], [1, 3]]
    assert all(len(worker.tasks) == IN_FLIGHT for worker in workers)


def test_the_last_units_wait_for_workers_that_are_about_to_begin() -> None:
    first, second = Worker(), Worker(ready=False)
    out = units(2)
    assert out.give([first, second], send)
    assert out.give([first, second], send)
    assert (first.sent, second.sent) == ([0], [])
    second.ready = True
    assert out.give([first, second], send)
    assert (first.sent, second.sent) == ([0], [1])


def test_a_worker_that_never_begins_holds_nothing_up() -> None:
    first, never = Worker(), Worker(ready=False)
    out = units(3)
    while out.give([first, never], send):
        finish(first)
    assert first.sent == [0, 1, 2]


def test_units_of_a_worker_that_ended_come_first_and_in_their_order() -> None:
    lost, other = Worker(), Worker(ready=False)
    out = units(6)
    out.give([lost, other], send)
    assert lost.sent == [0, 1]
    out.take_back(lost, "was killed by SIGKILL")
    found = Worker()
    out.give([found], send)
    assert found.sent == [0, 1]


def test_a_unit_that_ended_so_many_workers_is_named() -> None:
    out = units(1)
    for _ in range(TRIES - 1):
        worker = Worker()
        out.give([worker], send)
        out.take_back(worker, "was killed by SIGKILL")
    worker = Worker()
    out.give([worker], send)
    with pytest.raises(LabellingError, match=r"work unit 0 \(rows 0 to 0\).*SIGKILL"):
        out.take_back(worker, "was killed by SIGKILL")
