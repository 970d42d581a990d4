"""Where a remote set's bytes come from: HTTP, the Hugging Face Hub, or any fsspec URL.

An origin answers two questions: bytes of a file from one place to another, and a small file whole.
What may pass (a stall, a dropped connection, 429, 5xx, an answer cut short) is asked again a few
times; what would not is an error at once. Every wait has an end.
"""

from __future__ import annotations

import atexit
import importlib
import ipaddress
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

from softlabels.errors import InputError, MissingError, RemoteError, quoted

T = TypeVar("T")

# Without a byte for this long, a request has failed. A whole answer has as long again, and then
# what a slow line needs.
TIMEOUT_S = 30.0
_SLOWEST_BYTES_PER_S = 32 << 10
TRIES = 5
# Between tries: doubled every time, and cut by a random part so that readers do not march in step.
BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 10.0
_LONGEST_RETRY_AFTER_S = 60.0
# Manifests, tokenizers and key indices; a server that sends more is not believed.
_WHOLE_BYTES = 4 << 30
# For one of them whose size is not told before.
_WHOLE_S = 600.0
_HUB = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<prefix>.+))?"
)
_GO_ON = (
    "see that the server can be reached, then go on; what the cache holds can be read without it, "
    "with SOFTLABELS_OFFLINE=1"
)
_TOKEN = "HF_TOKEN in the environment, if the repository is private or gated"


