"""A web server on loopback that serves a folder in ranges, counts what it sends, and has faults."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

S = TypeVar("S", bound=ThreadingHTTPServer)
Fault = Callable[["Handler", bytes, int, int], None]


@dataclass(frozen=True)
class Request:
    """What was asked, and how many bytes of the body were sent."""

    path: str
    range: str | None
    sent: int


class FileServer(ThreadingHTTPServer):
    """What a test sets up beforehand and looks at afterwards.

    Attributes:
        root: the folder that is served as /set; may be changed at any time.
        faults: each takes the place of one answer to a ranged request, the first one first.
        fault: takes the place of all of them.
        delay_s: before every answer to a ranged request.
        missing: headers of a 404.
        refusal: headers of a 401 that answers everything.
        requests: that were answered.
        headers: of the last request.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}/set"
        self.faults: deque[Fault] = deque()
        self.fault: Fault | None = None
        self.delay_s = 0.0
        self.missing: dict[str, str] = {}
        self.refusal: dict[str, str] | None = None
        self.requests: list[Request] = []
        self.headers: dict[str, str] = {}
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""

    def find(self, path: str) -> tuple[Path, dict[str, str]] | None:
        """The file of a path, and further headers of the answer."""
        found = re.fullmatch(r"/set/([^?]+)(\?.*)?", unquote(path))
        return (self.root / found[1], {}) if found else None

    @property
    def ranged(self) -> list[Request]:
        return [request for request in self.requests if request.range]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        if (found := self.find()) is not None:
            file, headers = found
            self.answer(200, b"", headers | {"Content-Length": str(file.stat().st_size)})

    def do_GET(self) -> None:
        self.server.headers = dict(self.headers)
        if (found := self.find()) is None:
            return
        data, asked = found[0].read_bytes(), self.headers.get("Range")
        if asked is None:
            self.answer(200, data, found[1])
            return
        time.sleep(self.server.delay_s)
        place = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        assert place is not None
        start, stop = int(place[1]), int(place[2]) + 1
        with self.server.lock:
            fault = self.server.faults.popleft() if self.server.faults else self.server.fault
        if fault is not None:
            fault(self, data, start, stop)
        else:
            self.serve(data, start, stop)

    def find(self) -> tuple[Path, dict[str, str]] | None:
        """The file that is asked for; refused if there is none."""
        if self.server.refusal is not None:
            self.refuse(401, self.server.refusal)
            return None
        found = self.server.find(self.path)
        if found is None or not found[0].is_file():
            self.refuse(404, self.server.missing)
            return None
        return found

    def serve(self, data: bytes, start: int, stop: int) -> None:
        """The range that was asked for."""
        if stop > len(data):
            self.refuse(416)
            return
        self.answer(
            206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        )

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        with self.server.lock:
            self.server.requests.append(Request(self.path, self.headers.get("Range"), len(body)))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.answer(status, b"", headers or {})


@contextmanager
def serving(server: S) -> Iterator[S]:
    """A server at work."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def stalls(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Says that it comes, sends a bit, and then nothing until the client has gone."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    handler.wfile.write(data[start : start + 1])
    handler.connection.settimeout(10)
    handler.rfile.read(1)
    handler.close_connection = True


def drips(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Sends a byte now and then: no single wait is long."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    handler.close_connection = True
    for place in range(start, stop):
        handler.wfile.write(data[place : place + 1])
        time.sleep(0.02)


def drops(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Goes away half way."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    handler.wfile.write(data[start : (start + stop) // 2])
    handler.close_connection = True


def short(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Claims the range, and sends a byte less without saying so."""
    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    handler.answer(206, data[start : stop - 1], headers)


def other_range(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Sends as many bytes from the beginning of the file."""
    headers = {"Content-Range": f"bytes 0-{stop - start - 1}/{len(data)}"}
    handler.answer(206, data[: stop - start], headers)


def no_number(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """A range in digits of which no number is made."""
    headers = {"Content-Range": f"bytes {'1' * 5000}-{'2' * 5000}/*"}
    handler.answer(206, data[start:stop], headers)


def flipped(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """The range, with one bit flipped on the way."""
    spoilt = bytearray(data)
    spoilt[(start + stop) // 2] ^= 1
    handler.serve(bytes(spoilt), start, stop)


def ignores_ranges(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.answer(200, data, {})


def says(status: int, **headers: str) -> Fault:
    def fault(handler: Handler, data: bytes, start: int, stop: int) -> None:
        handler.refuse(status, {name.replace("_", "-"): value for name, value in headers.items()})

    return fault
