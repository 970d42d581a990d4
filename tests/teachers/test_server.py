"""Server: what it labels is what the model itself believes, whatever the server does."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch
from completions import Completions, Handler, serving
from torch import Tensor

import softlabels as sl
from softlabels.errors import SoftLabelsError, TeacherError
from softlabels.labels import SoftLabels, concatenate
from softlabels.teachers import connection
from softlabels.teachers import server as engine
from softlabels.teachers.server import RecordRefused, Server

V, K = 40, 5
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(0)) * 3
LENGTHS = [9, 1, 6, 4]


def table(prompt: list[int]) -> Tensor:
    return TABLE[torch.tensor(prompt)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BACKOFF_S", 0.001)


@pytest.fixture
def server() -> Iterator[Completions]:
    with serving(table) as found:
        yield found


@pytest.fixture
def teacher(server: Completions) -> Server:
    return Server(server.url, classes=V)


def batch(
    lengths: list[int] = LENGTHS, *, classes: int = V, every: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, wanted and padding; every `every`-th position is wanted, and every last one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(classes, (len(lengths), max(lengths)), generator=generator)
    places, ends = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    padding = places >= ends
    wanted = ((places % every == 0) | (places == ends - 1)) & ~padding
    return ids.masked_fill(padding, 0), wanted, padding


def next_tokens(ids: Tensor, wanted: Tensor, padding: Tensor) -> Tensor:
    """The hard labels of the wanted positions; −1 at each record's last."""
    shifted = torch.full_like(ids, -1)
    shifted[:, :-1] = ids[:, 1:].masked_fill(padding[:, 1:], -1)
    return shifted[wanted]


def answer(teacher: Server, *inputs: Tensor, hard: Tensor | None = None, k: int = K) -> SoftLabels:
    ids, wanted, padding = inputs
    hard = next_tokens(ids, wanted, padding) if hard is None else hard
    return concatenate(list(teacher.labels(ids, wanted, padding=padding, hard_labels=hard, k=k)))


def expected(logits: Tensor, hard: Tensor, k: int = K) -> SoftLabels:
    return sl.TopK(k)(logits, hard, temperatures=(1.0,))


