"""Servers of the OpenAI API that also tell the log-probs of a prompt's tokens, as vLLM does.

SGLang's and llama.cpp's OpenAI routes name tokens by their text, or not at all; their answers are
refused with what they lack.
"""

from __future__ import annotations

import email.utils
import importlib
import ipaddress
import json
import math
import random
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import TeacherError, quoted
from softlabels.labels import SoftLabels, sum_tolerance
from softlabels.teachers.identity import TeacherIdentity

# Between tries: doubled every time, and cut by a random part so that clients do not march in step.
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 30.0
# A server that asks for more is down for a run that nobody watches.
_LONGEST_RETRY_AFTER_S = 600.0
# What servers write for −inf, which JSON cannot hold.
_NEVER = -9999.0
# The last token's own distribution is told only as that of a token after it, and a request
# generates one token at least.
_EXTRA_TOKENS = 2
_CANARY_TOKENS, _CANARY_K = 8, 4
# bfloat16 logits between 16 and 32 are 0.125 apart: another batch may move one by such a step.
_CANARY_TOLERANCE = 0.2


class RecordRefused(Exception):
    """The server will not take this prompt, and may well take others: no `SoftLabelsError`."""


class Server:
    """A model behind `/v1/completions` that answers `prompt_logprobs`.

    A causal model: the log-probs of a record's last position are those of one more token, its
    hard label where that is known.

    Args:
        url: of the server, e.g. "http://127.0.0.1:8000", with or without "/v1". It is no part of
            the identity: a server that has moved is the same teacher.
        model: which of its models; by default the only one.
        tokenizer: a transformers tokenizer, or the name or folder of one; by default that of the
            folder or Hub name (owner/model) that the server tells, None where there is none such.
        classes: V; by default from the config beside the tokenizer, else the tokenizer's length.
        api_key: sent as a bearer token; never stored and never shown.
        concurrency: requests at a time, one record each. A batch of fewer records has fewer.
        retries: more tries after an overload, a fault of the server's or of the connection.
        timeout: seconds that a try may take.

    Raises:
        TeacherError: the address is unusable, nobody answers, or it has no such model.
    """

    temperatures: tuple[float, ...] = (1.0,)

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        tokenizer: Any = None,
        classes: int | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 120.0,
    ) -> None:
        if classes is not None and classes < 1:
            raise TeacherError(f"classes is {classes}; it must be the width of the logits")
        if concurrency < 1 or retries < 0 or not timeout > 0:
            raise TeacherError(
                f"concurrency={concurrency}, retries={retries}, timeout={timeout}: a server needs "
                "one request at a time at least, no fewer than 0 retries, and some seconds"
            )
        self._http = _Connection(
            url, api_key=api_key, concurrency=concurrency, retries=retries, timeout=timeout
        )
        self._concurrency, self._tokenizer, self._classes = concurrency, tokenizer, classes
        card = _card(self._http, model)
        self.model: str = card["id"]
        named = isinstance(tokenizer, (str, Path))
        self._files = tokenizer if named else _files(card.get("root"), self.model)
        length = card.get("max_model_len")
        self.max_length: int | None = length - _EXTRA_TOKENS if isinstance(length, int) else None

    @cached_property
    def classes(self) -> int:
        """V.

        Raises:
            TeacherError: it was not given and cannot be found.
        """
        if self._classes is not None:
            return self._classes
        config = _pretrained("AutoConfig", self._files)
        if config is not None:
            return int(config.get_text_config().vocab_size)
        if self.tokenizer is not None:
            return len(self.tokenizer)
        raise TeacherError(
            f"{self._http}: this machine has no config or tokenizer of the model "
            f"{quoted(self.model)}; name its folder or Hub name with tokenizer=, or its number of "
            "classes with classes="
        )

    @cached_property
    def tokenizer(self) -> Any | None:
        """A transformers tokenizer; None where none was given and none is found."""
        if self._tokenizer is not None and not isinstance(self._tokenizer, (str, Path)):
            return self._tokenizer
        found = _pretrained("AutoTokenizer", self._files)
        if found is None and self._tokenizer is not None:
            raise TeacherError(
                f"there is no tokenizer {quoted(self._tokenizer)}, or the extra for it is not "
                "installed: pip install 'softlabels[transformers]'"
            )
        return found

    @cached_property
    def identity(self) -> TeacherIdentity:
        """The model's name and, as `config`, a canary: what it believes of a fixed prompt.

        Weights cannot be digested from afar. The canary holds the likeliest classes of a few
        positions with their log-probs, as text. Where a batch's other requests change the last
        bits, no rounding is stable, so two canaries are compared by `recognise`.
        """
        return TeacherIdentity(
            name=_public(self.model),
            revision=None,
            weights=None,
            config=self._canary(),
            dtype=None,
            engine="openai-server",
            engine_version=self._http.version(),
            classes=self.classes,
            logits_known=False,
        )

    def recognise(self, earlier: TeacherIdentity) -> TeacherIdentity:
        """This teacher's identity with the canary of an earlier one that agrees with its own.

        They agree where no log-prob differs by more than 0.2 nats. Identities of one model are
        equal after that, so that a plan that was begun with `earlier` is gone on with; those of
        two models are not.
        """
        own = self.identity
        if earlier.engine != own.engine or not _agree(own.config, earlier.config):
            return own
        return own.model_copy(update={"config": earlier.config})

    def labels(
        self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor, hard_labels: Tensor, k: int
    ) -> Iterator[SoftLabels]:
        """The top k of the wanted positions, a record at a time; no more than a few are held.

        Args:
            input_ids: int64, shape (B, T), padded on the right.
            wanted: bool, (B, T); which positions to label.
            padding: bool, (B, T); which tokens are none.
            hard_labels: int64, (N,) for the N wanted positions in row-major order; −1 where there
                is none.

        Yields:
            batch shape (rows,), together (N,): ids in descending log-prob, equal ones ascending,
            log-probs float32, tails at T = 1, no logsumexp. A hard label that the server does not
            tell is NaN: one that is neither among the top k nor the next token.

        Raises:
            TeacherError: the server is down, refuses k, or its answer is not what was asked for.
            RecordRefused: it refuses one prompt, e.g. as too long.
        """
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="softlabels-server")
        pending: deque[Future[SoftLabels]] = deque()
        try:
            for prompt in _prompts(input_ids, wanted, padding, hard_labels):
                pending.append(pool.submit(self._label, prompt, k, stop))
                # Twice as many as are asked at a time: a slow record must not idle the others.
                if len(pending) >= 2 * self._concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _label(self, prompt: _Prompt, k: int, stop: threading.Event) -> SoftLabels:
        request = {
            "model": self.model,
            "prompt": prompt.tokens,
            "prompt_logprobs": k,
            "max_tokens": 1,
            "temperature": 0,
            "add_special_tokens": False,
        }
        response = self._http.ask("POST", "/v1/completions", request, stop)
        if response.status_code in (400, 413, 422):
            reason = self._http.said(response)
            if "logprobs" not in reason:
                raise RecordRefused(f"{self._http} refused {len(prompt.tokens)} tokens: {reason}")
            found = re.search(r"max\w* allowed\D*(\d+)", reason)
            most = f"at most {found[1]}" if found else "fewer"
            raise TeacherError(
                f"{self._http} allows {most} log-probs a position, k is {k}; start it with "
                f"--max-logprobs {k} (vLLM), or choose a smaller k. It says: {reason}"
            )
        answer = self._http.json(response)
        try:
            return _soft_labels(answer, prompt, k=k, classes=self.classes)
        except _Unusable as error:
            raise TeacherError(f"{self._http}, model {quoted(self.model)}: {error}") from None

    def _canary(self) -> str:
        size = min(_CANARY_TOKENS, self.max_length or _CANARY_TOKENS)
        # A stride that is a large prime spreads the tokens over the vocabulary.
        ids = (torch.arange(1, size + 1) * 7919).remainder(self.classes).unsqueeze(0)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        try:
            (labels,) = self.labels(
                ids,
                everywhere,
                padding=~everywhere,
                hard_labels=torch.full((size,), -1),
                k=min(_CANARY_K, self.classes),
            )
        except RecordRefused as error:
            raise TeacherError(f"a prompt of {size} tokens was not taken: {error}") from error
        return ";".join(
            ",".join(f"{token}:{value:.2f}" for token, value in zip(*position, strict=True))
            for position in zip(labels.ids.tolist(), labels.log_probs.tolist(), strict=True)
        )


