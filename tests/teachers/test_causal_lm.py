"""CausalLM: what it gives is what plain transformers gives, for every architecture tried."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CLASSES, built
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels.errors import TeacherError
from softlabels.inputs.windows import Windows
from softlabels.precomputing.batches import padded
from softlabels.teachers import causal_lm
from softlabels.teachers import transformers as engine

SEPARABLE = [
    "Llama",
    "Llama, tied",
    "Qwen2",
    "Gemma2, soft cap",
    "Gemma3",
    "Granite, scaled",
    "Phi, head with bias",
    "GPTNeoX",
    "Mixtral, experts",
    "GPT2",
    "BLOOM",
]
LENGTHS = [9, 5, 1, 3]
# Padding changes the order in which attention sums, nothing else.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def batch(lengths: list[int] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, wanted and padding of sequences of these lengths; two of three positions are wanted."""
    ids = torch.randint(3, CLASSES, (len(lengths), max(lengths)))
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    wanted = (torch.arange(ids.numel()).view_as(ids) % 3 != 1) & ~padding
    return ids.masked_fill(padding, 0), wanted, padding


@torch.no_grad()
def oracle(model: Any, ids: torch.Tensor, wanted: torch.Tensor, padding: torch.Tensor) -> Any:
    """Each sequence alone and whole, without padding; logits[t] of every wanted position t."""
    model.eval()
    rows = []
    for row in range(len(ids)):
        own = ~padding[row]
        logits = model(ids[row : row + 1, own]).logits[0]
        rows += [logits[t] for t in range(int(own.sum())) if wanted[row, t]]
    return torch.stack(rows)


def answer(teacher: Any, ids: Any, wanted: Any, padding: Any) -> torch.Tensor:
    return torch.cat(list(teacher.logits(ids, wanted, padding=padding)))


@pytest.mark.parametrize("name", SEPARABLE)
def test_logits_are_those_of_each_sequence_alone(name: str) -> None:
    model, inputs = built(name), batch()
    if getattr(model.lm_head if hasattr(model, "lm_head") else None, "bias", None) is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    found = answer(causal_lm(model), *inputs)  # a warning would be an error
    expected = oracle(model, *inputs)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_head_that_cannot_run_alone_is_run_whole_with_a_warning_once() -> None:
    model, inputs = built("OPT"), batch()
    teacher = causal_lm(model)
    with pytest.warns(UserWarning, match="OPTForCausalLM: its head cannot be run apart"):
        found = answer(teacher, *inputs)
    torch.testing.assert_close(found, oracle(model, *inputs), **TOLERANCE)
    torch.testing.assert_close(answer(teacher, *inputs), found)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_a_head_fed_by_more_than_the_body_is_found_out_however_small_its_logits(
    scale: float, llama: Any
) -> None:
    forward, weight = llama.forward, llama.lm_head.weight
    weight.data *= scale

    def with_prior(input_ids: torch.Tensor, **options: Any) -> Any:
        found = forward(input_ids=input_ids, **options)
        found.logits = found.logits + scale * input_ids.unsqueeze(-1)  # a head alone sees no ids
        return found

    llama.forward = with_prior
    inputs = batch()
    with pytest.warns(UserWarning, match="cannot be run apart"):
        found = answer(causal_lm(llama), *inputs)
    torch.testing.assert_close(found, oracle(llama, *inputs), rtol=1e-4, atol=2e-5 * scale)


def test_entry_t_is_the_distribution_over_token_t_plus_1(llama: Any) -> None:
    ids, _, padding = batch([6])
    everything = torch.ones_like(padding)
    found = answer(causal_lm(llama), ids, everything, padding)
    with torch.no_grad():
        for t in range(6):
            changed = ids.clone()
            changed[0, t + 1 :] = 2  # what comes after t must not matter to entry t
            expected = llama(changed).logits[0, t]
            torch.testing.assert_close(found[t], expected, **TOLERANCE)
            step = llama(ids[:, : t + 1]).logits[0, -1]  # what generation would sample from
            torch.testing.assert_close(found[t], step, **TOLERANCE)


@given(hnp.arrays(bool, (4, 9)), st.integers(1, 7))
@settings(deadline=None, max_examples=25)
def test_only_wanted_rows_are_made_a_few_at_a_time_in_row_major_order(
    drawn: np.ndarray, rows: int
) -> None:
    torch.manual_seed(0)
    model, (ids, _, padding) = built("Llama"), batch()
    wanted = torch.from_numpy(drawn) & ~padding
    wanted[0, 0] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engine._CHUNK_BYTES, "cpu", 4 * CLASSES * rows + 3)
        chunks = list(causal_lm(model).logits(ids, wanted, padding=padding))
    total = int(wanted.sum())
    assert [len(chunk) for chunk in chunks] == [
        min(rows, total - start) for start in range(0, total, rows)
    ]
    torch.testing.assert_close(torch.cat(chunks), oracle(model, ids, wanted, padding), **TOLERANCE)


