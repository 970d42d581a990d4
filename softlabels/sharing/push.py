"""push: a finished set to a data set repository of the Hub, in one commit."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.errors import InputError, LabelSetError, quoted
from softlabels.format import layout, manifest, receipts
from softlabels.format.manifest import Manifest
from softlabels.format.shard import file_sha256
from softlabels.labelset.reader import LabelSet
from softlabels.looking.pages import picture
from softlabels.parallel import in_order, worker_count
from softlabels.sharing.card import FIGURES, figure_path, hub_card
from softlabels.sharing.client import answered, repository_name, token
from softlabels.sharing.licences import Licences
from softlabels.sharing.preview import PREVIEW, write_preview
from softlabels.sharing.statistics import CHARTS, statistics
from softlabels.stores.store import place

# Files that are checked, sent and forgotten together.
_TOGETHER = 64
_FOLDERS = (layout.DATA, layout.PROBES, layout.TOKENIZER)
_FILES = (layout.REJECTS, layout.KEYS, layout.SHARDS)
# What a repository without a label set may hold beside.
_NO_SET = (".gitattributes", layout.CARD, "LICENSE", "LICENSE.md", "LICENSE.txt")


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        url: of the set, at the commit that has it.
        files, bytes: in it.
        changed: how many of the files were not there as they are.
        removed: how many files of an earlier set are gone.
        warnings: what the licences forbid.
    """

    url: str
    files: int
    bytes: int
    changed: int
    removed: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """A file to be in the repository: where it lies, and its sha256 if it must have one."""

    path: Path
    sha256: str


def push(
    labels: LabelSet,
    repository: str,
    *,
    private: bool = False,
    revision: str = "main",
    licences: Licences | None = None,
) -> Pushed:
    """Publish a finished label set on the Hugging Face Hub.

    Large files go first, where nobody sees them; then one commit brings everything, so that a
    reader never sees half a set. Run again after a crash: what was sent is not sent again. Files
    of an earlier set that this one lacks go away in the same commit.

    Args:
        labels: a finished set on a disk of this machine.
        repository: USER/NAME; made if there is none. HF_TOKEN in the environment may write there.
        private: of a new repository; one that is there must be private already.
        revision: a branch, made if there is none.
        licences: for the card.

    Raises:
        LabelSetError: the set is unfinished, or not on a disk here.
        CorruptShardError: a file is not what the manifest names; nothing is to be seen of it.
        InputError: no token or name, or the repository holds something else.
        RemoteError: the Hub refuses or cannot be reached, or somebody else pushed meanwhile.
    """
    name, licences = repository_name(repository), licences or Licences()
    root = _check(labels)
    from huggingface_hub import HfApi

    api = HfApi(token=token())
    where = f"hf://datasets/{name}@{revision}"
    with answered(where):
        parent, there = _begin(api, name, private=private, revision=revision)
    _check_replaceable(there, where)
    with tempfile.TemporaryDirectory(prefix="softlabels-push-") as scratch:
        files = _files(labels, root, Path(scratch), repository=name, licences=licences)
        changed = [path for path in files if not _same(there.get(path), files[path])]
        stale = sorted(path for path in there if path not in files and _ours(path))
        commit = parent
        if changed or stale:
            with answered(where):
                commit = _send(api, name, files, changed, stale, parent=parent, revision=revision)
        size = sum(file.path.stat().st_size for file in files.values())
    return Pushed(
        url=f"hf://datasets/{name}@{commit}",
        files=len(files),
        bytes=size,
        changed=len(changed),
        removed=len(stale),
        warnings=tuple(licences.warnings()),
    )


def _check(labels: LabelSet) -> Path:
    found = place(labels.name)
    if not isinstance(found, Path):
        raise LabelSetError(f"{labels.name} is not on a disk here: pull it first, then push that")
    if not labels.finished:
        raise LabelSetError(
            f"{found} is unfinished: half a set is of no use to others. Run the same `softlabels "
            "precompute` command to finish it"
        )
    return found