class _Connection:
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
            trust_env=not _is_loopback(host),
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


def _is_loopback(host: str) -> bool:
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


def _card(http: _Connection, model: str | None) -> dict[str, Any]:
    """What the server says of a model: its id and perhaps root and max_model_len."""
    response = http.ask("GET", "/v1/models")
    if response.status_code in (404, 405):
        if model is None:
            raise TeacherError(f"{http} does not list its models; name one with model=")
        return {"id": model}
    listed = http.json(response)
    try:
        cards = {str(card["id"]): card for card in listed["data"]}
    except (LookupError, TypeError):
        raise TeacherError(
            f"{http} answered /v1/models without a list of models; is it a server of the OpenAI "
            "API?"
        ) from None
    names = ", ".join(map(quoted, cards)) or "none"
    if model is None and len(cards) != 1:
        raise TeacherError(f"{http} has {len(cards)} models; name one with model=: {names}")
    if model is not None and model not in cards:
        raise TeacherError(f"{http} has no model {quoted(model)}; it has: {names}")
    return {**cards[model or next(iter(cards))]}


def _files(*names: str | None) -> str | None:
    """The first that is a folder here or has the form owner/model.

    A bare name is what the server's owner liked to call it: on the Hub it may be another model.
    """
    for name in names:
        if name and (Path(name).is_dir() or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)):
            return name
    return None


