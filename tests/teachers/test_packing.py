"""Several records in a row: each has the logits it has alone, or the model says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import CLASSES, built
from torch import Tensor

from softlabels.errors import TeacherError
from softlabels.teachers import causal_lm

# Longer than the sliding window of the models that have one, which is 4; one of a single token.
ROWS = [[9, 1, 6], [4, 7], [12]]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
CAN = [
    "Llama",
    "Qwen2",
    "Qwen3",
    "Mistral, window",
    "Gemma2, soft cap",
    "Gemma3",
    "GPT2",
    "GPTNeoX",
    "Phi, head with bias",
    "Mixtral, experts",
]
CANNOT = ["BLOOM", "OPT", "Mamba"]


def packed() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, wanted, padding and positions, (3, 16)."""
    ids = torch.randint(3, CLASSES, (len(ROWS), 16))
    positions, padding = torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool)
    for row, lengths in enumerate(ROWS):
        own = torch.cat([torch.arange(length) for length in lengths])
        positions[row, : len(own)], padding[row, : len(own)] = own, False
    wanted = (torch.arange(ids.numel()).view_as(ids) % 3 != 1) & ~padding
    return ids.masked_fill(padding, 0), wanted, padding, positions


@torch.no_grad()
def oracle(model: Any, ids: Tensor, wanted: Tensor) -> Tensor:
    """Every record alone."""
    rows = []
    for row, lengths in enumerate(ROWS):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            rows.append(model(ids[row : row + 1, part]).logits[0, wanted[row, part]])
            start += length
    return torch.cat(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CAN)
def test_packed_records_have_the_logits_they_have_alone(name: str, attention: str) -> None:
    if name.startswith("Gemma2") and attention == "sdpa":
        pytest.skip("its soft cap has no sdpa")
    model, (ids, wanted, padding, positions) = built(name), packed()
    model.set_attn_implementation(attention)
    teacher: Any = causal_lm(model)
    found = torch.cat(list(teacher.logits(ids, wanted, padding=padding, position_ids=positions)))
    expected = oracle(model, ids, wanted)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert teacher.can_pack
    if "window" in name:
        assert model.config.sliding_window == 4


@pytest.mark.filterwarnings("ignore:.*its head cannot be run apart")
@pytest.mark.parametrize("name", CANNOT)
def test_a_model_that_cannot_keep_records_apart_says_so(name: str) -> None:
    model, (ids, wanted, padding, positions) = built(name), packed()
    teacher: Any = causal_lm(model)
    assert not teacher.can_pack
    with pytest.raises(TeacherError, match=f"{type(model).__name__} cannot keep the records"):
        next(teacher.logits(ids, wanted, padding=padding, position_ids=positions))
    next(teacher.logits(ids, wanted, padding=padding))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Llama", "OPT", "BLOOM"])
def test_whether_it_can_is_seen_in_half_precision_too(name: str, dtype: torch.dtype) -> None:
    assert causal_lm(built(name).to(dtype)).can_pack == (name == "Llama")  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_of_a_thousandth_is_seen(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built("Llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)  # what records see of each other
    model.to(dtype)
    assert causal_lm(model).can_pack  # type: ignore[attr-defined]
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: None)
    assert not causal_lm(model).can_pack  # type: ignore[attr-defined]


@pytest.mark.parametrize("position", [-1, 7, 64])
def test_positions_in_the_padding_do_not_matter(position: int) -> None:
    model, (ids, wanted, padding, positions) = built("GPT2"), packed()
    teacher: Any = causal_lm(model)
    options = {"padding": padding, "position_ids": positions.masked_fill(padding, position)}
    found = torch.cat(list(teacher.logits(ids, wanted, **options)))
    torch.testing.assert_close(found, oracle(model, ids, wanted), **TOLERANCE)


def test_dropout_is_off_when_it_is_tried() -> None:
    model = built("GPT2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    assert causal_lm(model).can_pack  # type: ignore[attr-defined]
