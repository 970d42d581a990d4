"""A pool of connections to one HTTP server, which tries again what may pass."""

from __future__ import annotations

import email.utils
import ipaddress
import json
import random
import re
import threading
import time
import weakref
from typing import Any
from urllib.parse import urlsplit

import httpx2

from softlabels.errors import TeacherError, quoted

# Between tries: doubled every time, and cut by a random part so that clients do not march in step.
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 30.0
# A server that asks for more is down for a run that nobody watches.
_LONGEST_RETRY_AFTER_S = 600.0


class Connection:
    """A pool of connections to one server; closed with its owner."""

    def __init__(
        self, url: str, *, api_key: str | None, concurrency: int, retries: int, timeout: float
    ) -> None:
        self._base, host = _address(url)
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise TeacherError("the API key is empty, or has spaces or characters outside ASCII")
        self._key, self._retries = api_key, retries
        client = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            limits=httpx2.Limits(
                max_connections=concurrency, max_keepalive_connections=concurrency
            ),
            # A proxy that the environment names does not know this machine's own loopback.
            trust_env=not is_loopback(host),
        )
        self._client = client
        weakref.finalize(self, client.close)

    def __str__(self) -> str:
        return f"the server {quoted(self._base)}"

    def ask(
        self, method: str, path: str, body: Any = None, stop: threading.Event | None = None
    ) -> httpx2.Response:
        """A response that trying again would not change, whatever its status.

        Args:
            stop: set when nobody waits for it any more.

        Raises:
            TeacherError: no such response in all tries.
        """
        stop = stop or threading.Event()
        for tries in range(1, self._retries + 2):
            asked_to_wait = 0.0
            try:
                response = self._client.request(method, self._base + path, json=body)
            except httpx2.RequestError as error:
                problem = f"{type(error).__name__}: {self._redacted(str(error))}"
            else:
                if response.status_code not in (408, 425, 429) and response.status_code < 500:
                    return response
                problem = f"HTTP {response.status_code}: {self.said(response)}"
                asked_to_wait = _retry_after(response)
            backoff = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** (tries - 1))
            wait = max(asked_to_wait, backoff * random.uniform(0.5, 1))
            if tries > self._retries or wait > _LONGEST_RETRY_AFTER_S or stop.wait(wait):
                break
        asked = f", and asks to wait {asked_to_wait:g} s" if asked_to_wait else ""
        raise TeacherError(
            f"{self} gave no answer to {method} {path} in {tries} {'tries' if tries > 1 else 'try'}"
            f": {problem.rstrip('.')}{asked}. See that it runs, then start again; or give it more "
            "time with timeout=, or fewer requests with concurrency="
        )

    def json(self, response: httpx2.Response) -> Any:
        """What it says.

        Raises:
            TeacherError: the status is not 200, or it is no JSON.
        """
        if response.status_code in (401, 403):
            raise TeacherError(
                f"{self} refuses the API key, or the lack of one (HTTP {response.status_code}); "
                "pass api_key="
            )
        if response.status_code != 200:
            raise TeacherError(
                f"{self} answered {response.url.path} with HTTP {response.status_code}: "
                f"{self.said(response)}"
            )
        try:
            return response.json()
        except ValueError:
            raise TeacherError(
                f"{self} answered {response.url.path} with what is no JSON: "
                f"{quoted(self._redacted(response.text))}; is it a server of the OpenAI API?"
            ) from None

    def said(self, response: httpx2.Response) -> str:
        """The message of an error, quoted: a server may echo anything, the key included."""
        text = response.text
        try:
            found = json.loads(text)
            found = found.get("error") or found.get("detail") or found.get("message") or text
            text = str(found.get("message", found) if isinstance(found, dict) else found)
        except (ValueError, AttributeError):
            pass  # a proxy's page, or a bare string: shown as it is
        return quoted(self._redacted(text), limit=300)

    def version(self) -> str:
        """The server's version; empty where it has no such route."""
        response = self.ask("GET", "/version")
        try:
            return str(response.json()["version"]) if response.status_code == 200 else ""
        except (ValueError, LookupError, TypeError):
            return ""

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def _address(url: str) -> tuple[str, str]:
    """The base of all paths, and the host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not shown: what stands there is a secret more often than not.
        raise TeacherError(
            "the server's URL has a user, a query or a fragment; leave them out and pass a key as "
            "api_key="
        )
    if not host or parts.scheme not in ("http", "https"):
        raise TeacherError(
            f"{quoted(url)} is no server's address; expected one such as http://127.0.0.1:8000"
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}", host


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    parsed = email.utils.parsedate_tz(value)
    return 0.0 if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time.time())