def _pretrained(kind: str, name: str | Path | None) -> Any | None:
    """transformers' `kind` of a name or folder; None where there is none, or no transformers."""
    if name is None:
        return None
    try:
        loader = getattr(importlib.import_module("transformers"), kind)
        return loader.from_pretrained(str(name), trust_remote_code=False)
    except (ImportError, OSError, ValueError, KeyError):
        return None


def _public(model: str) -> str:
    """A Hub name as it is; of a folder, its name: paths of the server's are nobody's business."""
    on_hub = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)
    return model if on_hub else Path(model).name or "model"


def _agree(one: str | None, other: str | None) -> bool:
    """Whether two canaries may be of one model."""
    try:
        ours, theirs = _parsed(one), _parsed(other)
    except (ValueError, AttributeError):
        return False
    return len(ours) == len(theirs) and all(map(_close, ours, theirs))


def _parsed(canary: Any) -> list[dict[int, float]]:
    positions = [dict(entry.split(":") for entry in p.split(",")) for p in canary.split(";")]
    return [{int(token): float(value) for token, value in p.items()} for p in positions]


def _close(ours: dict[int, float], theirs: dict[int, float]) -> bool:
    return _within(ours, theirs) and _within(theirs, ours)


def _within(ours: dict[int, float], theirs: dict[int, float]) -> bool:
    # A class that they did not keep is no likelier than the least one that they did.
    least = min(theirs.values())
    rises = (value - theirs.get(token, least) for token, value in ours.items())
    return max(rises) <= _CANARY_TOLERANCE


@dataclass(frozen=True)
class _Prompt:
    """A record as it is sent.

    Attributes:
        tokens: up to the one after the last wanted position.
        positions: the wanted ones, ascending.
        hard_labels: theirs; −1 where there is none.
    """

    tokens: list[int]
    positions: list[int]
    hard_labels: list[int]


def _prompts(
    input_ids: Tensor, wanted: Tensor, padding: Tensor, hard_labels: Tensor
) -> Iterator[_Prompt]:
    done = 0
    for row, ids in enumerate(input_ids):
        positions = wanted[row].nonzero().flatten().tolist()
        if not positions:
            continue
        hard = hard_labels[done : done + len(positions)].tolist()
        done += len(positions)
        tokens = ids[~padding[row]].tolist()
        # Any token does after the last one: a causal model does not look ahead. The hard label,
        # where there is one, has its log-prob told.
        tokens.append(hard[-1] if hard[-1] >= 0 else tokens[-1])
        yield _Prompt(tokens[: positions[-1] + 2], positions, hard)


class _Unusable(Exception):
    """What is wrong with an answer."""


def _soft_labels(answer: Any, prompt: _Prompt, *, k: int, classes: int) -> SoftLabels:
    """The labels that an answer tells.

    `prompt_logprobs[i]` is the distribution that token i was drawn from, which is that of
    position i − 1; the first one is null.
    """
    try:
        told = answer["choices"][0]["prompt_logprobs"]
        found = len(told)
    except (LookupError, TypeError):
        raise _Unusable(
            "the answer has no choices[0].prompt_logprobs; a server that tells the log-probs of a "
            "prompt by token id is needed, as vLLM's does"
        ) from None
    if found != len(prompt.tokens):
        raise _Unusable(f"{found} prompt_logprobs for a prompt of {len(prompt.tokens)} tokens")
    shape = len(prompt.positions), k + 1
    # A slot that is not filled sorts last.
    ids, ranks = np.full(shape, classes, np.int64), np.zeros(shape, np.int64)
    log_probs, hard = np.full(shape, -np.inf, np.float32), np.full(shape[0], np.nan, np.float32)
    for row, (t, label) in enumerate(zip(prompt.positions, prompt.hard_labels, strict=True)):
        entry = _entry(told[t + 1], t, k=k, token=prompt.tokens[t + 1])
        size = len(entry)
        ids[row, :size], log_probs[row, :size], ranks[row, :size] = zip(*entry, strict=True)
        hard[row] = next((value for token, value, _ in entry if token == label), np.nan)
    order = np.lexsort((ids, -log_probs))[:, :k]
    _check(ids, ranks, prompt.positions, k=k, classes=classes)
    kept = np.take_along_axis(log_probs, order, 1)
    _check_log_probs(kept, prompt.positions)
    values = torch.from_numpy(kept)
    return SoftLabels(
        ids=torch.from_numpy(np.take_along_axis(ids, order, 1)),
        log_probs=values,
        log_tails=_log_tails(values, classes),
        temperatures=(1.0,),
        hard_log_probs=torch.from_numpy(np.where(hard <= _NEVER, -np.inf, hard)),
        classes=classes,
    )


