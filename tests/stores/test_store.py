"""Remote sets: the records of the local one, in few requests, whatever the server or disk does."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import file_server
import fsspec
import numpy as np
import pytest
import torch
from file_server import FileServer, says, serving

import softlabels as sl
from softlabels.errors import CorruptShardError, InputError, JoinError, LabelSetError, RemoteError
from softlabels.format import shard_writing
from softlabels.format.records import IDENTITY
from softlabels.stores import asking
from softlabels.stores import cache as caches

Precompute = Callable[..., sl.LabelSet]
TENSORS = ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "mask")
# Faults that only a bound ends.
SLOW = [file_server.stalls, file_server.drips]
fork = multiprocessing.get_context("fork")


def contents(labels: sl.LabelSet, numbers: Any = None) -> list[Any]:
    """All that the records say, bit for bit."""
    records = labels.take(range(len(labels)) if numbers is None else numbers)
    assert records.token_ids is not None
    found: list[Any] = [records.identity.select(IDENTITY).to_pylist(), records.token_ids.tolist()]
    for name in TENSORS:
        tensor = getattr(records.labels, name)
        found.append(None if tensor is None else tensor.numpy().tobytes())
    return found


def blobs(cache: Path) -> list[Path]:
    return sorted((cache / "blobs").iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, precompute: Precompute) -> Path:
    """A set of twelve shards of several row groups; never changed."""
    rng = np.random.default_rng(0)
    rows = [{"id": f"s{i}", "ids": rng.integers(0, 16, 22).tolist()} for i in range(24)]
    out = tmp_path_factory.mktemp("remote") / "labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writing, "ROW_GROUP_POSITIONS", 9)
        labels = precompute(out, rows, unit_rows=2, codec="compact", probes=20)
    assert len(labels.receipts) == 12
    assert len(labels.row_groups) >= 36
    return out


@pytest.fixture(scope="module")
def expected(made: Path) -> list[Any]:
    return contents(sl.LabelSet.open(made))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no pause between tries."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SOFTLABELS_CACHE", str(folder))
    monkeypatch.delenv("SOFTLABELS_CACHE_BYTES", raising=False)
    monkeypatch.delenv("SOFTLABELS_OFFLINE", raising=False)
    monkeypatch.setattr(asking, "BACKOFF_S", 0.01)
    return folder


@pytest.fixture
def server(made: Path) -> Iterator[FileServer]:
    with serving(FileServer(made)) as server:
        yield server


def test_records_over_http_are_those_of_the_local_set(
    server: FileServer, expected: list[Any], made: Path
) -> None:
    labels = sl.LabelSet.open(server.url)
    assert contents(labels) == expected
    local, rng = sl.LabelSet.open(made), random.Random(0)
    labels = sl.LabelSet.open(server.url)
    for _ in range(20):
        numbers = [rng.randrange(len(labels)) for _ in range(5)]
        assert contents(labels, numbers) == contents(local, numbers)
    assert labels.identities.equals(local.identities)
    assert (labels.totals, labels.plan) == (local.totals, local.plan)
    assert labels.name == server.url


def test_a_set_in_memory_and_one_at_a_file_url_are_read_alike(
    made: Path, expected: list[Any]
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{made}/", "/bucket/labels", recursive=True)
    try:
        labels = sl.LabelSet.open("memory://bucket/labels")
        assert contents(labels) == expected
        memory.rm(f"/bucket/labels/{labels.receipts[3].path}")
        assert contents(sl.LabelSet.open("memory://bucket/labels/")) == expected
        shutil.rmtree(os.environ["SOFTLABELS_CACHE"])
        with pytest.raises(RemoteError, match=r"memory://bucket/labels/data/train-00003.*no such"):
            contents(sl.LabelSet.open("memory://bucket/labels"))
    finally:
        memory.rm("/bucket", recursive=True)
    labels = sl.LabelSet.open(made.as_uri())
    assert labels.root == made
    assert contents(labels) == expected


def test_a_cold_start_asks_for_three_small_files_and_the_row_groups_of_the_first_batch(
    server: FileServer, made: Path
) -> None:
    labels = sl.LabelSet.open(server.url)
    names = [request.path.removeprefix("/set/") for request in server.requests]
    assert names == ["manifest.json", "plan.json", "shards.parquet"]
    server.requests.clear()
    group = labels.row_groups[1]
    labels.take([group.start])
    receipt = labels.receipts[group.shard]
    footer, columns = server.requests
    assert {request.path for request in server.requests} == {f"/set/{receipt.path}"}
    assert footer.sent == receipt.footer_bytes
    # The row groups before and after it are not among its bytes.
    assert columns.sent < (receipt.bytes - receipt.footer_bytes) / (len(receipt.group_rows) - 1)
    server.requests.clear()
    labels.take([group.start])
    labels = sl.LabelSet.open(server.url)
    labels.take([group.start])
    assert [request.path for request in server.requests] == ["/set/manifest.json"]


def test_columns_of_every_record_are_fetched_without_the_others(
    server: FileServer, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_GAP_BYTES", 0)
    labels, local = sl.LabelSet.open(server.url), sl.LabelSet.open(made)
    names = ["key", "part", "length"]
    assert labels.columns(names).equals(local.columns(names))
    footers = sum(receipt.footer_bytes for receipt in labels.receipts)
    metadata = [local.open_shard(receipt).metadata for receipt in local.receipts]
    groups = [one.row_group(group) for one in metadata for group in range(one.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    wanted = sum(c.total_compressed_size for c in chunks if c.path_in_schema in names)
    assert sum(request.sent for request in server.ranged) == footers + wanted


def test_a_pass_over_all_row_groups_fetches_each_once(
    server: FileServer, made: Path, expected: list[Any]
) -> None:
    labels = sl.LabelSet.open(server.url)
    passed = [group.token_ids for group in labels.groups() if group.token_ids is not None]
    assert np.concatenate(passed).tolist() == expected[1]
    assert len(server.ranged) == len(labels.receipts) + len(labels.row_groups)


def test_keys_probes_and_the_data_set_of_a_remote_set(server: FileServer, made: Path) -> None:
    labels, local = sl.LabelSet.open(server.url), sl.LabelSet.open(made)
    found = labels.get("s5", part=1)
    assert torch.equal(found.ids, local.get("s5", part=1).ids)
    assert labels.parts("s5") == local.parts("s5")
    with pytest.raises(JoinError, match=f'no record with key "s99" in {server.url}'):
        labels.get("s99")
    for mine, theirs in zip(labels.probes(), local.probes(), strict=True):
        assert torch.equal(mine.logits, theirs.logits)
    asked = len([r for r in server.requests if r.path.endswith("keys.index")])
    assert asked == 1


def test_the_tokenizer_of_a_remote_set_is_a_folder_here(made: Path, tmp_path: Path) -> None:
    assert sl.LabelSet.open(made).tokenizer_folder() is None
    root = Path(shutil.copytree(made, tmp_path / "set"))
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"]["tokenizer/tokenizer.json"] = hashlib.sha256(b"{}").hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert sl.LabelSet.open(root).tokenizer_folder() == root / "tokenizer"
    with serving(FileServer(root)) as server:
        for damage in (b"{}", b"[]"):
            folder = sl.LabelSet.open(server.url).tokenizer_folder()
            assert folder is not None
            assert [file.name for file in folder.iterdir()] == ["tokenizer.json"]
            assert (folder / "tokenizer.json").read_bytes() == b"{}"
            (folder / "tokenizer.json").write_bytes(damage)
        assert sl.LabelSet.open(f"{server.url}/").tokenizer_folder() == folder
        (root / "tokenizer" / "tokenizer.json").write_bytes(b"[]")
        (folder / "tokenizer.json").unlink()
        with pytest.raises(CorruptShardError, match=r"tokenizer/tokenizer.json: it is not the"):
            sl.LabelSet.open(server.url).tokenizer_folder()


@pytest.mark.parametrize(
    "fault",
    [
        file_server.stalls,
        file_server.drips,
        file_server.drops,
        file_server.short,
        file_server.other_range,
        file_server.no_number,
        file_server.flipped,
        says(500),
        says(503),
        says(429, Retry_After="0"),
        says(429, Retry_After="²"),
        says(408),
    ],
    ids=lambda fault: fault.__qualname__.split(".")[0],
)
def test_what_passes_is_asked_again_and_no_wrong_byte_is_read(
    server: FileServer, expected: list[Any], fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = sl.LabelSet.open(server.url)
    if fault in SLOW:
        monkeypatch.setattr(asking, "TIMEOUT_S", 0.8)
        monkeypatch.setattr(asking, "_SLOWEST_BYTES_PER_S", 1 << 30)
    # Wrong twice, bytes are the server's own: they were replaced there.
    server.faults.extend([fault] * (1 if fault is file_server.flipped else 3))
    assert contents(labels) == expected
    assert not server.faults


@pytest.mark.parametrize(
    ("fault", "words", "asked"),
    [
        (file_server.stalls, r"ReadTimeout.*see that the server can be reached", 2),
        (file_server.drips, r"bytes in \d+ s", 2),
        (file_server.drops, r"RemoteProtocolError", 2),
        (file_server.other_range, r"others came", 2),
        (says(502), r"HTTP 502", 2),
        (says(429, Retry_After="3600"), r"after 1 try: HTTP 429", 1),
        (file_server.ignores_ranges, r"ignores ranged requests.*copy the set", 1),
        (says(401), r"refused \(HTTP 401\)", 1),
        (says(403), r"refused \(HTTP 403\)", 1),
        (says(404), r"no such file \(HTTP 404\)", 1),
        (says(416), r"another size", 1),
        (says(400), r"answered HTTP 400", 1),
    ],
)
def test_what_does_not_pass_ends_soon_in_words_that_name_the_file(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, fault: Any, words: str, asked: int
) -> None:
    labels = sl.LabelSet.open(server.url)
    monkeypatch.setattr(asking, "TRIES", 2)
    if fault in SLOW:
        monkeypatch.setattr(asking, "TIMEOUT_S", 0.4)
        monkeypatch.setattr(asking, "_SLOWEST_BYTES_PER_S", 1 << 30)
    calls: list[int] = []

    def counted(*args: Any) -> None:
        calls.append(1)
        fault(*args)

    server.fault = counted
    with pytest.raises(RemoteError, match=rf"{server.url}/data/train-00000.parquet.*{words}"):
        labels.take([0])
    assert len(calls) == asked


def test_a_shard_that_was_replaced_on_the_server_is_an_error_that_says_so(
    made: Path, expected: list[Any], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(made, tmp_path / "set"))
    with serving(FileServer(root)) as server:
        labels = sl.LabelSet.open(server.url)
        path = root / labels.receipts[0].path
        good = path.read_bytes()
        # The footer is the same, every page another.
        footer = labels.receipts[0].footer_bytes
        path.write_bytes(bytes(b ^ 1 for b in good[:-footer]) + good[-footer:])
        with pytest.raises(CorruptShardError, match=r"row group 0, column .*was replaced"):
            labels.take([0])
        (blob,) = blobs(tmp_path / "cache")
        assert not any(blob.read_bytes()[:-footer]), "wrong bytes came into the cache"
        path.write_bytes(good[:-1] + b"?")
        shutil.rmtree(os.environ["SOFTLABELS_CACHE"])
        with pytest.raises(CorruptShardError, match=r"footer is not the one.*was replaced"):
            sl.LabelSet.open(server.url).take([0])
        path.write_bytes(good + good)
        shutil.rmtree(os.environ["SOFTLABELS_CACHE"])
        with pytest.raises(RemoteError, match=r"another size .* replaced"):
            sl.LabelSet.open(server.url).take([0])
        path.write_bytes(good)
        assert contents(sl.LabelSet.open(server.url)) == expected
        path.write_bytes(bytes(len(good)))
        assert contents(sl.LabelSet.open(server.url)) == expected, "what was cached was lost"


def test_a_plan_that_is_not_the_manifests_is_refused(made: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "set"))
    (root / "plan.json").write_bytes((root / "plan.json").read_bytes() + b"\n")
    wrong = pytest.raises(CorruptShardError, match=r"plan.json: it is not the file")
    with serving(FileServer(root)) as server, wrong:
        sl.LabelSet.open(server.url)


@pytest.mark.parametrize("damage", ["flipped", "zeros", "cut", "longer", "gone"])
def test_a_cache_that_was_damaged_heals(
    server: FileServer, expected: list[Any], cache: Path, damage: str
) -> None:
    assert contents(sl.LabelSet.open(server.url)) == expected
    server.requests.clear()
    for path in blobs(cache):
        data = path.read_bytes()
        wrong = {
            "flipped": bytes(b ^ (i % 97 == 0) for i, b in enumerate(data)),
            "zeros": bytes(len(data)),
            "cut": data[:100],
            "longer": data + b"more",
            "gone": b"",
        }[damage]
        path.unlink()
        if damage != "gone":
            path.write_bytes(wrong)
    assert contents(sl.LabelSet.open(server.url)) == expected
    healed = len(server.ranged)
    assert healed > 0 or damage == "longer"
    assert contents(sl.LabelSet.open(server.url)) == expected
    assert len(server.ranged) == healed, "what was healed was fetched again"


def test_equal_shards_of_two_mirrors_are_fetched_once(
    server: FileServer, expected: list[Any], made: Path
) -> None:
    assert contents(sl.LabelSet.open(server.url)) == expected
    with serving(FileServer(made)) as mirror:
        assert contents(sl.LabelSet.open(mirror.url)) == expected
        assert not mirror.ranged


def read_all(labels: sl.LabelSet, seed: int, results: Any) -> None:
    """In another process: every record, in a random order, five at a time."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    found: dict[int, list[Any]] = {}
    for start in range(0, len(order), 5):
        labels.prefetch(order[start + 5 : start + 15])
        for number in order[start : start + 5]:
            found[number] = contents(labels, [number])
    results.put([found[number] for number in range(len(labels))])


