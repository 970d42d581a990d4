"""Where a remote set's bytes come from: the Hugging Face Hub, HTTP, or any fsspec URL.

An origin answers two questions: bytes of a file from one place to another, and a small file whole.
"""

from __future__ import annotations

import re
from typing import Protocol
from urllib.parse import unquote, urlsplit

from softlabels.errors import InputError, quoted
from softlabels.stores.fsspec_files import Fsspec
from softlabels.stores.http import Http
from softlabels.stores.hub import Hub, check_repository

_HUB = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<prefix>.+))?"
)


class Origin(Protocol):
    """A remote label set's files.

    Attributes:
        url: of the set, pinned to a revision where there are revisions; without credentials.
    """

    @property
    def url(self) -> str: ...

    def read(self, name: str, start: int, stop: int, *, size: int) -> bytes:
        """Bytes start … stop − 1 of a file that has `size` of them, in one request.

        Raises:
            RemoteError: they cannot be had.
        """

    def whole(self, name: str) -> bytes:
        """All of a small file; raises `RemoteError`."""


def parse(url: str) -> Origin:
    """The origin that a URL names; nothing is asked yet.

    Raises:
        InputError: it holds a secret, or names no place that can be read.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"the label set's URL is none ({error})") from None
    over_http = parts.scheme in ("http", "https")
    if (
        parts.password is not None
        or (over_http and parts.username is not None)
        or ((over_http or parts.scheme == "hf") and (parts.query or parts.fragment))
    ):
        # Not shown: what stands there is a secret more often than not.
        raise InputError(
            "the label set's URL has a password, a query or a fragment; leave them out: "
            "credentials come from the environment only"
        )
    url = url.rstrip("/")
    if parts.scheme == "hf":
        found = _HUB.fullmatch(url)
        if found is None:
            raise InputError(f"{quoted(url)}: expected hf://datasets/USER/NAME[@REVISION][/FOLDER]")
        check_repository(found["repo"])
        return Hub(found["repo"], unquote(found["revision"] or "main"), found["prefix"] or "")
    return Http(url) if over_http else Fsspec(url)
