"""What is tried on a student before it trains: causality, and records kept apart in a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_students import Table, llama
from torch import nn

import softlabels as sl
from softlabels.errors import InputError
from softlabels.training import StudentRecipe, TrainRecipe, train
from softlabels.training.forward import Student
from softlabels.training.trials import check_causal, check_packing

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def built(model_type: str, *, attention: str = "sdpa", **fields: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config: Any = AutoConfig.for_model(model_type, vocab_size=16, **fields)
    auto: Any = AutoModelForCausalLM
    return auto.from_config(config, attn_implementation=attention)


def mistral(window: int) -> Any:
    return built(
        "mistral", hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=window,
    )  # fmt: skip


class Recurrent(nn.Module):
    """Sees what came before by another way than attention, and takes a mask all the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.cell = nn.Embedding(16, 16), nn.GRU(16, 16, batch_first=True)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any, position_ids: Any = None
    ) -> Any:
        return SimpleNamespace(logits=self.cell(self.embedding(input_ids))[0])


def without_positions(model: Any) -> Any:
    """The model, which from now on does not look at the positions that it is given."""
    real = model.forward

    def forward(position_ids: Any = None, **inputs: Any) -> Any:
        if inputs["attention_mask"].ndim == 2:
            return real(**inputs)
        return real(position_ids=torch.arange(16).expand(2, -1) ** 2, **inputs)

    model.forward = forward
    return model


def test_a_causal_student_passes_and_stays_in_its_mode() -> None:
    model = llama().train()
    check_causal(model, 16)
    check_packing(Student(model), 16, 8)
    assert model.training


def test_an_encoder_sees_what_it_is_to_predict_unless_it_is_a_decoder(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    encoder = replace(recipe, student=StudentRecipe(config=BERT))
    with pytest.raises(InputError, match=r"BertLMHeadModel, is not causal.*is_decoder true"):
        train(labels, recipe=encoder, out=out)
    decoder = replace(recipe, student=StudentRecipe(config={**BERT, "is_decoder": True}), steps=1)
    assert train(labels, recipe=decoder, out=out).steps == 1


@pytest.mark.parametrize(
    "student",
    [lambda: mistral(2), Recurrent, lambda: without_positions(llama()), lambda: Table(0)],
    ids=["sliding window", "recurrent", "no positions", "no argument for them"],
)
def test_a_student_that_mixes_the_records_of_a_row_is_refused(student: Any) -> None:
    with pytest.raises(InputError, match="leave out row_length"):
        check_packing(Student(student()), 16, 8)


def test_a_window_that_no_record_leaves_keeps_them_apart() -> None:
    check_packing(Student(mistral(8)), 16, 8)
    with pytest.raises(InputError, match="leave out row_length"):
        check_packing(Student(mistral(8)), 16, 9)


def test_a_run_tries_packing_where_it_is_asked_for_alone(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    recipe = replace(recipe, student=None, steps=1)
    packed = replace(recipe, data=replace(recipe.data, row_length=16))
    with pytest.raises(InputError, match="a Recurrent, does not keep"):
        train(labels, recipe=packed, out=out, student=Recurrent())
    assert train(labels, recipe=recipe, out=out, student=Recurrent()).steps == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_of_several_records_has_the_logits_of_each_alone(attention: str) -> None:
    model = built(
        "llama", attention=attention, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5,
    ).eval()  # fmt: skip
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    row = {
        "input_ids": ids.view(1, 8),
        "segment_ids": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]),
    }
    with torch.no_grad():
        alone = Student(model).logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        found = Student(model).logits(row).view_as(alone)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
