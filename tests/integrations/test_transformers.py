"""SoftLabelTrainer trains as plain gradient descent does, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from students import arguments, close, flat, make_student, oracle, sums
from transformers import BertConfig, BertForTokenClassification

import softlabels as sl
from softlabels.errors import InputError
from softlabels.integrations.transformers import SoftLabelTrainer, distillation

STREAM_STEPS = 9


def trainer(
    labels: sl.LabelSet, out: Path, *, data: Any = None, loss: Any = distillation, **options: Any
) -> SoftLabelTrainer:
    loader = sl.loader(labels, data, batch_size=2, seed=None if data is not None else 0)
    return SoftLabelTrainer(make_student(), arguments(out, **options), loader=loader, loss=loss)


def losses(made: SoftLabelTrainer) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@pytest.mark.parametrize("accumulated", [1, 3])
def test_it_trains_as_plain_gradient_descent_does(
    labels: sl.LabelSet, tmp_path: Path, accumulated: int
) -> None:
    made = trainer(labels, tmp_path, gradient_accumulation_steps=accumulated)
    made.train()
    assert made.num_examples(made.get_train_dataloader()) == len(labels)
    expected, weights, _ = oracle(labels, epochs=2, together=accumulated, batch_size=2, seed=0)
    assert close(losses(made), expected)
    assert close(flat(made.model), weights)
    assert expected[-1] < expected[0] / 2


class Seen:
    """The default loss, noting which tokens it was given."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> torch.Tensor:
        self.batches.append(batch["input_ids"].tolist())
        return distillation(outputs, batch)


