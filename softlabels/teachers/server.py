"""Servers of the OpenAI API that also tell the log-probs of a prompt's tokens, as vLLM does.

SGLang's and llama.cpp's OpenAI routes name tokens by their text, or not at all; their answers are
refused with what they lack.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import TeacherError, quoted
from softlabels.labels import SoftLabels
from softlabels.teachers.connection import Connection
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.prompt_logprobs import Prompt, Unusable, prompts, soft_labels

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
        self._http = Connection(
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
            for prompt in prompts(input_ids, wanted, padding, hard_labels):
                pending.append(pool.submit(self._label, prompt, k, stop))
                # Twice as many as are asked at a time: a slow record must not idle the others.
                if len(pending) >= 2 * self._concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _label(self, prompt: Prompt, k: int, stop: threading.Event) -> SoftLabels:
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
            return soft_labels(answer, prompt, k=k, classes=self.classes)
        except Unusable as error:
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


def _card(http: Connection, model: str | None) -> dict[str, Any]:
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
