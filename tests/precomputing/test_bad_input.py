"""Bad input is a clear error before any model runs, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from same_set import contents
from tables import TableTeacher

import softlabels as sl
from softlabels.errors import DuplicateKeyError, InputError, TeacherError

Run = Callable[..., sl.LabelSet]


def refused(run: Run, words: str, *args: Any, error: type = InputError, **options: Any) -> None:
    """An error with these words; the teacher's weights were never asked for."""
    teacher = options.setdefault("teacher", TableTeacher(max_length=8))
    with pytest.raises(error, match=words) as caught:
        run(*args, **options)
    assert "\n" not in str(caught.value)
    assert not teacher.loaded
    assert not teacher.batches


def test_a_missing_path_or_an_unknown_kind_of_file(run: Run, tmp_path: Path) -> None:
    refused(run, "no such file", str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "data.docx").write_bytes(b"1")
    refused(run, "not a kind of file", tmp_path / "data.docx")
    (tmp_path / "data.jsonl").write_text("{broken")
    refused(run, "cannot be read", tmp_path / "data.jsonl")
    assert not (tmp_path / "set").exists()


def test_a_missing_column_or_key_names_those_there_are(run: Run, tmp_path: Path) -> None:
    refused(run, 'no column "text".*"id", "ids"', column="text")
    refused(run, 'no key column "uid".*"id", "ids"', key="uid")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("empty", [list, lambda: iter(()), lambda: dataset([])])
def test_no_rows_at_all(run: Run, tmp_path: Path, empty: Callable[[], Any]) -> None:
    refused(run, "no rows", empty())
    assert not (tmp_path / "set").exists()


def dataset(rows: list[dict[str, Any]]) -> Any:
    import datasets

    kinds = {"id": datasets.Value("string"), "ids": datasets.List(datasets.Value("int64"))}
    columns = {name: [row[name] for row in rows] for name in kinds}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


@pytest.mark.parametrize("made", [list, dataset])
def test_duplicate_keys_are_found_before_the_run(
    run: Run, tmp_path: Path, id_rows: list[dict[str, Any]], made: Callable[..., Any]
) -> None:
    rows = made([*id_rows, {"id": "s4", "ids": [1]}])
    refused(run, '"s4" is in row 4 and again in row 6', rows, error=DuplicateKeyError)
    assert not (tmp_path / "set").exists()


def test_duplicate_keys_of_a_stream_are_found_at_the_end_and_the_set_stays_unfinished(
    run: Run, tmp_path: Path, id_rows: list[dict[str, Any]]
) -> None:
    rows = [*id_rows, {"id": "s1", "ids": [1, 2, 3]}]
    for _ in range(2):  # the same command again says the same
        with pytest.raises(DuplicateKeyError, match='"s1" is in row 1 and again in row 6'):
            run(iter(rows))
        assert not (tmp_path / "set" / "manifest.json").exists()
        with pytest.raises(sl.errors.LabelSetError, match="unfinished"):
            sl.LabelSet.open(tmp_path / "set")
    assert len(sl.LabelSet.open(tmp_path / "set", unfinished=True)) == 9


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "k above V": ({"selection": sl.TopK(17)}, "k = 17 is more than the teacher's 16 classes"),
    "T = 0": ({"temperatures": (1.0, 0.0)}, "temperature 0.0 is not a positive number"),
    "T < 0": ({"temperatures": (-1.0,)}, "temperature -1.0"),
    "T NaN": ({"temperatures": (math.nan,)}, "temperature nan"),
    "T twice": ({"temperatures": (2.0, 2.0)}, "name one twice"),
    "T no list": ({"temperatures": 2.0}, "expected a list of numbers"),
    "T text": ({"temperatures": ("a",)}, "temperature a"),
    "k no selection": ({"selection": 64}, "TopK"),
    "T inf": ({"temperatures": (math.inf,)}, "temperature inf"),
    "max_length 0": ({"max_length": 0}, "max_length is 0; it must be at least 1"),
    "max_length text": ({"max_length": "long"}, "max_length: .*integer"),
    "above the model's": ({"max_length": 9}, "max_length is 9, .* at most 8 tokens"),
    "overlap": ({"overlap": 6}, "overlap is 6"),
    "on_long": ({"on_long": "drop"}, "on_long: .*'window', 'truncate', 'reject' or 'raise'"),
    "on_error": ({"on_error": "drop"}, 'on_error is "drop"'),
    "codec": ({"codec": "zip"}, 'no codec "zip"'),
    "limit": ({"limit": 0}, "limit is 0"),
    "unit_rows": ({"unit_rows": 0}, "unit_rows is 0"),
    "batch_tokens": ({"batch_tokens": 0}, "batch_tokens is 0"),
    "assistant_only": ({"assistant_only": True}, "assistant_only needs a chat column"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_cannot_be_met(run: Run, tmp_path: Path, name: str) -> None:
    options, words = REFUSED[name]
    refused(run, words, **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "8"])
