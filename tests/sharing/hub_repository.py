"""A data set repository of the Hub on loopback: commits, branches, and how files are named."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

LARGE = re.compile(r".*\.(parquet|index|bin)$")
LAST_COMMIT = {"id": "0" * 40, "title": "push", "date": "2026-01-01T00:00:00.000Z"}


@dataclass
class Repository:
    """A data set repository.

    Attributes:
        commits: sha → path → sha256 of the file.
        branches: name → sha.
    """

    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, str]) -> str:
        """Put a tree on a branch."""
        seed = f"{branch} {len(self.history)} {sorted(files.items())}"
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.history.append(sha)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit that a branch or sha names."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