def in_processes(labels: sl.LabelSet, count: int) -> list[list[Any]]:
    results = fork.Queue()
    readers = [fork.Process(target=read_all, args=(labels, i, results)) for i in range(count)]
    for reader in readers:
        reader.start()
    found = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join(10)
        assert reader.exitcode == 0
    return found


def test_a_reader_killed_while_it_writes_leaves_a_cache_that_reads_right(
    server: FileServer, expected: list[Any], cache: Path
) -> None:
    server.delay_s = 0.004
    for kill in range(8):
        labels, results = sl.LabelSet.open(server.url), fork.Queue()
        reader = fork.Process(target=read_all, args=(labels, kill, results))
        reader.start()
        deadline = time.monotonic() + 30
        while not blobs(cache) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.03 * kill)
        assert reader.pid is not None
        os.kill(reader.pid, signal.SIGKILL)
        reader.join(10)
    assert blobs(cache), "nothing was written before the kills"
    server.delay_s = 0.0
    assert contents(sl.LabelSet.open(server.url)) == expected


def test_processes_that_share_a_cache_too_small_for_the_set_read_right_and_keep_its_bound(
    server: FileServer, made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = sl.LabelSet.open(made)
    limit = sum(receipt.bytes for receipt in local.receipts) // 2
    monkeypatch.setenv("SOFTLABELS_CACHE_BYTES", str(limit))
    each = [contents(local, [number]) for number in range(len(local))]
    labels = sl.LabelSet.open(server.url)
    contents(labels, [0, len(labels) - 1])
    assert in_processes(labels, 3) == [each] * 3
    fetched = sum(request.sent for request in server.ranged)
    assert fetched > sum(receipt.bytes for receipt in local.receipts), "nothing was dropped"
    used = sum(path.stat().st_blocks * 512 for path in blobs(cache))
    largest = max(receipt.bytes for receipt in local.receipts)
    # Each process writes so much before it counts, and one file more; blocks are whole.
    assert used <= limit + 3 * (limit // 16 + largest + 8192)


def test_a_copy_that_was_dropped_while_it_was_open_is_left_for_a_new_one(
    server: FileServer, made: Path, cache: Path
) -> None:
    labels = sl.LabelSet.open(server.url)
    labels.take([0])
    (copy,) = blobs(cache)
    copy.unlink()
    # Else its blocks stay taken for as long as the reader lives.
    found = labels.columns(["key"])
    assert found.equals(sl.LabelSet.open(made).columns(["key"]))
    assert copy in blobs(cache)


def test_what_was_not_used_for_longest_is_dropped_first(server: FileServer, cache: Path) -> None:
    labels = sl.LabelSet.open(server.url)
    labels.take([0])
    (first,) = blobs(cache)
    labels.take([-1])
    (last,) = set(blobs(cache)) - {first}
    os.utime(first, (1, 1))
    os.utime(last, (2, 2))
    # Nothing of it is written: it is only read.
    sl.LabelSet.open(server.url).take([0])
    used = sum(path.stat().st_blocks * 512 for path in (first, last))
    assert caches.Cache(cache, limit=used - 1).make_room(keep=cache / "none")
    assert blobs(cache) == [first]


def test_processes_and_threads_that_want_the_same_bytes_fetch_them_once(
    server: FileServer, made: Path
) -> None:
    server.delay_s = 0.1
    labels = sl.LabelSet.open(server.url)
    results = fork.Queue()

    def one() -> None:
        results.put(contents(labels, [0]))

    readers = [fork.Process(target=one) for _ in range(3)]
    for reader in readers:
        reader.start()
    found = [results.get(timeout=30) for _ in readers]
    for reader in readers:
        reader.join(10)
    assert found == [contents(sl.LabelSet.open(made), [0])] * 3
    assert len(server.ranged) == 2, "a footer and a row group"
    threads = [threading.Thread(target=labels.take, args=([20],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(server.ranged) == 4


def test_pickled_it_is_the_same_revision_and_nothing_is_asked(made: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "set"))
    with serving(FileServer(root)) as server:
        data = pickle.dumps(sl.LabelSet.open(server.url))
        server.requests.clear()
        (root / "manifest.json").write_bytes(b"{}")
        labels = pickle.loads(data)
        assert not server.requests
        assert contents(labels, [3]) == contents(sl.LabelSet.open(made), [3])


def test_a_fork_while_threads_fetch_does_not_hang(server: FileServer, made: Path) -> None:
    local = sl.LabelSet.open(made)
    each = [contents(local, [number]) for number in range(len(local))]
    server.delay_s = 0.002
    labels = sl.LabelSet.open(server.url)
    for _ in range(3):
        labels.prefetch(range(len(labels)))
        assert in_processes(labels, 1) == [each]
        shutil.rmtree(os.environ["SOFTLABELS_CACHE"] + "/blobs")


def test_prefetch_returns_at_once_and_take_waits_for_it_and_fetches_nothing_twice(
    server: FileServer, made: Path, expected: list[Any]
) -> None:
    gate = threading.Event()

    def held(handler: Any, data: bytes, start: int, stop: int) -> None:
        gate.wait(10)
        handler.serve(data, start, stop)

    server.fault = held
    labels = sl.LabelSet.open(server.url)
    # The gate is still shut: had it waited for the server, this would not go on.
    labels.prefetch(range(len(labels)))
    assert not server.ranged
    threading.Timer(0.2, gate.set).start()
    assert contents(labels) == expected
    assert len(server.ranged) == len(labels.receipts) + len(labels.row_groups)
    server.requests.clear()
    labels.prefetch(range(len(labels)))
    assert contents(labels) == expected
    assert not server.requests
    sl.LabelSet.open(made).prefetch([0])


def test_what_went_wrong_in_a_prefetch_is_raised_by_the_take_that_needs_it(
    server: FileServer, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TRIES", 1)
    labels = sl.LabelSet.open(server.url)
    server.fault = says(500)
    labels.prefetch([0])
    with pytest.raises(RemoteError, match="HTTP 500"):
        labels.take([0])
    server.fault = None
    assert contents(labels, [0]) == contents(sl.LabelSet.open(made), [0])
    with pytest.raises(IndexError):
        labels.prefetch([len(labels)])


def test_offline_what_is_cached_is_served_and_what_is_not_is_named(
    server: FileServer, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTLABELS_OFFLINE", "1")
    with pytest.raises(RemoteError, match=r"manifest.json is not in the cache.*OFFLINE"):
        sl.LabelSet.open(server.url)
    monkeypatch.delenv("SOFTLABELS_OFFLINE")
    sl.LabelSet.open(server.url).take([0])
    server.requests.clear()
    monkeypatch.setenv("SOFTLABELS_OFFLINE", "1")
    labels = sl.LabelSet.open(server.url)
    assert contents(labels, [0]) == contents(sl.LabelSet.open(made), [0])
    for number in (len(labels) - 1, labels.row_groups[1].start):
        with pytest.raises(RemoteError, match=r"data/train-\d+.parquet is not in the cache"):
            labels.take([number])
    with pytest.raises(RemoteError, match=r"keys.index is not in the cache"):
        labels.get("s5")
    assert not server.requests


def test_a_full_disk_drops_what_is_old_and_else_says_what_to_set(
    server: FileServer, made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = sl.LabelSet.open(made)
    labels = sl.LabelSet.open(server.url)
    labels.take([0])
    old = blobs(cache)
    write = os.pwrite

    def full(*args: Any) -> int:
        if any(path.exists() for path in old):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    monkeypatch.setattr(caches.os, "pwrite", full)
    last = len(labels) - 1
    assert contents(labels, [last]) == contents(local, [last])
    assert not any(path.exists() for path in old)

    def always(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caches.os, "pwrite", always)
    with pytest.raises(RemoteError, match=r"No space left.*SOFTLABELS_CACHE to a folder on a larg"):
        labels.take([labels.row_groups[6].start])


def test_a_cache_that_cannot_be_written_says_what_to_set(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "file"))
    with pytest.raises(RemoteError, match=r"cannot be written .*set SOFTLABELS_CACHE"):
        sl.LabelSet.open(server.url)
    monkeypatch.setenv("SOFTLABELS_CACHE_BYTES", "lots")
    with pytest.raises(InputError, match="SOFTLABELS_CACHE_BYTES must be a whole number"):
        sl.LabelSet.open(server.url)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@host.invalid/set",
        "https://hunter2@host.invalid/set",
        "https://host.invalid/set?sig=hunter2",
        "https://host.invalid/set#hunter2",
        "s3://key:hunter2@bucket/set",
        "https://host.invalid:port/hunter2",
        "hf://datasets/one",
        "hf://models/me/name",
    ],
)
def test_a_url_that_holds_a_secret_or_names_nothing_is_refused_and_no_secret_is_shown(
    url: str,
) -> None:
    with pytest.raises(InputError) as error:
        sl.LabelSet.open(url)
    assert "hunter2" not in str(error.value) or "port" in url


def test_what_a_service_says_is_told_without_the_secrets_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: Any, **options: Any) -> bytes:
        raise RuntimeError("GET https://me:hunter2@host/labels?signature=hunter2 went wrong")

    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", fails)
    with pytest.raises(RemoteError, match=r"GET https://host/labels\?… went wrong") as error:
        sl.LabelSet.open("memory://bucket/labels")
    assert "hunter2" not in str(error.value)


def test_what_is_no_set_or_no_service_is_said(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match=r"no finished label set.*manifest.json.*HTTP 404"):
        sl.LabelSet.open(f"{server.url}/elsewhere")
    with pytest.raises(RemoteError, match="fsspec cannot read it"):
        sl.LabelSet.open("nosuchservice://bucket/set")
    with pytest.raises(InputError, match="pass it as a str"):
        sl.LabelSet.open(Path("hf://datasets/me/labels"))
    with pytest.raises(LabelSetError, match="there is no such folder"):
        sl.LabelSet.open(f"file://{tmp_path}/nothing")


def test_the_loader_gives_the_batches_of_the_local_set(server: FileServer, made: Path) -> None:
    loaders = [sl.loader(sl.LabelSet.open(p), batch_size=4, seed=0) for p in (server.url, made)]
    for mine, theirs in zip(*loaders, strict=True):
        assert mine["key"] == theirs["key"]
        assert torch.equal(mine["input_ids"], theirs["input_ids"])
        assert torch.equal(mine["soft_labels"].ids, theirs["soft_labels"].ids)
