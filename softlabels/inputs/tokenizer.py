"""What makes two tokenizers the same, in parts, so that a difference can be named."""

from __future__ import annotations

import json
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict

from softlabels.errors import VocabularyMismatchError, quoted


class TokenizerIdentity(BaseModel):
    """Digests (xxh3-128, hex) of what decides which ids a text becomes.

    Attributes:
        size: number of tokens, added ones included.
        vocabulary: of every token and its id.
        pipeline: of normaliser, pre-tokeniser, model, post-processor and added tokens; None for
            tokenizers that are not backed by a `tokenizers` pipeline.
        special_tokens: name → id, e.g. {"bos_token": 1}.
        chat_template: of the template's text; None without one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    size: int
    vocabulary: str
    pipeline: str | None
    special_tokens: dict[str, int]
    chat_template: str | None = None


def identify(tokenizer: Any) -> TokenizerIdentity:
    """Describe a transformers tokenizer."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = getattr(tokenizer, "chat_template", None)
    return TokenizerIdentity(
        size=len(vocabulary),
        vocabulary=_digest(vocabulary),
        pipeline=None if backend is None else _digest(_pipeline(json.loads(backend.to_str()))),
        special_tokens={
            name: tokenizer.convert_tokens_to_ids(token)
            for name, token in sorted(tokenizer.special_tokens_map.items())
            if isinstance(token, str)
        },
        chat_template=None if template is None else _digest(template),
    )


def check_same(student: Any, teacher: TokenizerIdentity, *, messages: bool = False) -> None:
    """Refuse a student tokenizer that would give other ids than the labels' own.

    Args:
        student: a transformers tokenizer.
        teacher: what the plan recorded.
        messages: whether the chat template takes part.

    Raises:
        VocabularyMismatchError: naming every part that differs.
    """
    found = identify(student)
    differences = []
    if found.size != teacher.size:
        differences.append(f"it has {found.size} tokens, the teacher's has {teacher.size}")
    elif found.vocabulary != teacher.vocabulary:
        differences.append("its tokens or their ids are others")
    if found.pipeline and teacher.pipeline and found.pipeline != teacher.pipeline:
        differences.append("it splits text in another way (normaliser, pre-tokeniser or merges)")
    for name in sorted(found.special_tokens.keys() & teacher.special_tokens.keys()):
        ours, theirs = found.special_tokens[name], teacher.special_tokens[name]
        if ours != theirs and name in ("bos_token", "eos_token"):
            differences.append(f"its {name} has id {ours}, the teacher's {theirs}")
    if messages and found.chat_template != teacher.chat_template:
        differences.append("its chat template is another")
    if differences:
        name = quoted(getattr(student, "name_or_path", "") or type(student).__name__)
        raise VocabularyMismatchError(
            f"the student's tokenizer {name} is not the teacher's: {'; '.join(differences)}. The "
            "labels' class ids would mean other tokens: use the tokenizer stored with the set "
            "(its tokenizer/ folder), or label again with a teacher that shares the student's"
        )


def _pipeline(backend: dict[str, Any]) -> dict[str, Any]:
    # Truncation and padding are state of the last call, not of the tokenizer; that an added token
    # is special matters to decoding alone.
    kept = {k: v for k, v in backend.items() if k not in ("truncation", "padding")}
    added = kept.get("added_tokens") or []
    return kept | {"added_tokens": [{k: t[k] for k in t if k != "special"} for t in added]}


def _digest(value: Any) -> str:
    data = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(data.encode())
