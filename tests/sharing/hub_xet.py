"""A Hub on loopback with Xet storage: hf_xet itself sends to it, into a store in a folder.

The Hub gives out a token and says where the store is; the client cuts files into chunks and puts
them there, with a shard that says which file is which chunks. As the real one, this Hub commits a
large file only if the store has a file of that sha256; the store gives it back to whoever asks.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from pathlib import Path
from typing import Any, ClassVar

from hub_repository import Refused
from hub_server import NAME, Handler, Hub

_LINE = 48
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30


def _token(handler: Handler, name: str, kind: str, _: str) -> None:
    server = handler.server
    assert isinstance(server, XetHub)
    handler.repository(name, write=kind == "write")
    if server.refuse_storage:
        raise Refused(403, message="no storage for you")
    end = int(time.time()) + 3600
    told = {"accessToken": "x", "exp": end, "casUrl": server.store}
    # hf_xet reads the body, the client the headers.
    headers = {"X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(end)}
    handler.answer(json.dumps(told).encode(), 200, headers | {"X-Xet-Cas-Url": server.store})


class XetHub(Hub):
    """With a store.

    Args:
        folder: for the store.

    Attributes:
        store: its URL.
        refuse_storage: whether no tokens are given out.
    """

    more_reads: ClassVar[list[Any]] = [
        (rf"/api/datasets/{NAME}/xet-(read|write)-token/([^/]+)", _token)
    ]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.store = f"local://{folder / 'store'}"
        self.refuse_storage = False

    def has(self, digest: str) -> bool:
        """See `Hub`; what the store has is put together from its chunks."""
        return super().has(digest) or self._fetch(digest)

    def storage(self, digest: str) -> dict[str, str]:
        """See `Hub`."""
        key = self.sent().get(digest)
        if key is None:
            return {}
        name = next(name for name, r in self.repositories.items() if r.branches)
        route = f"{self.url}/api/datasets/{name}/xet-read-token/main"
        return {"X-Xet-Hash": key, "X-Xet-Refresh-Route": route}

    def sent(self) -> dict[str, str]:
        """What the store calls each file in it, by sha256."""
        found: dict[str, str] = {}
        for shard in self._folder.rglob("shards/*.mdb"):
            found |= _files_of(shard.read_bytes())
        return found

    def _fetch(self, digest: str) -> bool:
        import hf_xet

        key = self.sent().get(digest)
        if key is None:
            return False
        out = self._folder / digest
        with hf_xet.XetSession().new_file_download_group(endpoint=self.store) as group:
            group.start_download_file(hf_xet.XetFileInfo(key), str(out))
        assert hashlib.sha256(out.read_bytes()).hexdigest() == digest
        self.keep(out.read_bytes())
        return True


def _files_of(shard: bytes) -> dict[str, str]:
    """Its section of files: a header of two lines' width, then blocks of lines of 48 bytes."""
    place, found = _LINE, {}
    while place + _LINE <= len(shard) and shard[place : place + 32] != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", shard, place + 32)
        lines = 1 + segments * (2 if flags & _VERIFIED else 1)
        if flags & _WITH_SHA256:
            found[_hex(shard, place + lines * _LINE)] = _hex(shard, place)
            lines += 1
        place += lines * _LINE
    return found


def _hex(shard: bytes, place: int) -> str:
    """Hashes are four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", shard, place))
