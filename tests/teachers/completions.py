"""A completions server on loopback: vLLM's JSON, the logits of any function, and its faults."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

Logits = Callable[[list[int]], Tensor]
Fault = Callable[["Handler"], None]


class Completions(ThreadingHTTPServer):
    """What a test sets up beforehand and looks at afterwards.

    Attributes:
        logits: of a prompt, (T,) ids → (T, V).
        card: the model's entry in /v1/models, beside its id; None where there is no such route.
        faults: each takes the place of one answer of /v1/completions, the first one first.
        spoil: changes an answer before it is sent.
        requests: the bodies that came.
        headers: of the last request.
        connections: how many were opened.
    """

    daemon_threads = True

    def __init__(self, logits: Logits, *, model: str = "tiny", max_logprobs: int = 20) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.logits, self.model, self.max_logprobs = logits, model, max_logprobs
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.card: dict[str, Any] | None = {"root": "/nowhere/tiny", "max_model_len": 64}
        self.version: str | None = "0.32.0"
        self.faults: deque[Fault] = deque()
        self.spoil: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.requests: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.connections = 0
        self.lock = threading.Lock()

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""

    def refusal(self, body: dict[str, Any]) -> str | None:
        """Why vLLM would refuse a request with status 400."""
        asked, length = body["prompt_logprobs"], (self.card or {}).get("max_model_len")
        if asked > self.max_logprobs:
            return (
                f"Requested prompt logprobs of {asked}, which is greater than max allowed: "
                f"{self.max_logprobs}"
            )
        if length is not None and len(body["prompt"]) + body["max_tokens"] > length:
            return (
                f"The decoder prompt (length {len(body['prompt'])}) is longer than the maximum "
                f"model length of {length}."
            )
        return None

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """An answer as vLLM 0.32.0 gives it: the prompt's own token first, then ranks 1 to k."""
        prompt, k = body["prompt"], body["prompt_logprobs"]
        with self.lock:
            log_probs = torch.log_softmax(self.logits(prompt).float(), -1)
        told: list[dict[str, Any] | None] = [None]
        for row, token in zip(log_probs, prompt[1:], strict=False):
            values, ids = row.topk(k)
            entry = {str(token): _told(row[token], int((row >= row[token]).sum()))}
            for rank, (value, i) in enumerate(zip(values, ids.tolist(), strict=True), start=1):
                entry[str(i)] = _told(value, rank)
            told.append(entry)
        choice = {
            "index": 0,
            "text": " a",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": told,
            "prompt_token_ids": None,
        }
        return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": self.model,
                "choices": [choice], "usage": {"prompt_tokens": len(prompt)}}  # fmt: skip


def _told(log_prob: Tensor, rank: int) -> dict[str, Any]:
    return {"logprob": max(float(log_prob), -9999.0), "rank": rank, "decoded_token": "a"}


class Handler(BaseHTTPRequestHandler):
    server: Completions
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.headers = dict(self.headers)
        if self.path == "/v1/models" and self.server.card is not None:
            card = {"id": self.server.model, "object": "model", **self.server.card}
            self.say({"object": "list", "data": [card]})
        elif self.path == "/version" and self.server.version is not None:
            self.say({"version": self.server.version})
        else:
            self.say({"detail": "Not Found"}, status=404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers = dict(self.headers)
        with self.server.lock:
            self.server.requests.append(body)
            fault = self.server.faults.popleft() if self.server.faults else None
        if fault is not None:
            fault(self)
        elif (reason := self.server.refusal(body)) is not None:
            error = {"message": reason, "type": "BadRequestError", "param": None, "code": 400}
            self.say({"error": error}, status=400)
        else:
            self.say(self.server.spoil(self.server.completion(body)))

    def say(self, answer: Any, *, status: int = 200, **headers: str) -> None:
        """Send JSON, or a string as it is."""
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(logits: Logits, **options: Any) -> Iterator[Completions]:
    """A server that runs in a thread of this process."""
    with Completions(logits, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