def test_a_chunk_is_at_least_one_row_and_the_whole_path_is_chunked_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(engine._CHUNK_BYTES, "cpu", 1)
    inputs = batch([3, 2])
    whole = pytest.warns(UserWarning, match="cannot be run apart")
    for name, warned in (("Llama", contextlib.nullcontext()), ("OPT", whole)):
        with warned:
            chunks = list(causal_lm(built(name)).logits(inputs[0], inputs[1], padding=inputs[2]))
        assert {len(chunk) for chunk in chunks} == {1}


def test_the_batches_that_precompute_makes_give_each_record_its_own_logits(llama: Any) -> None:
    lengths = np.asarray([4, 7, 2])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    windows = Windows(
        rows=np.arange(3), parts=np.zeros(3, int), starts=np.zeros(3, int),
        source_lengths=lengths, token_ids=np.arange(13) % CLASSES, offsets=offsets,
        next_ids=np.full(3, -1), wanted=np.arange(13) % 4 != 2, digests=[b""] * 3,
    )  # fmt: skip
    ids, wanted, padding = padded(windows, np.asarray([1, 0, 2]))
    found = answer(causal_lm(llama), ids, wanted, padding)
    torch.testing.assert_close(found, oracle(llama, ids, wanted, padding), **TOLERANCE)


def test_dropout_is_off_even_if_the_model_is_trained_between_two_calls() -> None:
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    model, inputs = built("GPT2", **dropout), batch()
    teacher = causal_lm(model.train())
    expected = oracle(model, *inputs)
    for _ in range(2):
        model.train()
        torch.testing.assert_close(answer(teacher, *inputs), expected, **TOLERANCE)


def test_no_gradient_is_kept_and_the_model_is_left_whole(llama: Any) -> None:
    before = list(llama.state_dict())
    inputs = batch()
    for logits in causal_lm(llama).logits(inputs[0], inputs[1], padding=inputs[2]):
        assert not logits.requires_grad
    assert list(llama.state_dict()) == before
    assert llama.model(inputs[0]).last_hidden_state.requires_grad


def test_the_model_is_left_whole_when_its_head_raises(llama: Any) -> None:
    teacher, inputs = causal_lm(llama), batch()
    answer(teacher, *inputs)
    body = llama.model
    head, llama.lm_head = llama.lm_head, torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        answer(teacher, *inputs)
    assert llama.model is body
    llama.lm_head = head
    torch.testing.assert_close(answer(teacher, *inputs), oracle(llama, *inputs), **TOLERANCE)


def test_logits_of_another_width_than_the_config_s_are_refused(llama: Any) -> None:
    llama.config.vocab_size = CLASSES + 3
    inputs = batch()
    with pytest.raises(TeacherError, match=r"logits have 97 classes, its config says 100"):
        answer(causal_lm(llama), *inputs)


def test_classes_and_max_length_come_from_the_config_without_loading_weights(
    tmp_path: Any,
) -> None:
    model = built("Llama")
    model.config.save_pretrained(tmp_path)
    teacher = causal_lm(tmp_path)
    assert (teacher.classes, teacher.max_length) == (CLASSES, 64)
    assert causal_lm(built("GPT2")).max_length == 64
    assert causal_lm(built("BLOOM")).max_length is None


def test_a_teacher_by_folder_gives_what_the_loaded_model_gives(tmp_path: Any, llama: Any) -> None:
    llama.save_pretrained(tmp_path)
    inputs = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = answer(causal_lm(tmp_path), *inputs)
    torch.testing.assert_close(found, answer(causal_lm(llama), *inputs))


def test_the_dtype_asked_for_is_used(tmp_path: Any, llama: Any) -> None:
    llama.save_pretrained(tmp_path)
    teacher = causal_lm(str(tmp_path), dtype=torch.bfloat16)
    inputs = batch()
    assert answer(teacher, *inputs).dtype == torch.bfloat16
    assert teacher.identity.dtype == "bfloat16"
    llama.to(torch.bfloat16).save_pretrained(tmp_path)
    assert causal_lm(tmp_path).identity.dtype == "float32"  # by default on a CPU


@pytest.mark.parametrize("device", ["no such device", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_weights_are_loaded(
    teacher_dir: Path, device: str
) -> None:
    with pytest.raises(TeacherError, match=device):
        causal_lm(teacher_dir, device=device)


def test_a_folder_has_no_revision(teacher_dir: Path) -> None:
    with pytest.raises(TeacherError, match="is a folder"):
        causal_lm(teacher_dir, revision="main")
