"""Sets without their inputs: tokens are made again from the data and held to their digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from delivered import contents

import softlabels as sl
from softlabels.errors import (
    CorruptShardError,
    InputError,
    JoinError,
    VocabularyMismatchError,
)

Precompute = Callable[..., sl.LabelSet]
Samples = list[dict[str, Any]]


CHAT = [
    {"role": "user", "content": "Say something about"},
    {"role": "assistant", "content": "It is a word of the language"},
]


@pytest.fixture(scope="module")
def retold(texts: list[str], samples: Samples) -> Samples:
    """The same twelve samples as text, chat and ids; the third is long."""
    found = []
    for i in range(12):
        text = " ".join(texts[i : i + (4 if i == 2 else 1)])
        user = {"role": "user", "content": f"{CHAT[0]['content']} {text[:20]}"}
        ids = samples[i % 10]["ids"]
        found.append({"id": i, "text": text, "messages": [user, CHAT[1]], "ids": ids})
    return found


@pytest.mark.parametrize(
    ("column", "options"),
    [
        ("text", {}),
        ("text", {"on_long": "truncate"}),
        ("text", {"overlap": 8}),
        ("messages", {"assistant_only": True}),
        ("ids", {"max_length": 6}),
    ],
)
def test_a_set_without_inputs_gives_what_one_with_inputs_gives(
    retold: Samples,
    tmp_path: Path,
    precompute: Precompute,
    tokenizer: Any,
    column: str,
    options: dict[str, Any],
) -> None:
    table = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))
    teacher = sl.teachers.from_callable(
        lambda ids: table[ids], name="table", version="1", classes=512, tokenizer=tokenizer
    )
    options = {"column": column, "max_length": 48, "teacher": teacher} | options
    carried = precompute(tmp_path / "carried", retold, **options)
    bare = precompute(tmp_path / "bare", retold, store_inputs=False, **options)
    with pytest.raises(InputError, match="does not carry its inputs"):
        sl.loader(bare)
    expected = contents(sl.loader(carried))
    data = datasets.Dataset.from_list(retold).shuffle(seed=0)
    assert contents(sl.loader(bare, data, batch_size=5, seed=0)) == expected
    assert contents(sl.loader(bare, data, tokenizer=tokenizer)) == expected
    assert contents(sl.loader(carried, data)) == expected


def test_tokens_made_in_another_way_are_caught_by_their_digest(
    retold: Samples,
    tmp_path: Path,
    precompute: Precompute,
    tokenizer: Any,
    teacher_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoTokenizer

    teacher = sl.teachers.from_callable(
        lambda ids: torch.zeros(*ids.shape, 512),
        name="flat",
        version="1",
        classes=512,
        tokenizer=tokenizer,
    )
    labels = precompute(
        tmp_path / "set", retold, column="text", teacher=teacher, store_inputs=False
    )
    other = AutoTokenizer.from_pretrained(teacher_dir, bos_token="<|im_start|>")
    with pytest.raises(VocabularyMismatchError, match="bos_token has id 1, the teacher's 0"):
        sl.loader(labels, retold, tokenizer=other)
    # The set's own folder, changed by hand.
    file = tmp_path / "set" / "tokenizer" / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true', 1))
    with pytest.raises(CorruptShardError, match=r"tokenizer/tokenizer\.json"):
        sl.loader(sl.LabelSet.open(labels.root), retold)
    # No identity is asked of such a folder: the digest of what it gives finds it.
    monkeypatch.setattr(sl.LabelSet, "tokenizer_folder", lambda _: file.parent)
    with pytest.raises(JoinError, match=r'key "0", part 0: its tokens'):
        list(sl.loader(labels, retold))
