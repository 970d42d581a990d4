"""Files of a web server, in ranged requests; the Hub's answers are read by the same rules."""

from __future__ import annotations

import atexit
import ipaddress
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from softlabels.errors import MissingError, RemoteError
from softlabels.stores import asking
from softlabels.stores.asking import WHOLE_S, Passing, longest_s, persist, told

# Manifests, tokenizers and key indices; a server that sends more is not believed.
_WHOLE_BYTES = 4 << 30
_CLIENTS: dict[tuple[int, bool], Any] = {}
TOKEN = "HF_TOKEN in the environment, if the repository is private or gated"


@dataclass(frozen=True)
class Http:
    """Files below an address of a web server, which must answer ranged requests."""

    url: str

    def read(self, name: str, start: int, stop: int, *, size: int) -> bytes:
        """See `Origin`."""
        where = f"{self.url}/{name}"
        return persist(where, lambda: get_range(where, _encoded(where), {}, start, stop, size))

    def whole(self, name: str) -> bytes:
        """See `Origin`."""
        where = f"{self.url}/{name}"
        return persist(where, lambda: _get(where, _encoded(where), {}))


def get_range(
    where: str, address: str, headers: Mapping[str, str], start: int, stop: int, size: int
) -> bytes:
    """One ranged request; the answer must be the range that was asked for, and of that file."""
    ranged = {**headers, "Range": f"bytes={start}-{stop - 1}"}
    with _Answer(where, address, ranged, most=stop - start) as answer:
        if answer.status == 200:
            raise RemoteError(
                f"{where}: the server ignores ranged requests and would send all {size} bytes for "
                "every few records; copy the set to a disk, or serve it from one that knows them"
            )
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", answer.headers["Content-Range"]
        )
        if found is None or (int(found[1]), int(found[2])) != (start, stop - 1):
            raise Passing(f"bytes {start}-{stop - 1} were asked for, others came")
        if found[3] not in ("*", str(size)):
            raise _other_size(where, size)
        data = answer.body()
    if len(data) != stop - start:
        raise Passing(f"{len(data)} bytes came, {stop - start} were asked for")
    return data


def _get(where: str, address: str, headers: Mapping[str, str]) -> bytes:
    with _Answer(where, address, headers, most=_WHOLE_BYTES) as answer:
        return answer.body()


class _Answer:
    """A response while its body arrives; closed unread if it is not what was asked for."""

    def __init__(self, where: str, address: str, headers: Mapping[str, str], *, most: int) -> None:
        self._where, self._most = where, most
        # Compressed, a body would have another length than the range.
        plain = {**headers, "Accept-Encoding": "identity"}
        self._began = time.monotonic()
        self._stream = _client(address).stream(
            "GET", address, headers=plain, timeout=asking.TIMEOUT_S
        )

    def __enter__(self) -> _Answer:
        try:
            self._response = self._stream.__enter__()
        except transport_errors() as error:
            raise Passing(told(error)) from None
        self.status: int = self._response.status_code
        self.headers: Mapping[str, str] = {"Content-Range": "", **_titled(self._response.headers)}
        try:
            check_status(self._where, self.status, self.headers)
        except Exception:
            self._stream.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)

    def body(self) -> bytes:
        """The bytes; never more than were asked for, and never for ever."""
        data = bytearray()
        said = self.headers.get("Content-Length", "")
        allowed_s = longest_s(min(int(said), self._most)) if said.isdigit() else WHOLE_S
        deadline = self._began + allowed_s
        try:
            for chunk in self._response.iter_raw():
                data += chunk
                if len(data) > self._most:
                    raise Passing(f"more than the {self._most} bytes that were asked for came")
                if time.monotonic() > deadline:
                    raise Passing(f"{len(data)} bytes in {time.monotonic() - self._began:.0f} s")
        except transport_errors() as error:
            raise Passing(told(error)) from None
        return bytes(data)


def check_status(where: str, status: int, headers: Mapping[str, str]) -> None:
    """Raise `Passing`, `MissingError` or `RemoteError` for an answer that is no file."""
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        asked = headers.get("Retry-After", "")
        raise Passing(
            f"HTTP {status}", wait_s=float(asked) if re.fullmatch("[0-9]{1,9}", asked) else 0.0
        )
    if status in (401, 403):
        why = f"; set {TOKEN}" if where.startswith("hf:") else "; it needs a right you do not have"
        raise RemoteError(f"{where}: access is refused (HTTP {status}){why}")
    if status in (404, 410):
        why = f"; see its name, and set {TOKEN}" if where.startswith("hf:") else ""
        raise MissingError(f"{where}: there is no such file (HTTP {status}){why}")
    if status == 416:
        raise _other_size(where)
    raise RemoteError(f"{where}: the server answered HTTP {status}, which is no file")


def _client(address: str) -> Any:
    """A pool of connections; one a process."""
    try:
        import httpx2
    except ImportError:
        raise RemoteError("to read over HTTP, pip install 'softlabels[http]'") from None
    # A proxy that the environment names does not know this machine's own loopback.
    loopback = _is_loopback(urlsplit(address).hostname or "")
    key = os.getpid(), loopback
    if key not in _CLIENTS:
        made = httpx2.Client(follow_redirects=True, trust_env=not loopback)
        if _CLIENTS.setdefault(key, made) is made:
            atexit.register(_close, os.getpid(), made)
    return _CLIENTS[key]


def _close(process: int, client: Any) -> None:
    """Not in a fork: its copies of the sockets speak for the other process."""
    if os.getpid() == process:
        client.close()


def transport_errors() -> type[Exception]:
    """What a connection raises that fails, as a class."""
    import httpx2

    return httpx2.RequestError


def _titled(headers: Any) -> dict[str, str]:
    return {name.title(): value for name, value in headers.items()}


def _other_size(where: str, size: int | None = None) -> RemoteError:
    return RemoteError(
        f"{where}: it has another size than the manifest's{'' if size is None else f' {size}'}: "
        "the set was replaced on the server; open it again"
    )


def _encoded(url: str) -> str:
    return quote(url, safe=":/?[]@!$&'()*+,;=%~")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