class Passing(Exception):
    """A request that may go well when it is made again.

    Attributes:
        wait_s: how long the server asks to wait.
    """

    def __init__(self, problem: str, *, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


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


def check_repository(name: str) -> None:
    """Raise `InputError` for what the Hub takes for no name of a repository."""
    from huggingface_hub.errors import HFValidationError

    hub: Any = importlib.import_module("huggingface_hub.utils")
    try:
        hub.validate_repo_id(name)
    except HFValidationError:
        raise InputError(
            f"{quoted(name)} is no repository: expected USER/NAME of letters, digits, -, _ and ., "
            "without -- or .., and none of - . .git at an end"
        ) from None


def persist(
    what: str, attempt: Callable[[], T], *, failed: str = "cannot be read", todo: str = _GO_ON
) -> T:
    """Try a request until it goes well or has failed `TRIES` times.

    Args:
        what: was wanted.
        failed, todo: what an error says of it.

    Raises:
        RemoteError: it did not go well.
    """
    for tries in range(1, TRIES + 1):
        try:
            return attempt()
        except Passing as error:
            problem = str(error)
            backoff = min(_LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (tries - 1))
            wait = max(error.wait_s, backoff * random.uniform(0.5, 1))
            if tries == TRIES or wait > _LONGEST_RETRY_AFTER_S:
                break
            time.sleep(wait)
    raise RemoteError(
        f"{what} {failed} after {tries} {'tries' if tries > 1 else 'try'}: {problem}; {todo}"
    )


@dataclass(frozen=True)
class Http:
    """Files below an address of a web server, which must answer ranged requests."""

    url: str

    def read(self, name: str, start: int, stop: int, *, size: int) -> bytes:
        """See `Origin`."""
        where = f"{self.url}/{name}"
        return persist(where, lambda: _get_range(where, _encoded(where), {}, start, stop, size))

    def whole(self, name: str) -> bytes:
        """See `Origin`."""
        where = f"{self.url}/{name}"
        return persist(where, lambda: _get(where, _encoded(where), {}))


@dataclass(frozen=True)
class Hub:
    """A data set repository of the Hugging Face Hub, or a folder of it, at one revision."""

    repo: str
    revision: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """The repository, revision and folder."""
        folder = f"/{self.prefix}" if self.prefix else ""
        return f"hf://datasets/{self.repo}@{self.revision}{folder}"

    def read(self, name: str, start: int, stop: int, *, size: int) -> bytes:
        """See `Origin`."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        where, file = f"{self.url}/{name}", self._file(name)
        address = hf_hub_url(self.repo, file, repo_type="dataset", revision=self.revision)
        headers = build_hf_headers()
        return persist(where, lambda: _get_range(where, address, headers, start, stop, size))

    def whole(self, name: str) -> bytes:
        """See `Origin`."""
        return self.download(name, offline=False).read_bytes()

    def download(self, name: str, *, offline: bool, again: bool = False) -> Path:
        """A file in huggingface_hub's own cache.

        Args:
            offline: only look there.
            again: also if it is there.

        Raises:
            RemoteError: it cannot be had.
        """
        where = f"{self.url}/{name}"
        return persist(where, lambda: self._try_download(name, where, offline, again))

    def pinned(self, file: Path, name: str) -> Hub:
        """The commit that a file in the cache belongs to (…/snapshots/COMMIT/name)."""
        depth = len(PurePosixPath(self._file(name)).parts)
        return Hub(self.repo, file.parents[depth - 1].name, self.prefix)

    def _file(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _try_download(self, name: str, where: str, offline: bool, again: bool) -> Path:
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(
                hf_hub_download(
                    self.repo,
                    self._file(name),
                    repo_type="dataset",
                    revision=self.revision,
                    local_files_only=offline,
                    force_download=again,
                )
            )
        except errors.LocalEntryNotFoundError as error:
            raise RemoteError(
                f"{where} is not in huggingface_hub's cache, and the Hub "
                "cannot be asked: unset HF_HUB_OFFLINE and SOFTLABELS_OFFLINE, or see to the "
                f"connection ({_told(error)})"
            ) from None
        except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
            raise MissingError(f"{where}: there is no such file or revision") from error
        except errors.RepositoryNotFoundError as error:
            raise RemoteError(
                f"{where}: there is no such repository, or it is not yours to read; see its name, "
                f"and set {_TOKEN}"
            ) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            _check_status(where, status, {})
            raise Passing(_told(error)) from None
        except (OSError, _transport_errors()) as error:
            raise Passing(_told(error)) from None


@dataclass(frozen=True)
class Fsspec:
    """Files below any URL that fsspec knows; options and credentials from its environment."""

    url: str

    def read(self, name: str, start: int, stop: int, *, size: int) -> bytes:
        """See `Origin`."""

        def attempt() -> bytes:
            data = self._ask(name, longest_s(stop - start), start=start, end=stop)
            if len(data) != stop - start:
                raise Passing(f"{len(data)} bytes came, {stop - start} were asked for")
            return data

        return persist(f"{self.url}/{name}", attempt)

    def whole(self, name: str) -> bytes:
        """See `Origin`."""
        return persist(f"{self.url}/{name}", lambda: self._ask(name, _WHOLE_S))

    def _ask(self, name: str, seconds: float, **place: int) -> bytes:
        return self.ask(
            f"{self.url}/{name}",
            seconds,
            lambda system, root, **limit: bytes(
                system.cat_file(f"{root}/{name}", **place, **limit)
            ),
        )

    def ask(self, where: str, seconds: float, call: Callable[..., T]) -> T:
        """Make one request.

        Args:
            where: how errors call what is asked for.
            seconds: that it may take.
            call: gets the file system, the path of the set in it, and `timeout` where the file
                system keeps one itself.

        Raises:
            FileExistsError: what was to be put only if it is not there, is there.
            MissingError: there is no such file.
            RemoteError: it would not go well another time either.
            Passing: it may.
        """
        try:
            system, root = _file_system(self.url)
            root = root.rstrip("/")
            if system.async_impl:
                return call(system, root, timeout=seconds)
            return _within(seconds, lambda: call(system, root))
        except FileNotFoundError:
            raise MissingError(f"{where}: there is no such file") from None
        except PermissionError as error:
            raise _refused(where, error) from None
        except (ImportError, ValueError) as error:
            raise RemoteError(
                f"{where}: fsspec cannot read it ({_told(error)}); for s3:// pip install "
                "'softlabels[s3]', for others the package that the message names"
            ) from None
        except Exception as error:
            if _is_there(error):
                raise FileExistsError(f"{where} is there already") from None
            if type(error).__name__.endswith("CredentialsError"):  # of botocore and google.auth
                raise _refused(where, error) from None
            # Every service raises its own; what is not about a name or a right may pass.
            raise Passing(_told(error)) from None


def _refused(where: str, error: Exception) -> RemoteError:
    return RemoteError(
        f"{where}: access is refused ({_told(error)}); set the credentials of its service in the "
        "environment"
    )


def _is_there(error: BaseException | None) -> bool:
    """Whether a put failed because the file is there; of HTTP 412, s3fs knows only Amazon's."""
    while error is not None and not isinstance(error, FileExistsError):
        response = getattr(error, "response", None)
        known = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        if known.get("HTTPStatusCode") == 412:
            return True
        error = error.__cause__
    return error is not None


_OPEN: dict[tuple[int, str], Any] = {}


def _file_system(url: str) -> tuple[Any, str]:
    """One a process: they keep threads and sockets, which a fork does not survive."""
    import fsspec  # type: ignore[import-untyped]

    key = os.getpid(), url
    if key not in _OPEN:
        _OPEN[key] = fsspec.url_to_fs(url)
    system, root = _OPEN[key]
    return system, root


def _client(address: str) -> Any:
    """A pool of connections; one a process."""
    try:
        import httpx2
    except ImportError:
        raise RemoteError("to read over HTTP, pip install 'softlabels[http]'") from None
    # A proxy that the environment names does not know this machine's own loopback.
    loopback = _is_loopback(urlsplit(address).hostname or "")
    key = os.getpid(), f"loopback {loopback}"
    if key not in _OPEN:
        made = httpx2.Client(follow_redirects=True, trust_env=not loopback)
        if _OPEN.setdefault(key, made) is made:
            atexit.register(_close, os.getpid(), made)
    return _OPEN[key]


def _close(process: int, client: Any) -> None:
    """Not in a fork: its copies of the sockets speak for the other process."""
    if os.getpid() == process:
        client.close()


def _transport_errors() -> type[Exception]:
    import httpx2

    return httpx2.RequestError


def _get_range(
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
        self._stream = _client(address).stream("GET", address, headers=plain, timeout=TIMEOUT_S)

    def __enter__(self) -> _Answer:
        try:
            self._response = self._stream.__enter__()
        except _transport_errors() as error:
            raise Passing(_told(error)) from None
        self.status: int = self._response.status_code
        self.headers: Mapping[str, str] = {"Content-Range": "", **_titled(self._response.headers)}
        try:
            _check_status(self._where, self.status, self.headers)
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
        allowed_s = longest_s(min(int(said), self._most)) if said.isdigit() else _WHOLE_S
        deadline = self._began + allowed_s
        try:
            for chunk in self._response.iter_raw():
                data += chunk
                if len(data) > self._most:
                    raise Passing(f"more than the {self._most} bytes that were asked for came")
                if time.monotonic() > deadline:
                    raise Passing(f"{len(data)} bytes in {time.monotonic() - self._began:.0f} s")
        except _transport_errors() as error:
            raise Passing(_told(error)) from None
        return bytes(data)


def _titled(headers: Any) -> dict[str, str]:
    return {name.title(): value for name, value in headers.items()}


def _check_status(where: str, status: int, headers: Mapping[str, str]) -> None:
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        asked = headers.get("Retry-After", "")
        raise Passing(
            f"HTTP {status}", wait_s=float(asked) if re.fullmatch("[0-9]{1,9}", asked) else 0.0
        )
    if status in (401, 403):
        why = f"; set {_TOKEN}" if where.startswith("hf:") else "; it needs a right you do not have"
        raise RemoteError(f"{where}: access is refused (HTTP {status}){why}")
    if status in (404, 410):
        why = f"; see its name, and set {_TOKEN}" if where.startswith("hf:") else ""
        raise MissingError(f"{where}: there is no such file (HTTP {status}){why}")
    if status == 416:
        raise _other_size(where)
    raise RemoteError(f"{where}: the server answered HTTP {status}, which is no file")


def _other_size(where: str, size: int | None = None) -> RemoteError:
    return RemoteError(
        f"{where}: it has another size than the manifest's{'' if size is None else f' {size}'}: "
        "the set was replaced on the server; open it again"
    )


def longest_s(length: int) -> float:
    """Seconds that an answer of this many bytes may take."""
    return 2 * TIMEOUT_S + length / _SLOWEST_BYTES_PER_S


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns, if it does so in time; else its thread is left behind."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="softlabels-fsspec")
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return found[0]


def _encoded(url: str) -> str:
    return quote(url, safe=":/?[]@!$&'()*+,;=%~")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _told(error: BaseException) -> str:
    """An error in words, without what a URL may hold: credentials, and signed queries."""
    text = re.sub(r"(\w://)[^/\s@]*@", r"\1", str(error))
    text = re.sub(r"\?[^\s\"')]+", "?…", text)
    return f"{type(error).__name__}: {quoted(text, limit=160)}"
