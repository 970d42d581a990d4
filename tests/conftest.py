"""What tests share: a small real causal LM, a teacher that is a table, and their label sets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Tests run side by side, one a core; results are bit-equal only for one number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

import softlabels as sl

CLASSES = 16
Precompute = Callable[..., sl.LabelSet]

# No test may reach a hub, and none may write into the user's own cache.
OWN_CACHE = tempfile.mkdtemp(prefix="softlabels-tests-")
os.environ["XDG_CACHE_HOME"] = OWN_CACHE
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"


def pytest_unconfigure() -> None:
    shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """One left behind would make the next test of this worker a rank."""
    yield
    assert not torch.distributed.is_initialized(), "this test left torch.distributed initialised"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """English prose that every CPython carries, short samples first and some long ones."""
    from pydoc_data.topics import topics

    paragraphs = [p.strip() for name in sorted(topics) for p in topics[name].split("\n\n")]
    return [p for p in paragraphs if len(p) > 40][:400]


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A two-layer Llama with random weights and a byte-level BPE of 512 tokens, saved."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("teacher") / "tiny-llama"
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(teacher_dir: Path) -> Any:
    """The same teacher as plain transformers loads it: the oracle."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(teacher_dir).eval()


@pytest.fixture(scope="session")
def tokenizer(teacher_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(teacher_dir)


@pytest.fixture(scope="session")
def rows(texts: list[str]) -> list[dict[str, Any]]:
    """Sixty samples with keys; every tenth is long enough for several windows."""
    samples = []
    for index in range(60):
        text = " ".join(texts[index * 5 : index * 5 + 5]) if index % 10 == 0 else texts[index * 5]
        samples.append({"id": f"doc-{index:03d}", "text": text, "weight": index / 2})
    return samples


@pytest.fixture(scope="session")
def finished_set(
    tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path, rows: list[dict[str, Any]]
) -> Path:
    """A finished set of `rows` by the small teacher, k = 16; copy it before changing it."""
    out = tmp_path_factory.mktemp("sets") / "labels"
    sl.precompute(
        rows,
        teacher_dir,
        out,
        selection=sl.TopK(16),
        key="id",
        max_length=64,
        unit_rows=16,
        batch_tokens=512,
        codec="plain",
        progress=False,
    )
    return out


@pytest.fixture(scope="session")
def id_rows() -> list[dict[str, Any]]:
    """Six samples of token ids with string keys; the second is long enough for three windows."""
    rng = np.random.default_rng(0)
    return [
        {"id": f"s{index}", "ids": rng.integers(0, CLASSES, size).tolist()}
        for index, size in enumerate([5, 15, 5, 5, 5, 5])
    ]


@pytest.fixture(scope="session")
def precompute(id_rows: list[dict[str, Any]]) -> Precompute:
    """`sl.precompute` of rows of token ids with a small teacher, k = 3, three rows a shard."""
    table = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0)) * 2

    def run(out: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> sl.LabelSet:
        teacher = options.pop("teacher", None) or sl.teachers.from_callable(
            lambda ids: table[ids], name="table", version="1", classes=CLASSES
        )
        settings: dict[str, Any] = {
            "selection": sl.TopK(3),
            "column": "ids",
            "key": "id",
            "max_length": 6,
            "unit_rows": 3,
            "temperatures": (1.0, 2.0),
            "codec": "plain",
        }
        return sl.precompute(
            id_rows if rows is None else rows,
            teacher,
            out,
            progress=False,
            **(settings | options),
        )

    return run


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, precompute: Precompute) -> Path:
    """A finished set of two shards; never changed."""
    out = tmp_path_factory.mktemp("tiny") / "labels"
    precompute(out)
    return out


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to do what you like with."""
    return Path(shutil.copytree(pristine, tmp_path / "labels"))