def same(found: SoftLabels, wanted: SoftLabels) -> None:
    assert torch.equal(found.ids, wanted.ids)
    close = {"rtol": 0, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(found.log_probs, wanted.log_probs, **close)
    torch.testing.assert_close(found.hard_log_probs, wanted.hard_log_probs, **close)
    # 1 − Σp of float32 log-probs: an absolute bound, which a logarithm does not keep.
    torch.testing.assert_close(
        found.log_tail(1.0).exp(), wanted.log_tail(1.0).exp(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("every", [1, 3])
def test_labels_are_those_of_the_logits_at_every_wanted_position_the_last_ones_too(
    every: int, server: Completions, teacher: Server
) -> None:
    ids, wanted, padding = inputs = batch(every=every)
    found = answer(teacher, *inputs)
    same(found, expected(TABLE[ids[wanted]], next_tokens(ids, wanted, padding)))
    assert (found.logsumexp, found.temperatures, found.classes) == (None, (1.0,), V)
    assert (found.ids.dtype, found.log_probs.dtype) == (torch.int64, torch.float32)
    assert teacher.temperatures == (1.0,)
    for body in server.requests:
        assert body["temperature"] == 0
        assert body["add_special_tokens"] is False


def test_labels_are_those_that_transformers_gives_of_the_same_model(
    model: Any, teacher_dir: Path
) -> None:
    @torch.no_grad()
    def logits(prompt: list[int]) -> Tensor:
        return model(torch.tensor([prompt])).logits[0]

    ids, wanted, padding = inputs = batch(classes=512)
    with serving(logits) as server:
        server.card = {"root": str(teacher_dir), "max_model_len": 256}
        teacher = Server(server.url)
        assert (teacher.classes, teacher.max_length) == (512, 254)
        assert teacher.tokenizer.eos_token == "<|im_end|>"
        found = answer(teacher, *inputs, k=16)
    rows = [logits(ids[row, ~padding[row]].tolist()) for row in range(len(ids))]
    wished = expected(torch.cat(rows), next_tokens(ids, wanted, padding), k=16)
    assert torch.equal(found.ids, wished.ids)
    torch.testing.assert_close(found.log_probs, wished.log_probs, rtol=0, atol=1e-4)


def test_a_known_next_token_of_the_last_position_has_its_log_prob(teacher: Server) -> None:
    ids, wanted, padding = batch([3])
    hard = torch.tensor([int(ids[0, 1]), -1, 7])
    found = answer(teacher, ids, wanted, padding, hard=hard)
    same(found, expected(TABLE[ids[wanted]], hard))
    assert found.hard_log_probs is not None
    assert bool(found.hard_log_probs[2].isfinite())


def test_a_hard_label_that_the_server_does_not_tell_is_nan(teacher: Server) -> None:
    ids, wanted, padding = batch([3])
    ranked = TABLE[ids[0, 0]].argsort(descending=True)
    for label, told in ((ranked[0], True), (ranked[-1], False)):
        hard = torch.tensor([int(label), -1, -1])
        found = answer(teacher, ids, wanted, padding, hard=hard).hard_log_probs
        assert found is not None
        assert bool(found[0].isfinite()) is told


def test_a_record_is_sent_up_to_the_token_after_its_last_wanted_one(
    server: Completions, teacher: Server
) -> None:
    ids, wanted, padding = batch([4, 5, 6])
    wanted[:] = False
    wanted[0, 1] = wanted[2, 5] = True
    found = answer(teacher, ids, wanted, padding)
    prompts = sorted((body["prompt"] for body in server.requests), key=len)
    assert prompts == [ids[0, :3].tolist(), [*ids[2].tolist(), int(ids[2, 5])]]
    assert len(found) == 2


def test_nothing_is_asked_where_nothing_is_wanted(server: Completions, teacher: Server) -> None:
    ids, wanted, padding = batch()
    nothing = torch.zeros_like(wanted)
    hard = torch.empty(0, dtype=torch.int64)
    assert list(teacher.labels(ids, nothing, padding=padding, hard_labels=hard, k=K)) == []
    assert server.requests == []


def test_equal_log_probs_come_by_ascending_id_and_the_extra_entry_is_the_one_left_out() -> None:
    flat = torch.zeros(V)
    flat[[30, 3]] = 1.0
    with serving(lambda prompt: flat.expand(len(prompt), V)) as server:
        # vLLM's topk takes any of the equal ones; here those of the largest ids.
        server.spoil = lambda answer: tell(
            answer, {str(i): told(i) for i in (9, 30, 3, 38, 39)}
        )  # fmt: skip
        teacher = Server(server.url, classes=V)

        def told(i: int) -> dict[str, Any]:
            return {"logprob": float(flat.log_softmax(0)[i]), "rank": None}

        ids = torch.full((1, 3), 9)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        found = answer(teacher, ids, everywhere, ~everywhere, k=4)
    assert found.ids.tolist() == [[3, 30, 9, 38]] * 3


def test_every_class_kept_leaves_no_tail() -> None:
    with serving(table, max_logprobs=V) as server:
        ids, wanted, padding = inputs = batch()
        found = answer(Server(server.url, classes=V), *inputs, k=V)
    same(found, expected(TABLE[ids[wanted]], next_tokens(ids, wanted, padding), k=V))
    assert bool((found.log_tail(1.0) == -math.inf).all())


@pytest.mark.parametrize("peak", [12.0, 20.0, 40.0, 90.0])
def test_a_tail_below_what_float32_tells_is_held_to_what_is_possible(peak: float) -> None:
    logits = torch.linspace(0, -3, V)
    logits[0] += peak
    with serving(lambda prompt: logits.expand(len(prompt), V)) as server:
        found = answer(Server(server.url, classes=V), *batch([2]))
    wished = expected(logits.expand(2, V), torch.full((2,), -1)).log_tail(1.0)
    tail = found.log_tail(1.0)
    assert bool(tail.isfinite().all())
    assert bool((tail.exp() - wished.exp()).abs().max() < 2e-7)
    # No more than if all the others were as likely as the last one kept.
    assert bool((tail <= found.log_probs[:, -1] + math.log(V - K) + 1e-5).all())


# ── Concurrency ──────────────────────────────────────────────────────────────────────────────


def test_as_many_requests_as_told_run_at_once_over_kept_connections(server: Completions) -> None:
    teacher = Server(server.url, classes=V, concurrency=4)
    together = threading.Barrier(4, timeout=10)

    def logits(prompt: list[int]) -> Tensor:
        return table(prompt)

    def meet(handler: Handler) -> None:
        together.wait()
        handler.say(server.completion(server.requests[0]))

    server.logits = logits
    server.faults.extend([meet] * 8)
    ids, wanted, padding = batch([5] * 8)
    answer(teacher, ids[:1].expand(8, -1), wanted, padding)
    assert len(server.requests) == 8
    assert server.connections <= 4


def test_labels_come_in_order_though_the_first_answers_are_the_last_to_come(
    server: Completions,
) -> None:
    teacher = Server(server.url, classes=V, concurrency=4)
    waits: dict[int, float] = {}

    def slowed(answer: dict[str, Any]) -> dict[str, Any]:
        time.sleep(waits[answer["usage"]["prompt_tokens"]])
        return answer

    server.spoil = slowed
    lengths = [3, 4, 5, 6, 7, 8, 9, 10]
    waits |= {length + 1: 0.02 * (10 - length) for length in lengths}
    ids, wanted, padding = batch(lengths)
    hard = next_tokens(ids, wanted, padding)
    parts = list(teacher.labels(ids, wanted, padding=padding, hard_labels=hard, k=K))
    assert [len(part) for part in parts] == lengths
    same(concatenate(parts), expected(TABLE[ids[wanted]], hard))


def test_no_more_records_are_held_than_twice_those_asked_at_once(server: Completions) -> None:
    teacher = Server(server.url, classes=V, concurrency=2)
    ids, wanted, padding = batch([3] * 40)
    hard = next_tokens(ids, wanted, padding)
    labels = teacher.labels(ids, wanted, padding=padding, hard_labels=hard, k=K)
    next(labels)
    time.sleep(0.3)
    assert len(server.requests) == 4
    labels.close()


def test_a_run_that_stops_early_leaves_what_it_has_not_asked_for(server: Completions) -> None:
    teacher = Server(server.url, classes=V, concurrency=4)

    def slow_but_for_the_first(answer: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3 if answer["usage"]["prompt_tokens"] > 3 else 0)
        return answer

    server.spoil = slow_but_for_the_first
    ids, wanted, padding = batch([2] + [3] * 7)
    hard = next_tokens(ids, wanted, padding)
    labels = teacher.labels(ids, wanted, padding=padding, hard_labels=hard, k=K)
    next(labels)
    labels.close()
    time.sleep(0.7)
    assert len(server.requests) <= 5


def test_a_run_that_stops_early_does_not_try_again(
    server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_BACKOFF_S", 0.2)
    teacher = Server(server.url, classes=V, concurrency=1)
    ids, wanted, padding = batch([3] * 2)
    hard = next_tokens(ids, wanted, padding)
    labels = teacher.labels(ids, wanted, padding=padding, hard_labels=hard, k=K)
    next(labels)
    server.faults.extend([busy] * 100)
    labels.close()
    time.sleep(0.05)
    asked = len(server.requests)
    time.sleep(0.5)
    assert len(server.requests) <= asked


# ── Retries ──────────────────────────────────────────────────────────────────────────────────


def busy(handler: Handler) -> None:
    handler.say({"error": {"message": "too many requests"}}, status=429)


def broken(handler: Handler) -> None:
    handler.say("Internal Server Error", status=500)


def cut(handler: Handler) -> None:
    handler.close_connection = True


def halfway(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def asleep(handler: Handler) -> None:
    time.sleep(0.5)
    handler.close_connection = True


@pytest.mark.parametrize("fault", [busy, broken, cut, halfway, asleep])
def test_a_server_that_fails_twice_and_then_answers_is_asked_again(
    fault: Callable[[Handler], None], server: Completions
) -> None:
    teacher = Server(server.url, classes=V, timeout=0.2, concurrency=1)
    server.faults.extend([fault, fault])
    ids, wanted, padding = inputs = batch([4])
    same(answer(teacher, *inputs), expected(TABLE[ids[wanted]], next_tokens(ids, wanted, padding)))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (busy, 'HTTP 429: "too many requests"'),
        (broken, 'HTTP 500: "Internal Server Error"'),
        (cut, "RemoteProtocolError"),
        (halfway, "RemoteProtocolError"),
        (asleep, "ReadTimeout"),
    ],
)
def test_a_server_that_always_fails_stops_the_run_and_says_how_many_tries(
    fault: Callable[[Handler], None], says: str, server: Completions
) -> None:
    teacher = Server(server.url, classes=V, retries=2, timeout=0.2, concurrency=1)
    server.faults.extend([fault] * 9)
    with pytest.raises(TeacherError, match="no answer to POST /v1/completions in 3 tries") as error:
        answer(teacher, *batch([4]))
    assert says in str(error.value)
    assert len(server.requests) == 3


def test_nobody_at_the_address_is_noticed_at_once() -> None:
    with serving(table) as server:
        url = server.url
    with pytest.raises(TeacherError, match="GET /v1/models in 2 tries: ConnectError"):
        Server(url, classes=V, retries=1)


def test_waits_double_and_are_no_shorter_than_the_server_asks(
    server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Never(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    monkeypatch.setattr(connection, "_BACKOFF_S", 1.0)
    opened = connection.Connection(server.url, api_key=None, concurrency=1, retries=4, timeout=5)
    later = formatdate(time.time() + 90, usegmt=True)
    for header in ({}, {}, {"Retry_After": "7.5"}, {"Retry_After": later}):
        server.faults.append(lambda handler, header=header: handler.say("", status=503, **header))
    body = {"prompt": [1, 2], "prompt_logprobs": 1, "max_tokens": 1}
    assert opened.ask("POST", "/v1/completions", body, Never()).status_code == 200
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2
    assert waits[2] == 7.5
    assert 80 < waits[3] <= 90
    server.faults.extend([busy] * 9)
    with pytest.raises(TeacherError, match="in 5 tries"):
        opened.ask("POST", "/v1/completions", body, Never())
    assert len(waits) == 8  # none after the last try


def test_a_server_that_asks_to_wait_for_hours_is_not_waited_for(server: Completions) -> None:
    teacher = Server(server.url, classes=V)
    server.faults.append(lambda handler: handler.say("", status=503, Retry_After="7200"))
    with pytest.raises(TeacherError, match=r"in 1 try.*asks to wait 7200 s"):
        answer(teacher, *batch([4]))


# ── What a server refuses ────────────────────────────────────────────────────────────────────


def test_more_log_probs_than_the_server_allows_are_explained(
    server: Completions, teacher: Server
) -> None:
    server.max_logprobs = 4
    with pytest.raises(TeacherError, match=r"at most 4 log-probs .*--max-logprobs 5 \(vLLM\)"):
        answer(teacher, *batch([4]))
    assert len({json.dumps(body) for body in server.requests}) == len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_is_that_records_fault(status: int, server: Completions) -> None:
    teacher = Server(server.url, classes=V, concurrency=1)
    said = {"error": {"message": "The decoder prompt is too long"}}
    server.faults.append(lambda handler: handler.say(said, status=status))
    with pytest.raises(RecordRefused, match=r"refused 5 tokens.*prompt is too long") as error:
        answer(teacher, *batch([4]))
    assert not isinstance(error.value, SoftLabelsError)
    assert len(server.requests) == 1


def test_the_longest_record_fits_and_a_longer_one_is_refused(server: Completions) -> None:
    teacher = Server(server.url, classes=V)
    assert teacher.max_length == 62
    assert len(answer(teacher, *batch([62]))) == 62
    with pytest.raises(RecordRefused, match="maximum model length of 64"):
        answer(teacher, *batch([63]))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"refuses the API key, or the lack of one \(HTTP 401\); pass api_key="),
        (403, "refuses the API key"),
        (404, 'HTTP 404: "not here"'),
        (302, 'HTTP 302: "not here"'),
    ],
)
def test_another_refusal_stops_the_run_without_a_second_try(
    status: int, message: str, server: Completions
) -> None:
    teacher = Server(server.url, classes=V, concurrency=1)
    server.faults.append(lambda handler: handler.say({"detail": "not here"}, status=status))
    with pytest.raises(TeacherError, match=message):
        answer(teacher, *batch([4]))
    assert len(server.requests) == 1


# ── What a server answers ────────────────────────────────────────────────────────────────────


def tell(answer: dict[str, Any], entry: Any, position: int | None = None) -> dict[str, Any]:
    """The answer with `entry` for a position, or for all that have one."""
    told = answer["choices"][0]["prompt_logprobs"]
    for i in range(1, len(told)) if position is None else [position + 1]:
        told[i] = entry(told[i]) if callable(entry) else entry
    return answer


def first(entry: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """With another value for the likeliest class."""
    likeliest = max(entry, key=lambda token: entry[token]["logprob"])
    return {**entry, likeliest: {**entry[likeliest], **changes}}


def renamed(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """With another name for the likeliest class but the prompt's own token."""
    own = next(iter(entry))
    likeliest = min(entry, key=lambda token: (token == own, entry[token]["rank"]))
    return {name if token == likeliest else token: value for token, value in entry.items()}


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "NaN": (lambda e: first(e, logprob=math.nan), "log-prob of class .* is nan"),
    "−inf": (lambda e: first(e, logprob=-math.inf), "log-prob of class .* is -inf"),
    "null": (lambda e: first(e, logprob=None), "expected log-probs by token id, found"),
    "text": (lambda e: renamed(e, " the"), "expected log-probs by token id, found"),
    "no position": (lambda e: None, "expected log-probs by token id, found"),
    "ids alone": (list, "expected log-probs by token id, found"),
    "too few": (lambda e: dict([*e.items()][:-3]), "expected 5, or 6 with the token that comes"),
    "too many": (
        lambda e: e | {str(100 + i): {"logprob": -9.0} for i in range(6)},
        "expected 5, or 6",
    ),
    "twice": (
        lambda e: renamed(e, f"0{max(e, key=lambda i: (e[i]['rank'] <= 5, e[i]['rank']))}"),
        "4 classes in 5 entries|5 classes in 6 entries",
    ),
    "a rank too many": (
        lambda e: {t: v | {"rank": v["rank"] + (v["rank"] > 2)} for t, v in e.items()},
        "class of rank 3 is not among the 5 likeliest",
    ),
    "beyond V": (lambda e: renamed(e, "40"), "class 40 is none of 40; pass the width"),
    "below 0": (lambda e: renamed(e, "-1"), "class -1 is none of 40"),
    "logits": (
        lambda e: {t: v | {"logprob": v["logprob"] + 5} for t, v in e.items()},
        "sum to .*, above 1; they are no log-probs",
    ),
    "impossible": (
        lambda e: {t: v | {"logprob": v["logprob"] if v["rank"] < 5 else -9999.0}
                   for t, v in e.items()},
        "only 4 classes have a probability above 0",
    ),
    "a changed prompt": (
        lambda e: {str((int(t) + 1) % V): v for t, v in e.items()},
        "the token that comes next, .*, is not among those told",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_an_answer_that_is_spoilt_at_a_position_is_refused_with_it(
    name: str, server: Completions, teacher: Server
) -> None:
    spoil, message = SPOILT[name]
    server.spoil = lambda answer: tell(answer, spoil, 2)
    with pytest.raises(TeacherError, match=f'model "tiny": position 2: .*({message})'):
        answer(teacher, *batch([5]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: {"error": {"message": "no"}},
        lambda answer: answer | {"choices": []},
        lambda answer: {"choices": [{"text": "", "logprobs": {"tokens": [" a"]}}]},
        lambda answer: {"choices": [{"text": "", "prompt_logprobs": None}]},
        lambda answer: [],
    ],
)
def test_an_answer_without_prompt_logprobs_is_refused_with_what_it_lacks(
    spoil: Callable[[dict[str, Any]], Any], server: Completions, teacher: Server
) -> None:
    server.spoil = spoil
    with pytest.raises(TeacherError, match=r"has no choices\[0\].prompt_logprobs"):
        answer(teacher, *batch([5]))


def test_an_answer_for_a_prompt_of_another_length_is_refused(
    server: Completions, teacher: Server
) -> None:
    def longer(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][0]["prompt_logprobs"].insert(0, None)
        return answer

    server.spoil = longer
    with pytest.raises(TeacherError, match="7 prompt_logprobs for a prompt of 6 tokens"):
        answer(teacher, *batch([5]))


def test_what_is_no_json_is_refused_and_not_asked_again(
    server: Completions, teacher: Server
) -> None:
    server.faults.append(lambda handler: handler.say("<html>\x1b[2J welcome"))
    with pytest.raises(TeacherError, match=r"what is no JSON: \"<html>\\u001b\[2J welcome\""):
        answer(teacher, *batch([5]))
    assert len(server.requests) == 1


def test_a_next_token_that_cannot_be_has_no_probability(server: Completions) -> None:
    logits = torch.zeros(V).index_fill(0, torch.tensor([7]), -math.inf)
    server.logits = lambda prompt: logits.expand(len(prompt), V)
    ids = torch.tensor([[1, 7, 2]])
    wanted = torch.tensor([[True, True, False]])
    found = answer(Server(server.url, classes=V), ids, wanted, torch.zeros_like(wanted))
    assert found.hard_log_probs is not None
    assert found.hard_log_probs[0] == -math.inf
    assert bool(found.hard_log_probs[1].isfinite())


# ── Which model, and where ───────────────────────────────────────────────────────────────────


def test_the_only_model_is_taken_and_another_name_is_refused(server: Completions) -> None:
    assert Server(server.url, classes=V).model == "tiny"
    for ending in ("/", "/v1", "/v1/"):
        assert Server(server.url + ending, "tiny", classes=V).max_length == 62
    with pytest.raises(TeacherError, match='has no model "other"; it has: "tiny"'):
        Server(server.url, "other", classes=V)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, 'has 2 models; name one with model=: "a", "b"'),
        ({"data": []}, "has 0 models; name one with model=: none"),
        ({"models": []}, "without a list of models"),
        ([1], "without a list of models"),
        ("hello", "what is no JSON"),
    ],
)
def test_a_list_of_models_that_does_not_tell_which_is_refused(
    listed: Any, message: str, server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.say(listed))
    with pytest.raises(TeacherError, match=message):
        Server(server.url, classes=V)


def test_a_server_that_lists_no_models_needs_a_name(server: Completions) -> None:
    server.card = server.version = None
    with pytest.raises(TeacherError, match="does not list its models; name one with model="):
        Server(server.url, classes=V)
    teacher = Server(server.url, "mine", classes=V)
    assert (teacher.model, teacher.max_length, teacher.tokenizer) == ("mine", None, None)
    assert len(answer(teacher, *batch([4]))) == 4
    assert (teacher.identity.name, teacher.identity.engine_version) == ("mine", "")


def test_classes_come_from_the_config_then_the_tokenizer_else_are_asked_for(
    server: Completions, teacher_dir: Path, tokenizer: Any, tmp_path: Path
) -> None:
    padded = json.loads((teacher_dir / "config.json").read_text()) | {"vocab_size": 520}
    folder = shutil.copytree(teacher_dir, tmp_path / "padded")
    (folder / "config.json").write_text(json.dumps(padded))
    assert Server(server.url, tokenizer=folder).classes == 520
    assert Server(server.url, tokenizer=str(teacher_dir)).tokenizer.eos_token == "<|im_end|>"
    assert Server(server.url, tokenizer=tokenizer).classes == len(tokenizer)
    assert Server(server.url, tokenizer=tokenizer).tokenizer is tokenizer
    unknown = Server(server.url)
    assert unknown.tokenizer is None
    with pytest.raises(TeacherError, match=r'config or tokenizer of the model "tiny".*classes='):
        unknown.classes
    with pytest.raises(TeacherError, match='there is no tokenizer "/nowhere/else"'):
        Server(server.url, tokenizer="/nowhere/else", classes=V).tokenizer


@pytest.mark.parametrize(
    ("root", "name", "looked_up"),
    [
        ("/nowhere/tiny", "tiny", None),
        (None, "tiny", None),
        ("/nowhere/tiny", "owner/tiny", "owner/tiny"),
        ("owner/tiny-1.5", "tiny", "owner/tiny-1.5"),
        (str(Path(__file__).parent), "owner/tiny", str(Path(__file__).parent)),
    ],
)
def test_a_tokenizer_is_looked_up_by_folder_or_owner_and_name_alone(
    root: str | None,
    name: str,
    looked_up: str | None,
    server: Completions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.model, server.card = name, {"root": root}
    monkeypatch.setattr(engine, "_pretrained", lambda kind, name: name)
    assert Server(server.url, classes=V).tokenizer == looked_up


@pytest.mark.parametrize(
    "options", [{"classes": 0}, {"concurrency": 0}, {"retries": -1}, {"timeout": 0.0}]
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], server: Completions) -> None:
    with pytest.raises(TeacherError, match=next(iter(options))):
        Server(server.url, **options)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a", "http://", "http://a:b", "http:a"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(TeacherError, match="is no server's address; expected one such as http"):
        Server(url, classes=V)


# ── Secrets ──────────────────────────────────────────────────────────────────────────────────

SECRET = "sk-secret-123"


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@127.0.0.1:1",
        f"http://{SECRET}@127.0.0.1:1",
        f"http://127.0.0.1:1/v1?key={SECRET}",
        f"http://127.0.0.1:1/v1#{SECRET}",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(TeacherError, match="pass a key as api_key=") as error:
        Server(url, classes=V)
    assert SECRET not in str(error.value)


def test_the_key_is_sent_and_shown_nowhere_though_the_server_repeats_it(
    server: Completions,
) -> None:
    teacher = Server(server.url, classes=V, api_key=SECRET, retries=0, concurrency=1)
    assert server.headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in teacher.identity.model_dump_json() + repr(teacher) + str(vars(teacher))
    wrong = {"error": {"message": f"wrong key {SECRET}"}}
    for status in (400, 401, 404, 500):
        server.faults.append(lambda handler, status=status: handler.say(wrong, status=status))
        with pytest.raises((TeacherError, RecordRefused)) as error:
            answer(teacher, *batch([4]))
        assert SECRET not in str(error.value)
    server.faults.append(lambda handler: handler.say(f"<html>{SECRET}"))
    with pytest.raises(TeacherError, match="<html>…"):
        answer(teacher, *batch([4]))


@pytest.mark.parametrize("key", ["", f"{SECRET}\n", f"{SECRET}é", f"{SECRET} 1"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str, server: Completions) -> None:
    with pytest.raises(TeacherError, match="the API key is empty, or has") as error:
        Server(server.url, classes=V, api_key=key)
    assert SECRET not in str(error.value)


def test_loopback_is_not_asked_through_the_environments_proxy(
    server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert Server(server.url, classes=V, retries=0).model == "tiny"
    for host in ("localhost", "127.3.2.1", "::1", "a.localhost"):
        assert connection.is_loopback(host)
    for host in ("10.0.0.1", "localhost.example", "example"):
        assert not connection.is_loopback(host)


# ── Identity ─────────────────────────────────────────────────────────────────────────────────


def test_the_identity_is_the_name_and_a_canary_and_not_the_address(server: Completions) -> None:
    server.model = "/srv/models/tiny-llama"
    identity = Server(server.url, classes=V).identity
    assert (
        identity.model_dump().items()
        >= {
            "name": "tiny-llama",
            "revision": None,
            "weights": None,
            "dtype": None,
            "engine": "openai-server",
            "engine_version": "0.32.0",
            "classes": V,
            "logits_known": False,
        }.items()
    )
    with serving(table, model=server.model) as moved:
        assert Server(moved.url, classes=V).identity == identity
    server.model = "owner/Model-1.5"
    assert Server(server.url, classes=V).identity.name == "owner/Model-1.5"


def test_the_canary_says_the_likeliest_classes_of_every_position(teacher: Server) -> None:
    ids = [7919 * i % V for i in range(1, 9)]
    config = teacher.identity.config
    assert config is not None
    positions = config.split(";")
    wished = expected(TABLE[torch.tensor(ids)], torch.full((8,), -1), k=4)
    assert [[int(e.split(":")[0]) for e in p.split(",")] for p in positions] == wished.ids.tolist()
    assert positions[0].split(",")[0].endswith(f":{float(wished.log_probs[0, 0]):.2f}")


@pytest.mark.parametrize("seed", range(8))
def test_a_model_is_recognised_through_the_noise_of_other_batches(
    seed: int, server: Completions
) -> None:
    earlier = Server(server.url, classes=V).identity
    generator = torch.Generator().manual_seed(seed)

    def noisy(prompt: list[int]) -> Tensor:
        return table(prompt) + 0.02 * torch.randn(len(prompt), V, generator=generator)

    server.logits = noisy
    now = Server(server.url, classes=V)
    assert now.identity.config != earlier.config
    assert now.recognise(earlier) == earlier


def test_classes_that_noise_swaps_at_the_end_of_the_canary_are_no_other_model(
    server: Completions,
) -> None:
    flat = torch.linspace(0, -0.1, V)
    server.logits = lambda prompt: flat.expand(len(prompt), V)
    earlier = Server(server.url, classes=V).identity
    server.logits = lambda prompt: flat.flip(0).expand(len(prompt), V)
    now = Server(server.url, classes=V)
    assert now.identity.config != earlier.config
    assert now.recognise(earlier) == earlier


def other_class(prompt: list[int]) -> Tensor:
    logits = table(prompt).clone()
    logits[3, logits[3].argmin()] = logits[3].max() - 0.1
    return logits


@pytest.mark.parametrize(
    "logits",
    [
        lambda prompt: 1.2 * table(prompt),
        lambda prompt: table(prompt) + 0.5 * torch.randn(V, generator=torch.Generator()),
        lambda prompt: table([(i + 1) % V for i in prompt]),
        lambda prompt: torch.zeros(len(prompt), V),
        other_class,
    ],
    ids=["sharper", "tuned", "shifted", "flat", "one class"],
)
def test_another_model_under_the_same_name_is_noticed(
    logits: Callable[[list[int]], Tensor], server: Completions
) -> None:
    earlier = Server(server.url, classes=V).identity
    server.logits = logits
    now = Server(server.url, classes=V)
    assert now.recognise(earlier) == now.identity != earlier


@pytest.mark.parametrize("config", [None, "", "1f" * 16, "1:2;", "1:a", "1:-1.0"])
def test_what_is_no_canary_or_of_another_engine_is_no_match(
    config: str | None, teacher: Server
) -> None:
    earlier = teacher.identity.model_copy(update={"config": config})
    assert teacher.recognise(earlier) == teacher.identity
    close = str(teacher.identity.config).replace("-1.", "-1.0", 1)
    another = teacher.identity.model_copy(update={"engine": "transformers", "config": close})
    assert teacher.recognise(another) == teacher.identity


def test_a_class_that_one_canary_lacks_must_be_as_unlikely_as_its_last() -> None:
    ours = "1:-1.00,2:-2.00"
    for theirs, same_model in (("1:-1.00,3:-2.10", True), ("1:-1.00,3:-1.50", False)):
        assert engine._agree(ours, theirs) is same_model
        assert engine._agree(theirs, ours) is same_model


def test_a_server_that_refuses_the_canary_is_no_teacher(server: Completions) -> None:
    teacher = Server(server.url, classes=V)
    server.faults.append(lambda handler: handler.say({"detail": "unknown field"}, status=422))
    with pytest.raises(TeacherError, match=r"a prompt of 8 tokens was not taken.*unknown field"):
        teacher.identity
