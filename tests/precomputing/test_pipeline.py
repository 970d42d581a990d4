"""Reading ahead and writing behind: order, bounds, and errors of either at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import TableTeacher

import softlabels as sl
from softlabels.errors import InputError, LabellingError
from softlabels.precomputing import label, run
from softlabels.precomputing.arriving import Coming
from softlabels.precomputing.pipeline import Ahead, Behind
from softlabels.progress import Progress


def test_items_come_in_order_and_one_is_made_ahead() -> None:
    made: list[int] = []
    ahead = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                ahead.set()
            yield number

    with Ahead(numbers()) as items:
        seen = []
        for item in items:
            assert ahead.wait(10)  # the second is made while the first is used
            assert len(made) <= item + 2
            seen.append(item)
    assert seen == [0, 1, 2, 3]


def test_what_the_reader_raises_is_seen_before_its_item_is_asked_for() -> None:
    failed = threading.Event()

    def numbers() -> Iterator[int]:
        yield 0
        failed.set()
        raise ValueError("the disk is gone")

    with Ahead(numbers()) as items, pytest.raises(ValueError, match="the disk is gone"):  # noqa: PT012
        assert next(iter(items)) == 0
        assert failed.wait(10)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            items.check()


def test_work_is_done_in_order_and_one_item_waits_at_most() -> None:
    done: list[int] = []
    may_go_on = threading.Event()

    def work(item: int) -> None:
        assert may_go_on.wait(10)
        done.append(item)

    with Behind(work) as behind:
        behind.put(0)
        second = threading.Thread(target=behind.put, args=(1,))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # the first is not done
        may_go_on.set()
        second.join(10)
        behind.put(2)
    assert done == [0, 1, 2]


def test_what_was_put_is_done_when_the_block_ends_by_an_error() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(KeyboardInterrupt), Behind(work) as behind:  # noqa: PT012
        behind.put(7)
        raise KeyboardInterrupt
    assert done == [7]


@pytest.mark.parametrize("how", ["check", "put", "end"])
def test_what_the_work_raises_is_raised_to_whoever_goes_on(how: str) -> None:
    def work(item: int) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), Behind(work) as behind:  # noqa: PT012
        behind.put(0)
        deadline = time.monotonic() + 10
        while how == "check" and time.monotonic() < deadline:
            behind.check()
        if how == "put":
            behind.put(1)


class Slow:
    """A teacher of 16 classes that knows how many batches it was asked for."""

    name, version, classes, asked = "slow", "1", 16, 0

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        time.sleep(0.05)
        return torch.zeros(*ids.shape, 16)


def test_a_run_stops_within_a_batch_when_writing_fails(
    tmp_path: Path, precompute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(*_: Any, **__: Any) -> Any:
        raise InputError("the disk is full")

    rows = [{"id": f"{i}", "ids": [1, 2, 3]} for i in range(60)]
    monkeypatch.setattr("softlabels.labelset.writer.LabelSetWriter.publish", publish)
    teacher = Slow()
    with pytest.raises(InputError, match="the disk is full"):
        precompute(tmp_path / "out", rows, teacher=teacher, unit_rows=30, batch_tokens=3)
    assert teacher.asked < 45  # the pilot asks for none: the codec is plain


def test_a_run_stops_when_a_later_row_cannot_be_read(tmp_path: Path, precompute: Any) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"id": f"{i}", "ids": [1, 2, 3]} for i in range(1000))
        yield {"id": None, "ids": [1]}

    teacher = Slow()
    with pytest.raises(InputError, match="every sample needs its own key"):
        precompute(tmp_path / "out", rows(), teacher=teacher, unit_rows=1000, batch_tokens=30)
    assert teacher.asked < 50


class Narrow:
    """Runs out of memory above so many padded tokens."""

    name, version, classes = "narrow", "1", 16

    def __init__(self, most: int) -> None:
        self.most, self.shapes = most, list[tuple[int, ...]]()
        self.table = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(ids.shape))
        if ids.numel() > self.most:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return self.table[ids]


def test_a_unit_out_of_memory_is_labelled_in_halves_and_the_next_one_whole(
    tmp_path: Path, precompute: Any
) -> None:
    rows = [{"id": f"{i}", "ids": [i % 16] * (6 if i < 8 else 3)} for i in range(16)]
    whole = precompute(tmp_path / "whole", rows, teacher=Narrow(10**6), unit_rows=8)
    narrow = Narrow(24)
    halves = precompute(tmp_path / "halves", rows, teacher=narrow, unit_rows=8, batch_tokens=48)
    for ours, theirs in zip(halves, whole, strict=True):
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.log_probs, theirs.log_probs)
    assert narrow.shapes == [(8, 6), (4, 6), (4, 6), (8, 3)]


def test_labels_on_their_way_are_put_in_place_after_the_next_batch_was_asked_for(
    tmp_path: Path, precompute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Late(Coming):
        on_its_way = True

        def arrived(self) -> sl.SoftLabels:
            events.append("arrived")
            return super().arrived()

    def asked(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        events.append("asked")
        return logits

    rows = [{"id": f"{i}", "ids": [i % 16] * (6 - i // 4)} for i in range(12)]
    whole = precompute(tmp_path / "whole", rows, teacher=TableTeacher(), unit_rows=12)
    monkeypatch.setattr(label, "Coming", Late)
    options = {"unit_rows": 12, "batch_tokens": 24}
    late = precompute(tmp_path / "late", rows, teacher=TableTeacher(wrong=asked), **options)
    assert events == ["asked", "asked", "arrived", "asked", "arrived", "arrived"]
    for ours, theirs in zip(late, whole, strict=True):
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.log_probs, theirs.log_probs)


def test_the_next_unit_is_begun_while_the_last_labels_of_the_one_before_are_on_their_way(
    tmp_path: Path, precompute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [threading.Event() for _ in range(3)]
    calls = iter(asked)
    waited: list[bool] = []

    class Late(Coming):
        on_its_way = True

        def arrived(self) -> sl.SoftLabels:
            if len(waited) < 2:
                waited.append(asked[len(waited) + 1].wait(20))
            return super().arrived()

    def ask(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        next(calls).set()
        return logits

    rows = [{"id": f"{i}", "ids": [i % 16] * 6} for i in range(12)]
    whole = precompute(tmp_path / "whole", rows, teacher=TableTeacher(), unit_rows=4)
    monkeypatch.setattr(label, "Coming", Late)
    seen: list[Progress] = []
    monkeypatch.setattr(run, "shown", lambda _: nullcontext(seen.append))
    late = precompute(tmp_path / "late", rows, teacher=TableTeacher(wrong=ask), unit_rows=4)
    assert waited == [True, True]
    assert (seen[-1].tokens, seen[-1].seen.positions) == (72, 72)
    for ours, theirs in zip(late, whole, strict=True):
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.log_probs, theirs.log_probs)


def test_labels_of_a_cpu_are_put_in_place_before_the_next_batch_is_asked_for() -> None:
    labels = sl.SoftLabels(ids=torch.zeros(2, 1, dtype=torch.int64), log_probs=torch.zeros(2, 1))
    coming = Coming(torch.arange(2), labels)
    assert not coming.on_its_way
    assert coming.arrived().ids is labels.ids


@pytest.mark.gpu
def test_labels_of_a_gpu_arrive_whole_though_nobody_waited_for_the_copy() -> None:
    for size in (1, 1 << 20):
        ids = torch.randint(9, (size, 8), device="cuda")
        given = sl.SoftLabels(ids=ids, log_probs=torch.randn(size, 8, device="cuda"))
        expected = given.to("cpu")
        torch.cuda._sleep(100_000_000)  # the device is busy when the copy is asked for
        coming = Coming(torch.arange(size), given.map(lambda tensor: tensor * 1))
        assert coming.on_its_way
        found = coming.arrived()
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.log_probs, expected.log_probs)
        assert found.ids.is_pinned()


def test_a_record_that_does_not_fit_alone_is_named_in_words(
    tmp_path: Path, precompute: Any
) -> None:
    with pytest.raises(LabellingError, match="ran out of memory on one record of 6 tokens"):
        precompute(tmp_path / "out", [{"id": "a", "ids": [1] * 6}], teacher=Narrow(5))


class Likeliest:
    """Gives labels and no logits, as a server does."""

    def __init__(self, *, spoilt: bool = False) -> None:
        self.classes, self.max_length, self.tokenizer, self.spoilt = 16, None, None, spoilt
        self.temperatures = (1.0,)
        self.table = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 2
        self.identity = sl.teachers.TeacherIdentity(
            name="server",
            revision=None,
            weights=None,
            dtype=None,
            engine="server",
            engine_version="1",
            classes=16,
            logits_known=False,
        )

    def labels(
        self, input_ids: Any, wanted: Any, *, padding: Any, hard_labels: Any, k: int
    ) -> Iterator[sl.SoftLabels]:
        logits = self.table[input_ids[wanted]]
        found = sl.TopK(k)(logits, hard_labels, temperatures=self.temperatures)
        log_probs = found.log_probs.clone()
        if self.spoilt:
            log_probs[0] = torch.nan
        yield sl.SoftLabels(
            ids=found.ids,
            log_probs=log_probs,
            log_tails=found.log_tails,
            temperatures=self.temperatures,
            hard_log_probs=found.hard_log_probs,
            classes=16,
        )


@pytest.mark.parametrize("codec", ["plain", "compact"])
def test_a_teacher_without_logits_leaves_the_logsumexp_unknown(
    tmp_path: Path, precompute: Any, codec: str
) -> None:
    made = precompute(
        tmp_path / "out", teacher=Likeliest(), temperatures=None, codec=codec, max_length=5
    )
    with_logits = precompute(
        tmp_path / "logits",
        temperatures=(1.0,),
        codec=codec,
        max_length=5,
    )
    assert made.plan.temperatures == (1.0,)
    assert not made.plan.teacher.logits_known
    for ours, theirs in zip(made, with_logits, strict=True):
        assert ours.logsumexp is None
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.allclose(ours.log_probs, theirs.log_probs, atol=0.05)
        assert ours.log_tails is not None
        assert torch.allclose(ours.log_tails, theirs.log_tails, atol=0.05)


def test_temperatures_that_a_teacher_cannot_tell_are_refused(
    tmp_path: Path, precompute: Any
) -> None:
    with pytest.raises(InputError, match=r"only at T = 1.*temperature 2"):
        precompute(tmp_path / "out", teacher=Likeliest(), temperatures=(1.0, 2.0))


def test_lossless_needs_a_teacher_with_logits(tmp_path: Path, precompute: Any) -> None:
    with pytest.raises(InputError, match="lossless"):
        precompute(tmp_path / "out", teacher=Likeliest(), temperatures=None, codec="lossless")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("many", "gave 6 rows of labels for 5"),
        ("few", "gave 4 rows of labels for 5"),
        ("bare", "have no log_tails"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_words(
    tmp_path: Path, precompute: Any, fault: str, words: str
) -> None:
    class Faulty(Likeliest):
        def labels(self, *args: Any, **options: Any) -> Iterator[sl.SoftLabels]:
            for found in super().labels(*args, **options):
                if fault == "bare":
                    yield sl.SoftLabels(ids=found.ids, log_probs=found.log_probs)
                else:
                    more = torch.arange(6 if fault == "many" else 4).clamp(max=4)
                    yield found[more]

    rows = [{"id": "a", "ids": [1, 2, 3, 4, 5]}]
    with pytest.raises(sl.errors.TeacherError, match=words):
        precompute(tmp_path / "out", rows, teacher=Faulty(), temperatures=None)


def test_a_plan_of_a_teacher_without_logits_asks_for_no_more_than_k() -> None:
    class Asked(Likeliest):
        def labels(self, *args: Any, k: int, **options: Any) -> Iterator[sl.SoftLabels]:
            assert k == 3
            yield from super().labels(*args, k=k, **options)

    rows = [{"id": f"{i}", "ids": [1, 2, 3]} for i in range(9)]
    settings: dict[str, Any] = {"column": "ids", "key": "id", "selection": sl.TopK(3)}
    found = sl.plan(rows, Asked(), progress=False, **settings)
    assert {choice.k for choice in found.choices} == {3}
    with pytest.raises(InputError, match="the codec lossless keeps logits"):
        sl.plan(rows, Asked(), progress=False, codec="lossless", **settings)


def test_labels_that_are_no_numbers_are_a_failure_of_their_record(
    tmp_path: Path, precompute: Any
) -> None:
    with pytest.raises(LabellingError, match="NaN"):
        precompute(tmp_path / "out", teacher=Likeliest(spoilt=True), temperatures=None)
