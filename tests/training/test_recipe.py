"""Recipes: what they refuse, what they write, how two of them differ."""

from __future__ import annotations

import json
from typing import Any

import pytest

from softlabels.errors import InputError
from softlabels.training import (
    DataRecipe,
    LossRecipe,
    OptimizerRecipe,
    StudentRecipe,
    TrainRecipe,
)
from softlabels.training.recipe import differences


def test_a_recipe_comes_back_from_json() -> None:
    recipe = TrainRecipe(
        student=StudentRecipe(config={"model_type": "llama", "hidden_size": 8}),
        loss=LossRecipe(name="js", beta=0.3, hard_weight=1.0, hard_weight_end=0.1,
                        hard_weight_schedule="cosine"),
        optimizer=OptimizerRecipe(schedule="wsd", betas=(0.8, 0.9)),
        data=DataRecipe(held_out_every=4),
        epochs=2,
    )  # fmt: skip
    written = json.loads(json.dumps(recipe.to_json(), allow_nan=False))
    assert TrainRecipe.from_json(written) == recipe
    assert TrainRecipe.from_json({"steps": 3}) == TrainRecipe(steps=3)


def test_a_part_that_has_no_fields_is_refused() -> None:
    with pytest.raises(InputError, match='a recipe\'s loss is "kl"; its fields go in an object'):
        TrainRecipe.from_json({"steps": 1, "loss": "kl"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 1, "stepz": 2}, '"stepz"'),
        ({"steps": 1, "loss": {"temprature": 2}}, '"loss.temprature"'),
    ],
)
def test_an_unknown_field_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        TrainRecipe.from_json(fields)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (LossRecipe, {"name": "klm"}, "name is \"klm\"; it is one of kl, reverse_kl"),
        (LossRecipe, {"temperature": 0}, "temperature is \"0\".*above 0"),
        (LossRecipe, {"temperature": float("nan")}, "temperature"),
        (LossRecipe, {"hard_weight": 1.5}, "hard_weight is \"1.5\".*at most 1"),
        (LossRecipe, {"hard_weight_schedule": "linear"}, "hard_weight_end is None"),
        (LossRecipe, {"hard_weight_end": 0.5}, "needs an end and"),
        (LossRecipe, {"k": True}, "k is \"True\""),
        (LossRecipe, {"name": "kl", "beta": 0.5}, "'kl' has no beta"),
        (LossRecipe, {"name": "ce", "hard_weight": 0.5}, "'ce' has no hard_weight"),
        (LossRecipe, {"name": "ce", "k": 3}, "'ce' has no k"),
        (LossRecipe, {"name": "logit_mse", "temperature": 2.0}, "'logit_mse' has no temperature"),
        (LossRecipe, {"name": "decoupled_kl", "tail": "uniform"}, "'decoupled_kl' has no tail"),
        (LossRecipe, {"name": "js", "through": "hidden"}, "'js' needs the logits"),
        (StudentRecipe, {"size": "tiny", "teacher": "t", "layers": 2}, "size and teacher"),
        (StudentRecipe, {"teacher": "t"}, "a pruned student needs both"),
        (StudentRecipe, {"config": {"hidden_size": 8}}, "no model_type"),
        (OptimizerRecipe, {"lr": 0.0}, "lr is"),
        (OptimizerRecipe, {"betas": (0.9, 1.0)}, "betas"),
        (OptimizerRecipe, {"betas": 3}, "betas are 3"),
        (OptimizerRecipe, {"betas": "ab"}, "betas are 'ab'"),
        (StudentRecipe, {"size": ["tiny"]}, r"size is \['tiny'\]; it is a name"),
        (OptimizerRecipe, {"schedule": "wsd", "warmup": 0.9, "decay": 0.2}, "more than all"),
        (DataRecipe, {"held_out": 1.0}, "held_out is \"1.0\".*below 1"),
        (DataRecipe, {"held_out": 0.1, "held_out_every": 3}, "choose one"),
        (DataRecipe, {"batch_size": 0}, "batch_size"),
        (TrainRecipe, {}, "steps is None and epochs None"),
        (TrainRecipe, {"steps": 1, "epochs": 1}, "one of them"),
        (TrainRecipe, {"steps": 2.5}, "steps is \"2.5\""),
        (TrainRecipe, {"steps": 1, "seed": -1}, "seed"),
        (TrainRecipe, {"steps": 1, "seed": 2**63}, "seed is 9223372036854775808; .*below 2⁶³"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(kind: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        kind(**fields)
    assert kind.__name__ in str(caught.value)


def test_differences_are_named_with_their_place() -> None:
    before = TrainRecipe(steps=5).to_json()
    now = TrainRecipe(steps=6, loss=LossRecipe(temperature=2.0, k=4)).to_json()
    assert differences(before, now) == [
        "loss.temperature was 1.0, is now 2.0",
        "loss.k was not given, is now 4",
        "steps was 5, is now 6",
    ]
