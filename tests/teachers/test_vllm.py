"""Server against a real vLLM: what `completions` plays in the other tests is what vLLM says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from torch import Tensor

import softlabels as sl
from softlabels.errors import TeacherError
from softlabels.labels import concatenate
from softlabels.teachers.server import RecordRefused, Server

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

START_S, K, LENGTH = 300, 64, 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A small Llama with heads of 64, the narrowest that vLLM's CPU attention takes everywhere."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=2,
    )
    made = tmp_path_factory.mktemp("vllm") / "tiny-llama"
    LlamaForCausalLM(config).eval().save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A server of that model in float32; stopped afterwards."""
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.fail("VLLM_PYTHON names no Python that has vLLM; run `make test-vllm`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder), "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", str(LENGTH), "--max-logprobs", str(K)),
        *("--max-num-seqs", "4", "--max-num-batched-tokens", "100", "--enforce-eager"),
    ]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    log = folder.parent / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=os.environ | settings,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its engine is a process of its own
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx2.get(f"{address}/health", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start: {log.read_text(errors='replace')[-3000:]}")


def batch(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, padding, and the next token of every position, the last one's included."""
    ids = torch.randint(512, (len(lengths), max(lengths) + 1))
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return ids[:, :-1], padding, ids[:, 1:]


def test_labels_are_those_that_transformers_gives(url: str, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    # The longest ones are more than vLLM computes in a step.
    lengths = [9, 1, 200, 30, 254, 2, 64]
    ids, padding, following = batch(lengths)
    last = (~padding).cumsum(1) == torch.tensor(lengths)[:, None]
    unknown = last & (torch.arange(len(lengths)) % 2 == 0)[:, None]
    hard = following.masked_fill(unknown, -1)[~padding]
    teacher = Server(url)
    found = concatenate(list(teacher.labels(ids, ~padding, padding=padding, hard_labels=hard, k=K)))
    with torch.no_grad():
        rows = [model(ids[row : row + 1, :size]).logits[0] for row, size in enumerate(lengths)]
    logits = torch.cat(rows)
    expected = sl.TopK(K)(logits, hard, temperatures=(1.0,))
    # Two kernels sum in two orders, so classes within 1e-4 of each other may change places.
    close = {"rtol": 0, "atol": 1e-4, "equal_nan": True}
    torch.testing.assert_close(found.log_probs, expected.log_probs, **close)
    own = torch.log_softmax(logits, -1).gather(-1, found.ids)
    torch.testing.assert_close(found.log_probs, own, **close)
    assert bool((found.ids.sort(-1).values.diff(dim=-1) > 0).all())
    torch.testing.assert_close(found.hard_log_probs, expected.hard_log_probs, **close)
    torch.testing.assert_close(
        found.log_tail(1.0).exp(), expected.log_tail(1.0).exp(), rtol=0, atol=1e-5
    )


def test_the_server_says_which_model_it_has(url: str, folder: Path) -> None:
    teacher = Server(url)
    assert (teacher.classes, teacher.max_length) == (512, LENGTH - 2)
    assert teacher.tokenizer.eos_token == "<|im_end|>"
    identity = teacher.identity
    assert (identity.name, identity.logits_known) == (folder.name, False)
    assert identity.engine_version != ""
    assert Server(url).recognise(identity) == identity


def test_what_vllm_refuses_is_told_apart(url: str) -> None:
    teacher = Server(url)

    def ask(length: int, k: int) -> None:
        ids = torch.randint(512, (1, length))
        none = torch.zeros_like(ids, dtype=torch.bool)
        hard = torch.full((length,), -1)
        list(teacher.labels(ids, ~none, padding=none, hard_labels=hard, k=k))

    ask(LENGTH - 2, K)
    with pytest.raises(RecordRefused):
        ask(LENGTH - 1, K)
    with pytest.raises(TeacherError, match=f"at most {K} log-probs .*--max-logprobs {K + 1}"):
        ask(3, K + 1)
