"""The key index: its bytes, every hit proven by the key itself, every miss by the file's digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import softlabels as sl
from softlabels.cli.app import run
from softlabels.errors import CorruptShardError, JoinError
from softlabels.format import keys
from softlabels.format.keys import KeyIndex
from softlabels.labelset import reader
from softlabels.verifying.verify import verify

Precompute = Callable[..., sl.LabelSet]
INDEX, FIRST = "keys.index", "data/train-00000.parquet"
# In `pristine` a record each, but for s1, which has three.
PARTS = [("s0", 0), ("s1", 0), ("s1", 1), ("s1", 2), *((f"s{i}", 0) for i in range(2, 6))]
INT64S = st.integers(-(2**63), 2**63 - 1)


def one(key: str | int) -> pa.Array:
    return pa.array([key], pa.string() if isinstance(key, str) else pa.int64())


def mapped(index: KeyIndex, folder: Path) -> KeyIndex:
    path = folder / "index"
    path.unlink(missing_ok=True)
    path.write_bytes(index.to_bytes())
    return KeyIndex.map(path)


def rewrite(root: Path, data: bytes) -> None:
    """Another file of that name: one that is mapped must not be cut under its reader."""
    (root / INDEX).unlink(missing_ok=True)
    (root / INDEX).write_bytes(data)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[place] ^= 1 << bit
    return bytes(damaged)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@given(
    st.lists(st.text(max_size=3), max_size=12) | st.lists(INT64S, max_size=12), st.integers(0, 3)
)
@example([], 0)
@example(["", "\0", "é", "😀", ""], 2)
@example([2**63 - 1, -(2**63), 0, -1, 0], 3)
@settings(deadline=None, max_examples=100)
def test_a_mapped_index_finds_the_records_of_every_key_in_order(
    folder: Path, given: list[Any], cut: int
) -> None:
    kind = pa.int64() if given and isinstance(given[0], int) else pa.string()
    # As shards give them: in several parts, of which some are chunked and some empty.
    parts = [pa.array(given[:cut], kind), pa.chunked_array([pa.array(given[cut:], kind)])]
    built = KeyIndex.build(parts)
    assert len(built.to_bytes()) == 16 * len(given)
    for index in (built, mapped(built, folder)):
        for key in given:
            assert index.candidates(one(key)) == [i for i, k in enumerate(given) if k == key]
        assert index.candidates(one("absent" if kind == pa.string() else 12345)) == []
        assert index.to_bytes() == built.to_bytes()


def test_the_bytes_of_two_keys_are_those_of_the_format() -> None:
    # xxh3-64 of "a" is e6c632b61e964e1f, of "b" 575a0b1c44d8843f, which is less; then 1 and 0.
    assert KeyIndex.build([pa.array(["a", "b"])]).to_bytes() == bytes.fromhex(
        "3f84d8441c0b5a57 1f4e961eb632c6e6 0100000000000000 0000000000000000"
    )
    # Of the int64 7, which is 0700000000000000, it is 81671e58d6b596af; of −1, 5111c7e47d784413.
    assert KeyIndex.build([pa.array([7]), pa.array([-1])]).to_bytes() == bytes.fromhex(
        "1344787de4c71151 af96b5d6581e6781 0100000000000000 0000000000000000"
    )


def test_the_index_of_no_records_is_empty_and_finds_nothing(tmp_path: Path) -> None:
    for keys_given in ([], [pa.array([], pa.string())], [pa.array([], pa.int64())]):
        index = mapped(KeyIndex.build(keys_given), tmp_path)
        assert index.to_bytes() == b""
        assert index.candidates(one("a")) == index.candidates(one(0)) == []


def test_the_file_of_a_set_is_the_index_of_its_records_and_in_the_manifest(pristine: Path) -> None:
    data = (pristine / INDEX).read_bytes()
    assert data == KeyIndex.build([pa.array([key for key, _ in PARTS])]).to_bytes()
    files = json.loads((pristine / "manifest.json").read_text())["files"]
    assert files[INDEX] == hashlib.sha256(data).hexdigest()


def test_a_record_is_found_through_the_mapped_file_and_no_other_identity_is_read(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: sl.LabelSet) -> pa.Table:
        raise AssertionError("the identities of every record were read")

    monkeypatch.setattr(sl.LabelSet, "identities", property(never))
    labels = sl.LabelSet.open(pristine)
    assert isinstance(labels._lookup.key_index._hashes, np.memmap)
    for number, (key, part) in enumerate(PARTS):
        assert labels.index(key, part=part) == number
    assert torch.equal(labels.get("s3").ids, labels[5].ids)
    assert len(labels._held._cache) == 2, "a row group of each shard, and nothing else"
    with pytest.raises(JoinError, match="s9"):
        labels.get("s9")


def test_a_hit_is_not_paid_for_with_a_digest_and_misses_with_one_for_all(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, check = 0, reader.receipts.check_keys

    def counting(root: Path) -> None:
        nonlocal checked
        checked += 1
        check(root)

    monkeypatch.setattr(reader.receipts, "check_keys", counting)
    labels = sl.LabelSet.open(pristine)
    for key, part in PARTS:
        labels.index(key, part=part)
    assert checked == 0
    for key in ("s9", "s8"):
        assert labels.parts(key) == []
    assert checked == 1


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_keys_of_one_hash_are_told_apart_by_the_key(
    tmp_path: Path, precompute: Precompute, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(keys, "key_hashes", lambda given: np.full(len(given), 7, np.uint64))
    given: list[Any] = ["b", "a", "c", "", "d"] if kind == "string" else [5, -5, 2**62, 0, 1]
    precompute(tmp_path / "set", [{"id": key, "ids": [1, 2]} for key in given])
    numbers = np.frombuffer((tmp_path / "set" / INDEX).read_bytes(), "<u8")
    assert numbers.tolist() == [7] * 5 + list(range(5))
    labels = sl.LabelSet.open(tmp_path / "set")
    assert [labels.index(key) for key in given] == list(range(5))
    with pytest.raises(JoinError):
        labels.index("e" if kind == "string" else 2)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, precompute: Precompute) -> Path:
    """A set of ten keys, of one record each, in four shards."""
    out = tmp_path_factory.mktemp("single") / "labels"
    precompute(out, [{"id": f"k{i}", "ids": [i, 1, 2]} for i in range(10)])
    return out


def test_a_flipped_bit_of_the_index_never_gives_another_record(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (single / INDEX).read_bytes()
    expected = [record.ids.tolist() for record in sl.LabelSet.open(single)]
    lost = 0
    try:
        for place in range(len(good)):
            rewrite(single, flipped(good, place, place % 8))
            labels = sl.LabelSet.open(single)
            for number in range(10):
                try:
                    assert labels.index(f"k{number}") == number, place
                    assert labels.get(f"k{number}").ids.tolist() == expected[number], place
                except CorruptShardError as error:
                    lost += 1
                    assert str(single / INDEX) in str(error)
            with pytest.raises(CorruptShardError, match=r"keys\.index"):
                labels.get("k10")
    finally:
        rewrite(single, good)
    # A damaged hash or number loses its record; a search may pass by others too.
    assert len(good) <= lost < 2 * len(good)


@pytest.mark.parametrize("number", [10, 2**32, 2**62, 2**63, 2**64 - 1])
def test_a_number_that_no_record_has_is_a_miss_that_names_the_file(
    single: Path, number: int
) -> None:
    good = (single / INDEX).read_bytes()
    numbers = np.frombuffer(good, "<u8").copy()
    owner = int(numbers[10])
    numbers[10] = number
    try:
        rewrite(single, numbers.tobytes())
        labels = sl.LabelSet.open(single)
        with pytest.raises(CorruptShardError, match=r"keys\.index.*verify DIR --repair"):
            labels.get(f"k{owner}")
        assert labels.index(f"k{(owner + 1) % 10}") == (owner + 1) % 10
    finally:
        rewrite(single, good)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_index_that_lost_one_of_the_parts_of_a_key_is_found_out(tiny: Path, lost: int) -> None:
    numbers = np.frombuffer((tiny / INDEX).read_bytes(), "<u8").copy()
    places = {int(number): place for place, number in enumerate(numbers[8:], start=8)}
    numbers[places[1 + lost]] = 1 + (lost + 1) % 3  # another part of s1
    rewrite(tiny, numbers.tobytes())
    labels = sl.LabelSet.open(tiny)
    with pytest.raises(CorruptShardError, match=r"keys\.index"):
        labels.index("s1", part=lost)
    with pytest.raises(CorruptShardError, match=r"keys\.index"):
        labels.parts("s1")


def cut(data: bytes) -> bytes:
    return data[:-16]


def halve(data: bytes) -> bytes:
    return data[: len(data) // 2 + 3]


def empty(data: bytes) -> bytes:
    return b""


def lengthen(data: bytes) -> bytes:
    return data + bytes(16)


def swap(data: bytes) -> bytes:
    return data[len(data) // 2 :] + data[: len(data) // 2]


def flip_hash(data: bytes) -> bytes:
    return flipped(data, 0, 0)


def flip_number(data: bytes) -> bytes:
    return flipped(data, len(data) - 8, 0)


DAMAGES: list[Callable[[bytes], bytes] | None] = [
    cut, halve, empty, lengthen, swap, flip_hash, flip_number, None,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda x: getattr(x, "__name__", "remove"))
def test_verify_names_a_damaged_index_and_the_same_command_rebuilds_it(
    tiny: Path,
    precompute: Precompute,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes] | None,
) -> None:
    before = digests(tiny)
    if damage is None:
        (tiny / INDEX).unlink()
    else:
        rewrite(tiny, damage((tiny / INDEX).read_bytes()))
    assert {finding.file for finding in verify(tiny).findings} == {INDEX}
    assert run(["verify", str(tiny)]) == 1
    assert INDEX in capsys.readouterr().out
    assert run(["verify", str(tiny), "--repair"]) == 1
    kept = digests(tiny)
    assert INDEX not in kept
    assert {name for name in before if name.startswith("data/")} <= kept.keys()
    precompute(tiny)
    assert digests(tiny) == before
    assert verify(tiny).findings == ()


@pytest.mark.parametrize("damage", [cut, halve, empty, lengthen, None])
def test_an_index_of_another_size_is_not_used_and_a_miss_says_so(
    tiny: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    if damage is None:
        (tiny / INDEX).unlink()
    else:
        rewrite(tiny, damage((tiny / INDEX).read_bytes()))
    labels = sl.LabelSet.open(tiny)
    for number, (key, part) in enumerate(PARTS):
        assert labels.index(key, part=part) == number
    with pytest.raises(CorruptShardError, match=r"keys\.index"):
        labels.index("s9")


def test_a_set_that_was_made_without_an_index_is_read_as_one_with_it(tiny: Path) -> None:
    text = json.loads((tiny / "manifest.json").read_text())
    del text["files"][INDEX]
    (tiny / "manifest.json").write_text(json.dumps(text))
    (tiny / INDEX).unlink()
    labels = sl.LabelSet.open(tiny)
    for number, (key, part) in enumerate(PARTS):
        assert labels.index(key, part=part) == number
    with pytest.raises(JoinError, match="s9"):
        labels.index("s9")
    assert verify(tiny).findings == ()


def test_an_unfinished_set_has_no_index_and_is_read_without(
    tmp_path: Path, precompute: Precompute
) -> None:
    def fails(ids: torch.Tensor) -> torch.Tensor:
        if (ids == 15).any():
            raise KeyboardInterrupt
        return torch.zeros(*ids.shape, 16)

    teacher = sl.teachers.from_callable(fails, name="fails", version="1", classes=16)
    rows = [{"id": f"s{i}", "ids": [1, 2, 15 if i == 4 else 3]} for i in range(6)]
    with pytest.raises(KeyboardInterrupt):
        precompute(tmp_path / "set", rows, teacher=teacher)
    assert not (tmp_path / "set" / INDEX).exists()
    labels = sl.LabelSet.open(tmp_path / "set", unfinished=True)
    assert [labels.index(f"s{i}") for i in range(3)] == [0, 1, 2]
    with pytest.raises(JoinError, match="s3"):
        labels.get("s3")


def test_a_set_that_lost_a_shard_is_not_read_by_the_index_it_had(tiny: Path) -> None:
    (tiny / FIRST).unlink()
    assert run(["verify", str(tiny), "--repair"]) == 1
    assert (tiny / INDEX).exists()
    labels = sl.LabelSet.open(tiny, unfinished=True)
    assert [labels.index(f"s{i}") for i in (3, 4, 5)] == [0, 1, 2]
    with pytest.raises(JoinError, match="s0"):
        labels.get("s0")
    # Nor by one that happens to have the size.
    rewrite(tiny, bytes(16 * 3))
    labels = sl.LabelSet.open(tiny, unfinished=True)
    assert [labels.index(f"s{i}") for i in (3, 4, 5)] == [0, 1, 2]
    assert labels.parts("s0") == []
