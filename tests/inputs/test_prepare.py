"""Windows of token ids, held to a loop over samples and tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels.errors import InputError
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.prepare import prepare
from softlabels.inputs.windows import Windows

CLASSES = 50
MODES = ["window", "truncate", "reject", "raise"]
Samples = list[list[int] | None]


def windows_of(samples: Samples, kind: pa.DataType | None = None, **options: Any) -> Windows:
    settings = {"kind": "input_ids", "max_length": 4, **options}
    column = pa.chunked_array([pa.array(samples, kind or pa.list_(pa.int64()))])
    return prepare(column, Preparation(**settings), tokenizer=None, classes=CLASSES)


@dataclass
class Expected:
    """What the slow oracle finds, one entry a record."""

    records: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    truncated: int = 0


def oracle(samples: Samples, max_length: int, overlap: int, on_long: str) -> Expected:
    found = Expected()
    for row, sample in enumerate(samples):
        if not sample:
            found.failures.append(row)
            continue
        if len(sample) > max_length and on_long in ("reject", "raise"):
            (found.rejects if on_long == "reject" else found.failures).append(row)
            continue
        if len(sample) > max_length and on_long == "truncate":
            found.truncated += 1
        labelled: set[int] = set()
        start = part = 0
        while True:
            window = range(start, min(start + max_length, len(sample)))
            found.records.append(
                {
                    "row": row,
                    "part": part,
                    "start": start,
                    "source_length": len(sample),
                    "tokens": [sample[t] for t in window],
                    "next": [sample[t + 1] if t + 1 < len(sample) else -1 for t in window],
                    "wanted": [t not in labelled for t in window],
                }
            )
            labelled |= set(window)
            if on_long == "truncate" or window.stop == len(sample):
                break
            start, part = start + max_length - overlap, part + 1
    return found


def contents(windows: Windows) -> list[dict[str, Any]]:
    return [
        {
            "row": int(windows.rows[i]),
            "part": int(windows.parts[i]),
            "start": int(windows.starts[i]),
            "source_length": int(windows.source_lengths[i]),
            "tokens": windows.token_ids[a:b].tolist(),
            "next": windows.hard_labels[a:b].tolist(),
            "wanted": windows.wanted[a:b].tolist(),
        }
        for i, (a, b) in enumerate(pairwise(windows.offsets.tolist()))
    ]


samples = st.lists(st.none() | st.lists(st.integers(0, CLASSES - 1), max_size=14), max_size=5)
limits = st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


@given(samples, limits, st.sampled_from(MODES))
@example([[1, 2, 3, 4]], (4, 0), "window")
@example([[1, 2, 3, 4, 5]], (4, 3), "window")
@example([[1, 2, 3, 4, 5], [6]], (4, 0), "window")
@example([[1, 2, 3, 4, 5], [6]], (4, 0), "truncate")
@example([], (1, 0), "window")
@settings(deadline=None, max_examples=300)
def test_windows_are_those_of_a_loop_over_tokens(
    samples: Samples, limits: tuple[int, int], on_long: str
) -> None:
    max_length, overlap = limits
    found = windows_of(samples, max_length=max_length, overlap=overlap, on_long=on_long)
    expected = oracle(samples, max_length, overlap, on_long)
    assert contents(found) == expected.records
    assert len(found) == len(expected.records)
    assert [row for row, _ in found.rejects] == expected.rejects
    assert [row for row, _ in found.failures] == expected.failures
    assert found.truncated == expected.truncated
    assert found.token_ids.dtype == found.hard_labels.dtype == np.int64


@given(samples, limits)
@settings(deadline=None, max_examples=150)
def test_every_token_is_labelled_once_and_no_window_is_only_context(
    samples: Samples, limits: tuple[int, int]
) -> None:
    found = contents(windows_of(samples, max_length=limits[0], overlap=limits[1]))
    labelled = [
        (record["row"], record["start"] + t)
        for record in found
        for t, wanted in enumerate(record["wanted"])
        if wanted
    ]
    everything = [(row, t) for row, sample in enumerate(samples) for t in range(len(sample or ()))]
    assert sorted(labelled) == everything
    assert all(any(record["wanted"]) for record in found)


@given(samples, limits, st.data())
@settings(deadline=None, max_examples=100)
def test_tokens_of_some_records_are_theirs_one_after_another(
    samples: Samples, limits: tuple[int, int], data: st.DataObject
) -> None:
    found = windows_of(samples, max_length=limits[0], overlap=limits[1])
    records = data.draw(st.lists(st.integers(0, len(found) - 1), max_size=5) if len(found) else
                        st.just([]))  # fmt: skip
    expected = [t for r in records for t in range(found.offsets[r], found.offsets[r + 1])]
    assert found.tokens_of(np.asarray(records, np.int64)).tolist() == expected


def test_the_next_token_is_never_the_next_record_s() -> None:
    found = windows_of([[1, 2, 3, 4, 5], [6, 7]], max_length=4)
    assert found.next_ids.tolist() == [5, -1, -1]
    assert found.hard_labels.tolist() == [2, 3, 4, 5, -1, 7, -1]
    cut = windows_of([[1, 2, 3, 4, 5], [6, 7]], max_length=4, on_long="truncate")
    assert cut.hard_labels.tolist() == [2, 3, 4, 5, 7, -1]


@pytest.mark.parametrize("kind", ["int8", "uint16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda t: pa.list_(t, 5)])
def test_every_integer_type_gives_the_same_windows(kind: str, make: Any) -> None:
    samples: Samples = [[1, 2, 3, 4, 5], None, [6, 7, 8, 9, 0]]
    found = windows_of(samples, make(getattr(pa, kind)()))
    assert contents(found) == oracle(samples, 4, 0, "window").records


def test_a_sliced_and_chunked_column_gives_the_windows_of_its_rows() -> None:
    column = pa.array([[9, 9], [1, 2, 3], [4], [9]], pa.list_(pa.int32()))
    chunked = pa.chunked_array([column[1:2], column[2:3]])
    found = prepare(
        chunked, Preparation(kind="input_ids", max_length=4), tokenizer=None, classes=CLASSES
    )
    assert contents(found) == oracle([[1, 2, 3], [4]], 4, 0, "window").records


@pytest.mark.parametrize(
    ("sample", "kind", "reason"),
    [
        (None, pa.int64(), "empty: it has no tokens"),
        ([], pa.int64(), "empty: it has no tokens"),
        ([1, None], pa.int64(), "its token ids hold nulls"),
        ([None], pa.int64(), "its token ids hold nulls"),
        ([None], pa.null(), "its token ids hold nulls"),
        ([1, CLASSES], pa.int64(), "token id 50 is outside the teacher's 0 … 49"),
        ([1, -1], pa.int64(), "token id -1 is outside the teacher's 0 … 49"),
        ([1, 2**64 - 1], pa.uint64(), f"token id {2**64 - 1} is outside the teacher's 0 … 49"),
        ([1, 2**63], pa.uint64(), f"token id {2**63} is outside the teacher's 0 … 49"),
    ],
)
def test_a_sample_that_cannot_be_labelled_is_a_failure_with_its_reason(
    sample: Any, kind: pa.DataType, reason: str
) -> None:
    found = windows_of([[], sample], pa.list_(kind))
    assert found.failures[1] == (1, reason)
    assert len(found) == 0


@pytest.mark.parametrize(
    ("sample", "on_long", "reason"),
    [([1] * 5, "reject", "5 tokens, more than max_length 4"), ([1] * 4, "reject", None)],
)
def test_a_long_sample_is_turned_away_with_its_length(
    sample: list[int], on_long: str, reason: str | None
) -> None:
    found = windows_of([sample], on_long=on_long)
    assert found.rejects == (() if reason is None else ((0, reason),))
    found = windows_of([sample], on_long="raise")
    assert found.failures == (() if reason is None else ((0, reason),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": -1}, "max_length is -1"),
        ({"max_length": 4, "overlap": 4}, "overlap is 4"),
        ({"max_length": 4, "overlap": -1}, "overlap is -1"),
        ({"max_length": 4, "assistant_only": True}, "assistant_only needs a chat column"),
    ],
)
def test_settings_that_no_data_could_satisfy_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Preparation(kind="text", **settings).check()
    Preparation(kind="messages", max_length=1, assistant_only=True).check()


def with_bos(tokenizer: Any) -> Any:
    """A copy that puts its BOS before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    copy = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bos = copy.bos_token
    copy.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, copy.bos_token_id)]
    )
    return copy