@pytest.mark.parametrize(("accumulated", "restore_callbacks"), [(1, False), (3, True)])
def test_every_checkpoint_goes_on_to_the_same_student(
    labels: sl.LabelSet, tmp_path: Path, accumulated: int, restore_callbacks: bool
) -> None:
    options: dict[str, Any] = {
        "gradient_accumulation_steps": accumulated,
        "restore_callback_states_from_checkpoint": restore_callbacks,
    }
    whole = Seen()
    straight = trainer(labels, tmp_path, loss=whole, save_strategy="steps", save_steps=1, **options)
    straight.train()
    per_epoch = len(whole.batches) // 2
    steps = straight.state.global_step
    for step in (1, steps // 2, steps // 2 + 1):
        rest = Seen()
        resumed = trainer(labels, tmp_path, loss=rest, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        epoch, within = divmod(step, steps // 2)
        assert rest.batches == whole.batches[epoch * per_epoch + within * accumulated :]
        assert flat(resumed.model) == flat(straight.model)
        assert resumed.state.global_step == steps
        assert resumed.state.epoch == 2


def test_a_stream_goes_on_from_a_checkpoint_in_its_second_epoch(
    precompute: Any, id_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    labels = precompute(tmp_path / "labels", store_inputs=False)
    options: dict[str, Any] = {"data": Stream(id_rows), "max_steps": STREAM_STEPS}
    straight = trainer(labels, tmp_path, save_strategy="steps", save_steps=1, **options)
    straight.train()
    for step in (2, 5):
        resumed = trainer(labels, tmp_path, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert flat(resumed.model) == flat(straight.model)
        assert resumed.state.global_step == STREAM_STEPS


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Rows without random access."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_evaluation_is_the_mean_over_all_positions(labels: sl.LabelSet, tmp_path: Path) -> None:
    held_out = sl.loader(labels, batch_size=3)
    made = SoftLabelTrainer(
        make_student(),
        arguments(tmp_path, eval_strategy="epoch", num_train_epochs=1),
        loader=sl.loader(labels, batch_size=2),
        eval_dataset={"all": held_out},
    )
    made.train()
    found = [e["eval_all_loss"] for e in made.state.log_history if "eval_all_loss" in e]
    with torch.no_grad():
        parts = [sums(made.model, batch) for batch in held_out]
    expected = float(sum(p for p, _ in parts) / sum(n for _, n in parts))
    assert close(found, [expected])
    assert made.evaluate(held_out)["eval_loss"] == found[0]
    assert made.model.training


def test_rows_of_several_records_give_the_same_gradient(
    labels: sl.LabelSet, tmp_path: Path
) -> None:
    weights = []
    for options in ({"batch_size": len(labels)}, {"batch_size": 64, "row_length": 16}):
        loader = sl.loader(labels, **options)
        assert len(loader) == 1
        made = SoftLabelTrainer(
            make_student(), arguments(tmp_path, num_train_epochs=3), loader=loader
        )
        made.train()
        weights.append(flat(made.model))
    assert close(weights[1], weights[0])


@pytest.mark.parametrize("alignment", ["next", "same"])
def test_students_of_the_same_token_see_their_whole_record_in_packed_rows(
    precompute: Any, id_rows: list[dict[str, Any]], tmp_path: Path, alignment: str
) -> None:
    teacher = sl.teachers.from_callable(
        lambda ids: torch.eye(16)[ids.flip(0)] * 5, name="flipped", version="1", classes=16
    )
    teacher.alignment = alignment
    labels = precompute(tmp_path / "labels", id_rows, teacher=teacher)
    weights = []
    for options in ({"batch_size": len(labels)}, {"batch_size": 64, "row_length": 16}):
        made = SoftLabelTrainer(
            encoder(), arguments(tmp_path, max_steps=2), loader=sl.loader(labels, **options)
        )
        made.train()
        weights.append(flat(made.model))
    # An encoder fits labels of its own token; of the next one it would have seen them.
    assert close(weights[1], weights[0]) == (alignment == "same")


def encoder() -> BertForTokenClassification:
    """One layer that looks both ways over sixteen classes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        num_labels=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForTokenClassification(config)


def test_a_mix_that_no_attention_fits_is_refused(
    labels: sl.LabelSet, precompute: Any, tmp_path: Path
) -> None:
    teacher = sl.teachers.from_callable(
        lambda ids: torch.eye(16)[ids], name="eye", version="1", classes=16
    )
    teacher.alignment = "same"
    other = precompute(tmp_path / "labels", teacher=teacher)
    mixed = sl.mix([sl.loader(part, row_length=16) for part in (labels, other)])
    made = SoftLabelTrainer(make_student(), arguments(tmp_path, max_steps=1), loader=mixed)
    with pytest.raises(InputError, match=r"'next' token and of the 'same' one"):
        made.train()


def test_a_loss_may_count_other_positions(labels: sl.LabelSet, tmp_path: Path) -> None:
    def hard(batch: dict[str, Any]) -> torch.Tensor:
        return sl.losses.next_tokens(
            batch["input_ids"], batch["attention_mask"], next_ids=batch["next_ids"]
        )

    made = SoftLabelTrainer(
        make_student(),
        arguments(tmp_path, max_steps=1),
        loader=sl.loader(labels, batch_size=4),
        loss=lambda outputs, batch: sl.losses.cross_entropy(outputs.logits, hard(batch)),
        positions=lambda batch: hard(batch) != -100,
    )
    made.train()
    batch, model = next(iter(sl.loader(labels, batch_size=4))), make_student()
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), hard(batch).flatten())
    assert close(losses(made), [float(expected.detach())])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataloader_num_workers": 2}, "threads"),
        ({"auto_find_batch_size": True}, "batch_size in sl.loader"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor is 0.1.* smooth in loss="),
    ],
)
def test_arguments_that_cannot_be_had_are_refused(
    labels: sl.LabelSet, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        trainer(labels, tmp_path, **options)


def test_other_data_and_the_loader_of_another_rank_are_refused(
    labels: sl.LabelSet, tmp_path: Path
) -> None:
    args, loader = arguments(tmp_path), sl.loader(labels)
    with pytest.raises(InputError, match="train_dataset= was given"):
        SoftLabelTrainer(make_student(), args, loader=loader, train_dataset=[1])
    with pytest.raises(InputError, match="rank 1 of 2, this process is rank 0 of 1"):
        SoftLabelTrainer(make_student(), args, loader=sl.loader(labels, rank=1, world_size=2))


@pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics"])
def test_metrics_of_a_loader_are_refused_and_those_of_rows_are_not(
    labels: sl.LabelSet, tmp_path: Path, name: str
) -> None:
    def made(data: Any) -> SoftLabelTrainer:
        return SoftLabelTrainer(
            make_student(),
            arguments(tmp_path),
            loader=sl.loader(labels),
            eval_dataset=data,
            **{name: lambda *_: {}},
        )

    for data in (sl.loader(labels), {"all": sl.loader(labels)}):
        with pytest.raises(InputError, match=rf"{name}= was given.* on_evaluate"):
            made(data)
    with pytest.raises(InputError, match=rf"{name}= was given"):
        made([{"input_ids": [1, 2]}]).evaluate(sl.loader(labels))


def test_only_a_loader_is_evaluated_and_predictions_are_a_models(
    labels: sl.LabelSet, tmp_path: Path
) -> None:
    made = trainer(labels, tmp_path)
    for data in (labels, sl.mix([sl.loader(labels)])):
        name = type(data).__name__
        words = rf"a {name} was given as eval_dataset; it must be a Loader"
        with pytest.raises(InputError, match=words):
            made.evaluate(data)
        with pytest.raises(InputError, match=words):
            SoftLabelTrainer(
                make_student(), arguments(tmp_path), loader=sl.loader(labels), eval_dataset=data
            )
    for data in (labels, sl.loader(labels)):
        with pytest.raises(InputError, match=r"predict was given .* trainer.model_inputs"):
            made.predict(data)


def test_a_checkpoint_that_does_not_fit_is_refused(labels: sl.LabelSet, tmp_path: Path) -> None:
    made = trainer(labels, tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    made.train()
    folder = tmp_path / "checkpoint-1"
    with pytest.raises(InputError, match=r"is 1 batches .* of this run 3"):
        trainer(labels, tmp_path, gradient_accumulation_steps=3).train(str(folder))
    with pytest.raises(InputError, match="ignore_data_skip=True"):
        trainer(labels, tmp_path, ignore_data_skip=True).train(str(folder))
    other = sl.loader(labels, batch_size=2, seed=1)
    with pytest.raises(InputError, match="state is of another loader"):
        SoftLabelTrainer(make_student(), arguments(tmp_path), loader=other).train(str(folder))
    state = json.loads((folder / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["LoaderPosition"]
    (folder / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="does not say where its loader was"):
        trainer(labels, tmp_path).train(str(folder))


def test_a_mix_of_loaders_with_two_teachers_goes_on_where_it_was(
    labels: sl.LabelSet, tmp_path: Path
) -> None:
    def both(outputs: Any, batch: dict[str, Any]) -> torch.Tensor:
        return sum(sl.losses.kl_divergence(outputs.logits, y) for y in batch["soft_labels"])

    def made(**options: Any) -> SoftLabelTrainer:
        parts = [sl.loader([labels, labels], batch_size=size, seed=0) for size in (2, 5)]
        return SoftLabelTrainer(
            make_student(),
            arguments(tmp_path, max_steps=8, **options),
            loader=sl.mix(parts),
            loss=both,
            positions=lambda batch: batch["soft_labels"][0].mask,
        )

    straight = made(save_strategy="steps", save_steps=3)
    straight.train()
    resumed = made()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert flat(resumed.model) == flat(straight.model)
    loader = sl.mix([sl.loader([labels, labels], batch_size=2)])
    unsaid = SoftLabelTrainer(
        make_student(), arguments(tmp_path, max_steps=1), loader=loader, loss=both
    )
    with pytest.raises(InputError, match="say which positions count"):
        unsaid.train()


def test_eager_attention_trains_packed_rows_as_it_does_records_apart(
    labels: sl.LabelSet, tmp_path: Path
) -> None:
    found = []
    for row_length in (None, 64):
        model = make_student()
        model.set_attn_implementation("eager")
        loader = sl.loader(labels, batch_size=100, seed=0, row_length=row_length)
        made = SoftLabelTrainer(model, arguments(tmp_path), loader=loader)
        made.train()
        found.append(flat(made.model))
    assert close(*found)