def _entry(found: Any, position: int, *, k: int, token: int) -> list[tuple[int, float, int]]:
    """Id, log-prob and rank of every class that is told of a position; rank 0 where none is."""
    try:
        entry = [
            (int(name), float(value["logprob"]), int(value.get("rank") or 0))
            for name, value in found.items()
        ]
    except (AttributeError, LookupError, TypeError, ValueError):
        raise _Unusable(
            f"position {position}: expected log-probs by token id, found "
            f"{quoted(json.dumps(found), limit=160)}"
        ) from None
    values = {name: value for name, value, _ in entry}
    if len(values) != len(entry) or not k <= len(entry) <= k + 1:
        raise _Unusable(
            f"position {position}: {len(values)} classes in {len(entry)} entries; expected "
            f"{k}, or {k + 1} with the token that comes next"
        )
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise _Unusable(
            f"position {position}: the log-prob of class {broken[0]} is {values[broken[0]]}; "
            "expected a finite number"
        )
    # Without this check, a prompt that the server changed would give each position its
    # neighbour's labels.
    if token not in values:
        raise _Unusable(
            f"position {position}: the token that comes next, {token}, is not among those told; "
            "the server changed the prompt, or tells the log-probs of other positions"
        )
    return entry


def _check(
    ids: NDArray[np.int64],
    ranks: NDArray[np.int64],
    positions: Sequence[int],
    *,
    k: int,
    classes: int,
) -> None:
    # An empty slot holds `classes` itself, and only the last slot may be empty.
    outside = (ids < 0) | (ids > classes)
    outside[:, :k] |= ids[:, :k] == classes
    if outside.any():
        row = int(outside.any(1).argmax())
        raise _Unusable(
            f"position {positions[row]}: class {ids[row][outside[row]][0]} is none of {classes}; "
            "pass the width of the model's logits as classes="
        )
    present = np.zeros((len(ids), k + 2), bool)
    np.put_along_axis(present, np.clip(ranks, 0, k + 1), True, 1)
    missing = ~present[:, 1 : k + 1] & (ranks[:, :k] > 0).all(1, keepdims=True)
    if missing.any():
        row = int(missing.any(1).argmax())
        raise _Unusable(
            f"position {positions[row]}: the class of rank {int(missing[row].argmax()) + 1} is "
            f"not among the {k} likeliest told"
        )


def _check_log_probs(kept: NDArray[np.float32], positions: Sequence[int]) -> None:
    never = (kept <= _NEVER).any(1)
    if never.any():
        raise _Unusable(
            f"position {positions[int(never.argmax())]}: only "
            f"{int((kept[int(never.argmax())] > _NEVER).sum())} classes have a probability above "
            "0; choose a smaller k"
        )
    sums = np.exp(kept.astype(np.float64)).sum(1)
    if (sums > 1 + sum_tolerance(torch.float32)).any():
        raise _Unusable(
            f"position {positions[int(sums.argmax())]}: the probabilities told sum to "
            f"{sums.max():.6g}, above 1; they are no log-probs (vLLM: --logprobs-mode raw_logprobs)"
        )


def _log_tails(log_probs: Tensor, classes: int) -> Tensor:
    """log(1 − Σ p) in float64, shape (rows, 1), held to what the log-probs allow.

    Rounded to float32, they leave the complement unknown below 2⁻²⁴ or so, even its sign. The
    V − k classes that were not kept are no likelier than the least one kept:

        tail ≤ (V − k) · min p

    Args:
        log_probs: float32, (rows, k), at T = 1.
    """
    k, wide = log_probs.shape[-1], log_probs.double()
    if k == classes:
        return torch.full((len(log_probs), 1), -math.inf)
    complement = (1 - wide.exp().sum(-1, keepdim=True)).clamp(min=2.0**-24).log()
    at_most = wide.amin(-1, keepdim=True) + math.log(classes - k)
    return torch.minimum(complement, at_most).float()