def text_windows(texts: list[str | None], tokenizer: Any, **options: Any) -> Windows:
    settings = {"kind": "text", "max_length": 100, **options}
    column = pa.chunked_array([pa.array(texts, pa.string())])
    return prepare(column, Preparation(**settings), tokenizer=tokenizer, classes=512)


def test_text_becomes_the_tokenizer_s_ids_with_one_bos_where_it_adds_one(tokenizer: Any) -> None:
    texts = ["Hello world", "  naïve 🤗\n", "\n"]
    for one, bos in ((tokenizer, []), (with_bos(tokenizer), [tokenizer.bos_token_id])):
        found = contents(text_windows(texts, one))
        plain = [bos + tokenizer.encode(text, add_special_tokens=False) for text in texts]
        assert [record["tokens"] for record in found] == plain


def test_only_the_first_window_of_a_text_has_the_bos(tokenizer: Any) -> None:
    found = contents(text_windows(["word " * 30], with_bos(tokenizer), max_length=8))
    assert [record["tokens"].count(tokenizer.bos_token_id) for record in found] == (
        [1] + [0] * (len(found) - 1)
    )
    assert len(found) > 2


def test_an_empty_text_is_a_failure_even_if_the_tokenizer_makes_a_bos_of_it(tokenizer: Any) -> None:
    found = text_windows(["", None, "x"], with_bos(tokenizer))
    assert [row for row, _ in found.failures] == [0, 1]
    assert found.rows.tolist() == [2]


def test_a_tokenizer_s_truncation_and_padding_do_not_cut_or_pad_text(tokenizer: Any) -> None:
    stateful = with_bos(tokenizer)
    expected = text_windows(["word " * 30, "x"], stateful).token_ids.tolist()
    stateful.backend_tokenizer.enable_truncation(4)
    stateful.backend_tokenizer.enable_padding(length=50)
    assert text_windows(["word " * 30, "x"], stateful).token_ids.tolist() == expected


def test_a_teacher_with_fewer_classes_than_the_tokenizer_is_a_failure_by_id(tokenizer: Any) -> None:
    column = pa.chunked_array([["plain words"]])
    preparation = Preparation(kind="text", max_length=100)
    found = prepare(column, preparation, tokenizer=tokenizer, classes=10)
    assert "outside the teacher's 0 … 9" in found.failures[0][1]
