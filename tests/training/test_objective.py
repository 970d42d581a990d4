"""The loss of a batch: the formula that the recipe names, over the positions that count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_students import llama, phi

import softlabels as sl
from softlabels.errors import InputError, MissingTailError
from softlabels.training import LossRecipe, OptimizerRecipe, TrainRecipe, train
from softlabels.training.forward import Student
from softlabels.training.objective import check_loss, from_hidden, from_logits, targets
from softlabels.training.step import adamw, take_step
from softlabels.training.student import separate_head

D = sl.losses
# Each loss of a recipe beside the call that a loop of one's own would make.
DIRECT: dict[str, tuple[LossRecipe, Any]] = {
    "kl": (LossRecipe(), lambda z, y, h: D.kl_divergence(z, y)),
    "kl at 2": (
        LossRecipe(temperature=2.0),
        lambda z, y, h: D.kl_divergence(z, y, temperature=2.0),
    ),
    "kl, uniform": (
        LossRecipe(tail="uniform"),
        lambda z, y, h: D.kl_divergence(z, y, tail="uniform"),
    ),
    "kl, renormalised": (
        LossRecipe(tail="renormalised"),
        lambda z, y, h: D.kl_divergence(z, y, tail="renormalised"),
    ),
    "kl, top 2": (LossRecipe(k=2), lambda z, y, h: D.kl_divergence(z, y.top(2))),
    "reverse": (LossRecipe(name="reverse_kl"), lambda z, y, h: D.reverse_kl_divergence(z, y)),
    "js": (LossRecipe(name="js", beta=0.3), lambda z, y, h: D.js_divergence(z, y, beta=0.3)),
    "tv": (LossRecipe(name="total_variation"), lambda z, y, h: D.total_variation(z, y)),
    "soft ce": (LossRecipe(name="soft_cross_entropy"), lambda z, y, h: D.soft_cross_entropy(z, y)),
    "mse": (LossRecipe(name="logit_mse"), lambda z, y, h: D.logit_mse(z, y)),
}


@pytest.fixture(scope="module")
def batch(labels: sl.LabelSet) -> dict[str, Any]:
    return next(iter(sl.loader(labels, batch_size=8, shuffle=False)))


@pytest.mark.parametrize("name", DIRECT)
def test_the_kd_loss_is_the_one_that_its_name_calls(batch: dict[str, Any], name: str) -> None:
    recipe, direct = DIRECT[name]
    y = batch["soft_labels"]
    logits = torch.randn(*y.shape, 16, generator=torch.Generator().manual_seed(1))
    found = from_logits(recipe, logits, targets(batch, recipe), weight=0, positions=(7, 5))
    assert torch.allclose(found.total, direct(logits, y, None).sum() / 7)
    assert found.ce is None


def test_decoupled_counts_positions_with_a_hard_label(batch: dict[str, Any]) -> None:
    recipe = LossRecipe(name="decoupled_kl", alpha=2.0, beta=3.0)
    own = targets(batch, recipe)
    logits = torch.randn(*own.mask.shape, 16, generator=torch.Generator().manual_seed(1))
    counts = own.positions(recipe).tolist()
    assert counts[0] == counts[1] == int((own.hard != -100).sum()) < int(own.mask.sum())
    direct = D.decoupled_kl_divergence(logits, own.soft, own.hard, alpha=2.0, beta=3.0)
    found = from_logits(recipe, logits, own, weight=0, positions=(counts[0], counts[1]))
    assert torch.allclose(found.total, direct.sum() / counts[0])


def test_the_mix_weighs_two_means_over_their_own_positions(batch: dict[str, Any]) -> None:
    own = targets(batch)
    logits = torch.randn(*own.mask.shape, 16, generator=torch.Generator().manual_seed(1))
    soft, hard = int(own.mask.sum()), int((own.hard != -100).sum())
    kd = D.kl_divergence(logits, own.soft).sum() / soft
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), own.hard.flatten())
    found = from_logits(LossRecipe(), logits, own, weight=0.25, positions=(soft, hard))
    assert torch.allclose(found.total, 0.75 * kd + 0.25 * ce)
    assert found.kd is not None
    assert found.ce is not None
    assert torch.allclose(found.kd, kd)
    assert torch.allclose(found.ce, ce)


def test_a_token_that_is_context_only_has_no_hard_label_either(batch: dict[str, Any]) -> None:
    own = targets(batch)
    context = ~own.mask & batch["attention_mask"].bool()
    assert context.any()
    assert (own.hard[context] == -100).all()


def stepped(
    model: Any, batches: list[dict[str, Any]], loss: LossRecipe, **options: Any
) -> tuple[Any, list[torch.Tensor]]:
    """A step's numbers and the gradients it took, clipped to nothing."""
    recipe = TrainRecipe(steps=2, loss=loss, optimizer=OptimizerRecipe(clip=None))
    student = Student(model, separate_head(model))
    kept: list[torch.Tensor] = []
    optimizer = adamw(model, recipe.optimizer)
    optimizer.register_step_pre_hook(
        lambda *_: kept.extend(p.grad.clone() for p in model.parameters())
    )
    taken = take_step(student, optimizer, batches, recipe, step=0, steps=2, parts=True)
    return taken, kept