def test_k_is_a_whole_number_from_one(k: Any) -> None:
    with pytest.raises(InputError, match="at least 1"):
        sl.TopK(k)


def test_text_needs_a_teacher_with_a_tokenizer(run: Run) -> None:
    refused(run, "no tokenizer", [{"id": "a", "text": "words"}], column="text")


def test_what_is_no_teacher(run: Run, tmp_path: Path) -> None:
    for teacher, words in ((7, "int is no teacher"), (lambda ids: ids, "does not say which it is")):
        with pytest.raises(TeacherError, match=words):
            run(teacher=teacher)
    assert not (tmp_path / "set").exists()


def test_weights_of_a_language_model_are_not_read_for_a_wrong_call(
    tmp_path: Path, teacher_dir: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)
    for options in ({"selection": sl.TopK(513)}, {"max_length": 257}, {"codec": "zip"}):
        with pytest.raises(InputError):
            sl.precompute(rows, teacher_dir, tmp_path / "set", **options)
    with pytest.raises(TeacherError, match="cannot be loaded"):
        sl.precompute(rows, tmp_path, tmp_path / "set")
    with pytest.raises(AssertionError, match="loaded"):
        sl.precompute(rows, teacher_dir, tmp_path / "set", max_length=64)


def test_a_directory_that_holds_something_else(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes\x1b[2J.txt").write_text("mine")
    before = contents(tmp_path)
    refused(run, r'holds something else \("notes\\u001b\[2J.txt"\)')
    assert contents(tmp_path) == before


def test_a_file_in_the_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    refused(run, "is a file")
    assert (tmp_path / "set").read_text() == "mine"


def test_a_file_in_the_middle_of_the_path(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    teacher = TableTeacher()
    with pytest.raises(InputError, match=r"a part of the path is a file"):
        run(teacher=teacher, out=tmp_path / "file" / "set")
    assert not teacher.batches


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EACCES, "not writable"), (errno.EROFS, "read-only")]
)
def test_a_folder_that_cannot_be_written_to(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    # Root may write anywhere, so the system call itself is made to fail.
    real = os.mkdir

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if "set" in Path(path).parts:
            raise OSError(code, os.strerror(code), str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    teacher = TableTeacher()
    with pytest.raises(InputError, match=words):
        run(teacher=teacher)
    assert not teacher.batches
    assert not (tmp_path / "set").exists()


def test_a_student_with_another_tokenizer_is_refused(
    finished_set: Path, tokenizer: Any, teacher_dir: Path
) -> None:
    from transformers import AutoTokenizer

    labels = sl.LabelSet.open(finished_set)
    sl.loader(labels, tokenizer=tokenizer)
    other = AutoTokenizer.from_pretrained(teacher_dir)
    other.add_tokens(["<|new|>"])
    with pytest.raises(
        sl.errors.VocabularyMismatchError, match="513 tokens, the teacher's has 512"
    ):
        sl.loader(labels, tokenizer=other)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["merges"] = backend["model"]["merges"][::-1]
    other = AutoTokenizer.from_pretrained(teacher_dir)
    other._tokenizer = type(other._tokenizer).from_str(json.dumps(backend))
    with pytest.raises(sl.errors.VocabularyMismatchError, match="splits text in another way"):
        sl.loader(labels, tokenizer=other)
