"""Where a set is written: a folder and an object store keep the same promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_store import FakeStore, store

from softlabels.errors import InputError, RemoteError
from softlabels.labelset.writer import check_directory, check_writable
from softlabels.stores import directory
from softlabels.stores.target import Target, address, destination, earlier

__all__ = ["store"]  # a fixture


@dataclass(frozen=True)
class Place:
    """A target, its workspace, and what it holds as it is."""

    out: str
    target: Target
    scratch: Path
    contents: Callable[[], dict[str, bytes]]

    def file(self, data: bytes, name: str = "new") -> Path:
        """An unfinished file."""
        path = self.scratch / name
        path.write_bytes(data)
        return path


@pytest.fixture(params=["folder", "store"])
def place(request: Any, tmp_path: Path) -> Iterator[Place]:
    if request.param == "folder":
        out = str(tmp_path / "set")

        def contents() -> dict[str, bytes]:
            files = (path for path in Path(out).rglob("*") if path.is_file())
            found = {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
            return {name: data for name, data in found.items() if not name.startswith(".tmp/")}
    else:
        store = request.getfixturevalue("store")
        out = "fake://labels/set"

        def contents() -> dict[str, bytes]:
            return dict(store.contents("set"))

    target = destination(out)
    with target.workspace() as scratch:
        yield Place(out, target, scratch, contents)
    assert not scratch.exists()


def test_a_published_file_is_there_whole_and_its_draft_gone(place: Place) -> None:
    assert place.target.size("data/one.parquet") is None
    assert place.target.read("data/one.parquet") is None
    assert place.target.publish(place.file(b"first"), "data/one.parquet")
    assert place.contents() == {"data/one.parquet": b"first"}
    assert place.target.size("data/one.parquet") == 5
    assert place.target.read("data/one.parquet") == b"first"
    assert list(place.scratch.iterdir()) == []


@pytest.mark.parametrize("second", [b"other", b"of another size"])
def test_publishing_never_replaces_and_a_loser_discards_its_file(
    place: Place, second: bytes
) -> None:
    assert place.target.publish(place.file(b"first"), "data/one.parquet")
    assert not place.target.publish(place.file(second), "data/one.parquet")
    assert place.contents() == {"data/one.parquet": b"first"}
    assert list(place.scratch.iterdir()) == []


def test_of_many_at_once_one_publishes(place: Place) -> None:
    files = [place.file(str(i).encode(), f"by-{i}") for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda file: place.target.publish(file, "plan.json"), files))
    assert won.count(True) == 1
    assert place.contents() == {"plan.json": str(won.index(True)).encode()}


def test_a_small_file_is_replaced_whole_and_removed(place: Place) -> None:
    for data in (b"first", b"second"):
        place.target.replace(place.file(data), "receipts/00001.json")
        assert place.contents() == {"receipts/00001.json": data}
        assert place.target.read("receipts/00001.json") == data
    for _ in range(2):
        place.target.remove("receipts/00001.json")
        assert place.contents() == {}
    assert list(place.scratch.iterdir()) == []


def test_a_folder_is_listed_and_dropped_however_many_are_in_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_AT_ONCE", 2)
    names = ["receipts/00010.json", "receipts/00002.json", "receipts/00001.json"]
    for name in names:
        place.target.replace(place.file(b"1"), name)
    place.target.publish(place.file(b"2"), "plan.json")
    assert sorted(place.target.files("receipts")) == sorted(names)
    assert list(place.target.files("nowhere")) == []
    place.target.drop("receipts")
    place.target.drop("receipts")
    assert place.contents() == {"plan.json": b"2"}


def test_what_was_looked_ahead_at_is_what_is_there(place: Place) -> None:
    names = [f"{folder}/{i:05d}" for folder in ("data", "probes", "receipts") for i in range(3)]
    for name in names:
        place.target.publish(place.file(name.encode()), name)
    place.target.look_ahead()
    for name in names:
        assert place.target.size(name) == len(name)
        assert place.target.read(name) == name.encode()
        assert place.target.read(name) == name.encode()
    place.target.remove(names[0])
    assert place.target.size(names[0]) is None


def test_a_file_is_had_on_a_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softlabels.stores.objects._PIECE_BYTES", 3)
    place.target.publish(place.file(b"ten bytes."), "data/one")
    with place.target.local("data/one", place.scratch) as file:
        assert file.read_bytes() == b"ten bytes."
    assert list(place.scratch.iterdir()) == []
    assert place.contents() == {"data/one": b"ten bytes."}


def save(folder: Path) -> None:
    (folder / "a.json").write_bytes(b"a")
    (folder / "more").mkdir()
    (folder / "more" / "b.json").write_bytes(b"b")
    (folder / "more-c.json").write_bytes(b"c")


# In the order of a walk, which is not that of the strings.
WHOLE = {
    "tokenizer/a.json": b"a",
    "tokenizer/more/b.json": b"b",
    "tokenizer/more-c.json": b"c",
}


def test_a_folder_is_published_once(place: Place) -> None:
    place.target.publish_folder("tokenizer", save, place.scratch)
    assert place.contents() == WHOLE
    place.target.publish(place.file(b"1"), "data/train-00000.parquet")

    def fail(_: Path) -> None:
        raise AssertionError("it is there")

    place.target.publish_folder("tokenizer", fail, place.scratch)
    assert sorted(place.target.files("tokenizer")) == sorted(WHOLE)
    assert list(place.scratch.iterdir()) == []


def test_a_folder_put_half_before_a_kill_is_completed(store: type[FakeStore]) -> None:
    store.objects["labels/set/tokenizer/a.json"] = b"a"
    target = destination("fake://labels/set")
    with target.workspace() as scratch:
        target.publish_folder("tokenizer", save, scratch)
    assert store.contents("set") == WHOLE


def test_a_place_that_holds_something_else_is_refused(place: Place) -> None:
    check_directory(place.out)
    place.target.replace(place.file(b"1"), "thesis/draft.txt")
    with pytest.raises(InputError, match=r'set holds something else \("thesis"\) and no plan.json'):
        check_directory(place.out)
    place.target.publish(place.file(b"1"), "plan.json")
    check_directory(place.out)


def test_looking_whether_it_can_be_written_leaves_nothing(place: Place) -> None:
    check_writable(place.out)
    assert place.contents() == {}
    assert earlier(place.out) is None


def test_other_processes_find_it_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert address("sets/one") == str(tmp_path / "sets" / "one")
    assert address(f"file://{tmp_path}/one") == str(tmp_path / "one")
    assert address("s3://labels/one/") == "s3://labels/one"


@pytest.mark.parametrize("url", ["memory://set", "hf://datasets/me/set", "https://a.server/set"])
def test_a_service_without_conditional_puts_is_refused_before_it_is_asked(url: str) -> None:
    with pytest.raises(InputError, match=r"cannot be written there.*write to a folder and copy"):
        check_directory(url)


def test_a_server_that_ignores_the_condition_is_refused(store: type[FakeStore]) -> None:
    store.exclusive = False
    with pytest.raises(InputError, match=r"fake://labels/set: the server replaces an object"):
        check_writable("fake://labels/set")
    assert store.objects == {}


def test_a_bucket_that_is_not_there_is_refused(store: type[FakeStore]) -> None:
    check_directory("fake://nobody/set")
    with pytest.raises(InputError, match=r"fake://nobody/set: there is no such bucket"):
        check_writable("fake://nobody/set")


@pytest.mark.parametrize("url", ["s3://me:hunter2@labels/set", "https://a.server/set?key=hunter2"])
def test_a_secret_in_the_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError, match="from the environment only") as error:
        check_directory(url)
    assert "hunter2" not in str(error.value)


def test_a_path_that_spoiled_a_url_is_told() -> None:
    with pytest.raises(InputError, match="a Path spoils a URL's slashes"):
        check_directory(Path("s3://labels/set"))


class Refusals:
    """Faults of the store: the first so many puts fail, before or after they are done."""

    def __init__(self, count: float, *, done: bool, error: Exception) -> None:
        self.left, self.done, self.error = count, done, error

    def __call__(self, operation: str, path: str, done: bool) -> None:
        if operation == "put" and done == self.done and self.left > 0:
            self.left -= 1
            raise self.error


@pytest.mark.parametrize("done", [False, True])
def test_a_put_that_fails_once_or_whose_answer_is_lost_is_made_again(
    store: type[FakeStore], done: bool
) -> None:
    target = destination("fake://labels/set")
    with target.workspace() as scratch:
        for publish in (True, False):
            store.fault = Refusals(1, done=done, error=ConnectionError("reset by peer"))
            (scratch / "new").write_bytes(b"ours")
            if publish:
                assert target.publish(scratch / "new", "data/one")
            else:
                target.replace(scratch / "new", "data/one")
            assert store.contents("set") == {"data/one": b"ours"}
    assert len(store.done("put", "data/one")) == 4


def test_a_put_that_always_fails_ends_soon_says_what_to_do_and_shows_no_secret(
    store: type[FakeStore],
) -> None:
    reason = "https://me:hunter2@a.server/labels?signature=hunter2 is down"
    store.fault = Refusals(float("inf"), done=False, error=OSError(reason))
    target = destination("fake://labels/set")
    wanted = (
        r"fake://labels/set/data/one cannot be written after 5 tries: OSError: .* is down.*"
        r"what is finished stays: .*run the same command again"
    )
    with target.workspace() as scratch:
        (scratch / "new").write_bytes(b"ours")
        with pytest.raises(RemoteError, match=wanted) as error:
            target.publish(scratch / "new", "data/one")
        assert list(scratch.iterdir()) == []
    assert "hunter2" not in str(error.value)
    assert store.objects == {}


@pytest.mark.parametrize(
    "error", [PermissionError("Forbidden"), type("NoCredentialsError", (Exception,), {})()]
)
def test_a_refusal_is_not_asked_again(store: type[FakeStore], error: Exception) -> None:
    store.fault = Refusals(float("inf"), done=False, error=error)
    with pytest.raises(RemoteError, match="set the credentials of its service in the environment"):
        check_writable("fake://labels/set")
    assert len(store.done("put", "")) == 1


def test_what_only_the_status_tells_is_a_put_that_came_too_late(store: type[FakeStore]) -> None:
    answer = {"ResponseMetadata": {"HTTPStatusCode": 412}, "Error": {"Code": "Failed"}}
    late = OSError("An error occurred (Failed)")
    late.__cause__ = type("ClientError", (Exception,), {"response": answer})()
    store.objects["labels/set/data/one"] = b"theirs"
    store.fault = Refusals(float("inf"), done=False, error=late)
    target = destination("fake://labels/set")
    with target.workspace() as scratch:
        (scratch / "new").write_bytes(b"ours, x")
        assert not target.publish(scratch / "new", "data/one")
    assert len(store.done("put", "data/one")) == 1
