"""pull: a set from the Hub, or from any URL, to a folder; whole, or visibly not there yet."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from softlabels.errors import CorruptShardError, InputError, PlanMismatchError
from softlabels.format import layout, manifest, receipts
from softlabels.format.manifest import Manifest, Receipt
from softlabels.format.shard import file_sha256
from softlabels.labelset.reader import LabelSet
from softlabels.labelset.writer import check_directory
from softlabels.parallel import in_order
from softlabels.stores.directory import Directory
from softlabels.stores.publish import publish, replace_file
from softlabels.stores.store import Store, locate, place

# Of a shard, in one request; a request that fails is made again from its beginning.
_PIECE_BYTES = 16 << 20
_WORKERS = 8
# Folders whose files the manifest never lists: shards.parquet does, or they are of unfinished sets.
_NOT_LISTED = (layout.DATA, layout.PROBES, layout.RECEIPTS)
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[^/]+)?")


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        labels: the set, opened.
        url: where it came from, at its commit.
        files: how many were fetched; the others were there.
        bytes: of these.
    """

    labels: LabelSet
    url: str
    files: int
    bytes: int


def pull(source: str, out: str | os.PathLike[str]) -> Pulled:
    """Copy a set from somewhere else to a folder; run it again after a crash to go on.

    Every file is held to the manifest's digests before it gets its name, and the manifest comes
    last. The shards of one revision alone are ever mixed.

    Args:
        source: USER/NAME[@REVISION] on the Hub, or a URL as `LabelSet.open` takes it.
        out: a folder, new, empty or from an earlier pull.

    Raises:
        LabelSetError: there is no finished set.
        RemoteError: it cannot be reached.
        CorruptShardError: what came is not what the manifest names.
        InputError: the folder holds something else.
        PlanMismatchError: it holds another set.
    """
    root = Path(out)
    check_directory(root)
    remote = locate(f"hf://datasets/{source}" if _NAME.fullmatch(source) else source)
    if not remote.remote:
        raise InputError(f"{source} is a folder here: copy it as any folder")
    data = (remote.root / layout.MANIFEST).read_bytes()
    found = manifest.parse(data, where=remote.name)
    _check_names(found, remote.name)
    _check_same(root, found)
    with Directory(root).workspace() as scratch:
        if (root / layout.MANIFEST).is_file() and (root / layout.MANIFEST).read_bytes() != data:
            # A card, say, is another one: from here on the set is visibly unfinished.
            (root / layout.MANIFEST).unlink()
        fetched = [*_small_files(remote, root, scratch, found)]
        fetch = partial(_shard, remote, root, scratch)
        shards = receipts.finished(remote.root, found.plan_sha256)
        _check_no_others(root, {path.rpartition("/")[2] for path in shards.texts("path")})
        for sizes in in_order(fetch, shards, workers=_WORKERS):
            fetched += sizes
        (scratch / layout.MANIFEST).write_bytes(data)
        replace_file(scratch / layout.MANIFEST, root / layout.MANIFEST)
    return Pulled(LabelSet.open(root), remote.name, len(fetched), sum(fetched))


def _check_names(found: Manifest, where: str) -> None:
    """Refuse files that would pass for shards or receipts without the checks of these."""
    for name in found.files:
        if name.split("/")[0] in _NOT_LISTED:
            raise CorruptShardError(
                f"{where}/{layout.MANIFEST} lists {name}, which no set does: nothing was fetched; "
                "tell who published it"
            )


def _check_same(root: Path, found: Manifest) -> None:
    """Refuse a folder with another set, or with one that is being made."""
    plan, finished = root / layout.PLAN, root / layout.MANIFEST
    if not plan.is_file():
        return
    if file_sha256(plan) != found.plan_sha256:
        raise PlanMismatchError(
            f"{root} holds another label set, made by another plan; choose another folder"
        )
    if finished.is_file():
        here = manifest.parse(finished.read_bytes(), where=str(finished))
        if here.files.get(layout.SHARDS) != found.files.get(layout.SHARDS):
            raise PlanMismatchError(
                f"{root} holds another label set of the same plan; choose another folder"
            )
    elif (root / layout.RECEIPTS).is_dir():
        raise PlanMismatchError(
            f"{root} holds a label set that is being made here; choose another folder"
        )


def _check_no_others(root: Path, names: set[str]) -> None:
    """Refuse shards of another revision, left by a pull that was cut off; others read them too."""
    for folder in (layout.DATA, layout.PROBES):
        for file in sorted((root / folder).glob("*")):
            if file.name not in names:
                raise PlanMismatchError(
                    f"{file} is there and is no file of the set: another revision was pulled "
                    "before; choose another folder, or remove it"
                )


def _small_files(remote: Store, root: Path, scratch: Path, found: Manifest) -> Iterator[int]:
    """Fetch what is no shard; sizes of what was not there. The plan comes first."""
    for name, digest in {layout.PLAN: found.plan_sha256, **found.files}.items():
        if _is(root / name, digest):
            continue
        temporary = scratch / uuid4().hex
        shutil.copyfile(remote.file(name, digest), temporary)
        size = temporary.stat().st_size
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(temporary, root / name)
        yield size


def _shard(remote: Store, root: Path, scratch: Path, receipt: Receipt) -> list[int]:
    """Fetch a unit's shard and probes; sizes of what was not there."""
    sizes = []
    if receipt.probes and receipt.probes_sha256 is not None:
        name = f"{layout.PROBES}/{receipt.path.rpartition('/')[2]}"
        if not _is_whole(root / name, receipt.probes_sha256):
            temporary = scratch / uuid4().hex
            shutil.copyfile(remote.file(name, receipt.probes_sha256), temporary)
            sizes.append(temporary.stat().st_size)
            _publish(temporary, root / name)
    if not _is_whole(root / receipt.path, receipt.sha256):
        temporary = scratch / uuid4().hex
        _fetch(remote, receipt, temporary)
        sizes.append(receipt.bytes)
        _publish(temporary, root / receipt.path)
    return sizes


def _fetch(remote: Store, receipt: Receipt, file: Path) -> None:
    origin = place(remote.name)  # of the revision that was opened
    assert not isinstance(origin, Path)
    with file.open("wb") as written:
        for start in range(0, receipt.bytes, _PIECE_BYTES):
            stop = min(start + _PIECE_BYTES, receipt.bytes)
            written.write(origin.read(receipt.path, start, stop, size=receipt.bytes))
    if file_sha256(file) != receipt.sha256:
        raise CorruptShardError(
            f"{remote.name}/{receipt.path}: it is not the file that {layout.SHARDS} names; the set "
            "was changed after it was made: tell who published it"
        )


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and file_sha256(file) == sha256


def _is_whole(file: Path, sha256: str) -> bool:
    """Whether a shard or its probes are here; others are not replaced, labels are dear."""
    if not file.exists():
        return False
    if not _is(file, sha256):
        raise InputError(
            f"{file} is there and is not the file of the set; remove it to have it fetched, or "
            "choose another folder"
        )
    return True


def _publish(temporary: Path, final: Path) -> None:
    final.parent.mkdir(exist_ok=True)
    publish(temporary, final)