def _begin(api: Any, name: str, *, private: bool, revision: str) -> tuple[str, dict[str, Any]]:
    """The commit to build on, and the files in it; the repository and the branch are made."""
    from huggingface_hub import RepoFile, errors

    try:
        found = api.repo_info(name, repo_type="dataset")
        if private and not found.private:
            raise InputError(
                f"{name} is there and public; make it private in its settings first, or choose "
                "another name"
            )
    except errors.RepositoryNotFoundError:
        # Unasked, it is as the account has it: an organisation may want all of its own private.
        api.create_repo(name, repo_type="dataset", private=private or None, exist_ok=True)
    try:
        parent = api.repo_info(name, repo_type="dataset", revision=revision).sha
    except errors.RevisionNotFoundError:
        api.create_branch(name, repo_type="dataset", branch=revision, exist_ok=True)
        parent = api.repo_info(name, repo_type="dataset", revision=revision).sha
    tree = api.list_repo_tree(name, repo_type="dataset", revision=parent, recursive=True)
    return parent, {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _check_replaceable(there: Mapping[str, Any], where: str) -> None:
    others = sorted(path for path in there if path not in _NO_SET)
    if others and layout.PLAN not in there:
        raise InputError(
            f"{where} holds something else ({', '.join(map(quoted, others[:3]))}) and no "
            f"{layout.PLAN}; choose another repository or branch for the label set"
        )


def _ours(path: str) -> bool:
    return path.split("/")[0] in _FOLDERS or path in _FILES or _figure(path)


def _figure(path: str) -> bool:
    """Whether it is a picture that a push made; others may lie beside them."""
    return path in map(figure_path, CHARTS)


def _files(
    labels: LabelSet, root: Path, scratch: Path, *, repository: str, licences: Licences
) -> dict[str, _File]:
    """Every file of the set as it is to be there, the manifest last."""
    found = manifest.parse((root / layout.MANIFEST).read_bytes(), where=layout.MANIFEST)
    # A set that was pulled has those of an earlier push.
    own = {path: digest for path, digest in found.files.items() if not _figure(path)}
    found = found.model_copy(update={"files": own})
    files = {}
    for receipt in labels.receipts:
        files[receipt.path] = _File(root / receipt.path, receipt.sha256)
        if receipt.probes and receipt.probes_sha256:
            path = layout.probes_path(labels.plan.split, receipt.unit)
            files[path] = _File(root / path, receipt.probes_sha256)
    files[layout.PLAN] = _File(root / layout.PLAN, found.plan_sha256)
    for path, digest in found.files.items():
        files[path] = _File(root / path, digest)
    made = _beside(labels, scratch, found, repository=repository, licences=licences)
    whole = found.model_copy(update={"files": found.files | made})
    (scratch / layout.MANIFEST).write_bytes(whole.to_bytes())
    made[layout.MANIFEST] = file_sha256(scratch / layout.MANIFEST)
    for path, digest in made.items():
        files[path] = _File(scratch / path, digest)
    return files


def _beside(
    labels: LabelSet, scratch: Path, found: Manifest, *, repository: str, licences: Licences
) -> dict[str, str]:
    """Make what only the Hub's page shows: pictures, preview and card; paths and sha256."""
    write_preview(labels, scratch / PREVIEW)
    measured = statistics(labels)
    (scratch / FIGURES).mkdir()
    for chart in measured.charts:
        (scratch / figure_path(chart.name)).write_bytes(picture(chart).encode())
    text = hub_card(
        labels.plan,
        labels.totals,
        repository=repository,
        licences=licences,
        statistics=measured,
        digests={layout.PLAN: found.plan_sha256, layout.SHARDS: found.files[layout.SHARDS]},
    )
    (scratch / layout.CARD).write_bytes(text.encode())
    made = [layout.CARD, PREVIEW, *(figure_path(chart.name) for chart in measured.charts)]
    return {path: file_sha256(scratch / path) for path in made}


def _same(there: Any, file: _File) -> bool:
    """Whether the repository has the file as it is, by what it says of it."""
    if there is None:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == file.sha256)
    data = file.path.read_bytes()
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def _send(
    api: Any,
    name: str,
    files: Mapping[str, _File],
    changed: list[str],
    stale: list[str],
    *,
    parent: str,
    revision: str,
) -> str:
    """Send what changed, then commit; returns the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = []
    for start in range(0, len(changed), _TOGETHER):
        batch = changed[start : start + _TOGETHER]
        for _ in in_order(_check_file, (files[p] for p in batch), workers=worker_count(None)):
            pass
        additions = [CommitOperationAdd(path, str(files[path].path)) for path in batch]
        api.preupload_lfs_files(name, additions, repo_type="dataset", revision=revision)
        operations += additions
    operations += [CommitOperationDelete(path) for path in stale]
    made = api.create_commit(
        name,
        operations,
        commit_message=f"Label set: {len(changed)} files changed, {len(stale)} removed",
        repo_type="dataset",
        revision=revision,
        parent_commit=parent,
    )
    return str(made.oid)


def _check_file(file: _File) -> None:
    receipts.check_file(file.path, file.sha256)