@pytest.mark.parametrize("make", [llama, phi])
@pytest.mark.parametrize(
    "loss",
    [
        LossRecipe(),
        LossRecipe(temperature=2.0, k=3),
        LossRecipe(tail="renormalised", hard_weight=0.3),
        LossRecipe(temperature=2.0, hard_weight=0.3),
        LossRecipe(name="ce"),
    ],
)
def test_through_hidden_states_is_through_logits(
    batch: dict[str, Any], make: Any, loss: LossRecipe
) -> None:
    one, slopes = stepped(make(), [batch], replace(loss, through="hidden"))
    other, expected = stepped(make(), [batch], replace(loss, through="logits"))
    for name in ("loss", "kd", "ce", "grad_norm"):
        found, wanted = getattr(one, name), getattr(other, name)
        assert (found is None) == (wanted is None)
        assert found is None or found == pytest.approx(wanted, rel=1e-4)
    for found, wanted in zip(slopes, expected, strict=True):
        # Sums of float32 in another order.
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("through", ["hidden", "logits"])
def test_bfloat16_is_off_by_its_own_rounding(batch: dict[str, Any], through: Any) -> None:
    loss = LossRecipe(hard_weight=0.3, through=through)
    own, found = targets(batch, loss), {}
    counts = own.positions(loss).tolist()
    for narrow in (False, True):
        model = phi()
        student = Student(model, separate_head(model), autocast=narrow)
        if through == "hidden":
            hidden = student.hidden(batch)
            assert hidden.states.dtype == (torch.bfloat16 if narrow else torch.float32)
            made = from_hidden(loss, hidden, own, weight=0.3, positions=counts, parts=True)
        else:
            made = from_logits(loss, student.logits(batch), own, weight=0.3, positions=counts)
        made.total.backward()
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        slopes = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[narrow] = (float(made.total.detach()), float(made.ce), slopes)
    for one, other in zip(found[True][:2], found[False][:2], strict=True):
        assert one != other
        assert one == pytest.approx(other, rel=2**-7)
    off = (found[True][2] - found[False][2]).norm() / found[False][2].norm()
    assert off < 2**-5  # a few roundings of 2⁻⁹ in a row


@pytest.mark.parametrize("through", ["hidden", "logits"])
def test_batches_of_a_step_weigh_as_one(labels: sl.LabelSet, through: Any) -> None:
    loss = LossRecipe(hard_weight=0.4, through=through)
    parts = list(sl.loader(labels, batch_size=5, shuffle=False))[:2]
    (whole, *_) = sl.loader(labels, batch_size=10, shuffle=False)
    assert parts[0]["soft_labels"].mask.sum() != parts[1]["soft_labels"].mask.sum()
    together, slopes = stepped(llama(), parts, loss)
    once, expected = stepped(llama(), [whole], loss)
    assert together.tokens == once.tokens
    assert together.loss == pytest.approx(once.loss, rel=1e-5)
    for found, wanted in zip(slopes, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_packed_rows_give_the_loss_of_a_row_each(labels: sl.LabelSet) -> None:
    (packed,) = sl.loader(labels, batch_size=64, row_length=16, shuffle=False)
    (padded,) = sl.loader(labels, batch_size=64, shuffle=False)
    assert len(packed["input_ids"]) < len(padded["input_ids"])
    for through in ("hidden", "logits"):
        loss = LossRecipe(hard_weight=0.4, through=through)  # type: ignore[arg-type]
        one, other = (stepped(llama(), [b], loss)[0] for b in (packed, padded))
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.tokens == other.tokens


def test_fewer_classes_at_read_time_are_those_of_a_smaller_set(
    labels: sl.LabelSet, recipe: TrainRecipe, tmp_path: Path
) -> None:
    smaller = sl.derive(labels.root, tmp_path / "smaller", k=2)
    first = train(labels, recipe=replace(recipe, loss=LossRecipe(k=2)), out=tmp_path / "a")
    other = train(smaller, recipe=recipe, out=tmp_path / "b")
    losses = [
        [float(line.split('"loss": ')[1].split(",")[0])
         for line in (run.out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for run in (first, other)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (LossRecipe(k=7), InputError, "k = 7.*keeps 6"),
        (LossRecipe(temperature=0.5), MissingTailError, "temperature 0.5"),
        (LossRecipe(name="reverse_kl", tail="renormalised"), InputError, "infinite"),
    ],
)
def test_a_loss_that_the_set_cannot_give_fails_before_any_training(
    labels: sl.LabelSet, loss: LossRecipe, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        check_loss(loss, labels)
