"""Files below any URL that fsspec knows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from softlabels.errors import MissingError, RemoteError
from softlabels.stores.asking import WHOLE_S, Passing, longest_s, persist, told

T = TypeVar("T")


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
        return persist(f"{self.url}/{name}", lambda: self._ask(name, WHOLE_S))

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
                f"{where}: fsspec cannot read it ({told(error)}); for s3:// pip install "
                "'softlabels[s3]', for others the package that the message names"
            ) from None
        except Exception as error:
            if _is_there(error):
                raise FileExistsError(f"{where} is there already") from None
            if type(error).__name__.endswith("CredentialsError"):  # of botocore and google.auth
                raise _refused(where, error) from None
            # Every service raises its own; what is not about a name or a right may pass.
            raise Passing(told(error)) from None


def _refused(where: str, error: Exception) -> RemoteError:
    return RemoteError(
        f"{where}: access is refused ({told(error)}); set the credentials of its service in the "
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


_SYSTEMS: dict[tuple[int, str], Any] = {}


def _file_system(url: str) -> tuple[Any, str]:
    """One a process: they keep threads and sockets, which a fork does not survive."""
    import fsspec  # type: ignore[import-untyped]

    key = os.getpid(), url
    if key not in _SYSTEMS:
        _SYSTEMS[key] = fsspec.url_to_fs(url)
    system, root = _SYSTEMS[key]
    return system, root


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
