"""A whole run: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PROCESSES
from safetensors.torch import load_file
from small_students import Table, llama

import softlabels as sl
from softlabels.errors import InputError, PlanMismatchError, VocabularyMismatchError
from softlabels.training import (
    DivergedError,
    LossRecipe,
    Trained,
    TrainRecipe,
    loop,
    run,
    train,
)
from softlabels.training import checkpoint as checkpoints
from softlabels.training import student as students
from softlabels.training.journal import read
from softlabels.training.split import split

MIX = LossRecipe(hard_weight=0.5, hard_weight_end=0.1, hard_weight_schedule="linear")


@pytest.fixture
def long(recipe: TrainRecipe) -> TrainRecipe:
    """Everything that a resumed run could get wrong: order, dropout, mix, rate, two batches."""
    data = replace(recipe.data, accumulate=2)
    return replace(recipe, loss=MIX, data=data, evaluate_every=5)


@pytest.fixture(scope="module")
def whole_run(
    labels: sl.LabelSet, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[TrainRecipe], Trained]:
    """A run that nobody interrupted, once for each recipe."""
    done: dict[str, Trained] = {}

    def run_once(recipe: TrainRecipe) -> Trained:
        name = json.dumps(recipe.to_json())
        if name not in done:
            done[name] = train(labels, recipe=recipe, out=tmp_path_factory.mktemp("whole"))
        return done[name]

    return run_once


def left(out: Path) -> tuple[bytes, bytes]:
    """What has to be the same to the bit: the weights, and the metrics."""
    return (out / "model" / "model.safetensors").read_bytes(), (out / "metrics.jsonl").read_bytes()


def test_a_run_leaves_a_student_metrics_times_and_a_result(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    recipe = replace(recipe, loss=MIX, evaluate_every=6)
    result = train(labels, recipe=recipe, out=out)
    assert sorted(p.name for p in out.iterdir()) == [
        ".lock", "metrics.jsonl", "model", "result.json", "run.json", "times.jsonl",
    ]  # fmt: skip
    lines = list(read(out / "metrics.jsonl"))
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("evaluation", 0), ("step", 1), ("step", 2), ("step", 4), ("step", 6), ("evaluation", 6),
        ("step", 8), ("step", 10), ("step", 12), ("evaluation", 12),
    ]  # fmt: skip
    steps = [line for line in lines if line["kind"] == "step"]
    for line in steps:
        parts = (1 - line["hard_weight"]) * line["kd"] + line["hard_weight"] * line["ce"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert line["grad_norm"] > 0
    assert (steps[0]["hard_weight"], steps[-1]["hard_weight"]) == (0.5, 0.1)
    assert [line["step"] for line in read(out / "times.jsonl")] == [s["step"] for s in steps]
    assert {"seconds", "tokens_per_s", "wait_share"} < next(read(out / "times.jsonl")).keys()
    assert result == Trained.read(out)
    assert result.steps == 12
    assert result.tokens == steps[-1]["tokens"]
    assert result.before is not None
    assert result.after is not None
    assert result.after.kl == lines[-1]["kl"]
    assert result.after.kl < result.before.kl  # type: ignore[operator]
    weights = load_file(out / "model" / "model.safetensors")
    assert result.parameters == sum(t.numel() for t in weights.values())


def test_the_student_is_one_that_transformers_opens_with_the_labels_tokenizer(
    finished_set: Path, recipe: TrainRecipe, out: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train(finished_set, recipe=replace(recipe, steps=1), out=out)
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert model.config.vocab_size == 512
    sl.LabelSet.open(finished_set).check_tokenizer(AutoTokenizer.from_pretrained(out / "model"))


def test_the_callers_random_numbers_stay_as_they_are(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    torch.manual_seed(8)
    before = torch.get_rng_state()
    train(labels, recipe=replace(recipe, steps=2), out=out)
    assert torch.equal(torch.get_rng_state(), before)


class Killed(BaseException):
    """What no handler catches."""


# Calls that a run makes, and how often before it dies there.
DEATHS: dict[str, tuple[Any, str, int, bool]] = {
    "before the first step": (loop, "take_step", 0, True),
    "in the middle": (loop, "take_step", 7, True),
    "after a step": (loop, "take_step", 8, False),
    "before an evaluation": (loop, "held_out_evaluation", 2, True),
    "before a checkpoint": (checkpoints, "save", 2, True),
    "in a checkpoint": (checkpoints, "save_weights", 2, False),
    "after a checkpoint": (checkpoints, "save", 1, False),
    "before the last checkpoint": (checkpoints, "save", 3, True),
    "after the last checkpoint": (checkpoints, "save", 3, False),
    "in writing the student": (students, "sync", 1, True),
    "before the result": (run.Trained, "to_json", 0, True),
}


@pytest.mark.parametrize("where", DEATHS)
def test_a_run_that_died_anywhere_ends_in_the_same_bits(
    labels: sl.LabelSet,
    long: TrainRecipe,
    out: Path,
    whole_run: Any,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    place, name, calls, before = DEATHS[where]
    real, counted = getattr(place, name), iter(range(1000))

    def dying(*args: Any, **options: Any) -> Any:
        last = next(counted) == calls
        if last and before:
            raise Killed
        found = real(*args, **options)
        if last:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying)
        with pytest.raises(Killed):
            train(labels, recipe=long, out=out)
    assert not (out / "result.json").exists()
    result = train(labels, recipe=long, out=out)
    assert left(out) == left(whole_run(long).out)
    assert replace(result, out=out, seconds=0) == replace(whole_run(long), out=out, seconds=0)
    assert not (out / "checkpoints").exists()


def test_a_process_that_is_killed_goes_on_to_the_same_bits(
    labels: sl.LabelSet, long: TrainRecipe, out: Path, whole_run: Any
) -> None:
    recipe = replace(long, steps=60, checkpoint_every=2)
    job = partial(train, str(labels.root), recipe=recipe, out=out)
    for wanted in (3, 8):  # checkpoints that were made when it is killed
        running = PROCESSES.Process(target=job)
        running.start()
        while running.is_alive():
            steps = sorted((out / "checkpoints").glob("step-*"))
            if steps and int(steps[-1].name[5:]) >= 2 * wanted:
                running.kill()
                break
            time.sleep(0.001)
        running.join()
        assert running.exitcode == -signal.SIGKILL
        assert not (out / "result.json").exists()
    train(labels, recipe=recipe, out=out)
    assert left(out) == left(whole_run(recipe).out)


def test_the_interval_of_the_log_changes_no_weight(
    labels: sl.LabelSet, long: TrainRecipe, out: Path, whole_run: Any
) -> None:
    other = replace(long, log_every=5, checkpoint_every=50, evaluate_every=None)
    train(labels, recipe=other, out=out)
    assert left(out)[0] == left(whole_run(long).out)[0]


def test_a_finished_run_is_not_run_again(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(labels, recipe=recipe, out=out)
    monkeypatch.setattr(run, "train_to_the_end", None)
    assert train(labels, recipe=recipe, out=out) == result


def test_another_recipe_set_or_student_is_refused_by_name(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, tmp_path: Path
) -> None:
    train(labels, recipe=recipe, out=out)
    changed = replace(recipe, seed=4, loss=LossRecipe(temperature=2.0))
    with pytest.raises(PlanMismatchError, match=r"loss.temperature was 1.0, is now 2.0; .*seed"):
        train(labels, recipe=changed, out=out)
    smaller = sl.derive(labels.root, tmp_path / "smaller", k=2)
    with pytest.raises(PlanMismatchError, match="labels was"):
        train(smaller, recipe=recipe, out=out)
    given, other = replace(recipe, student=None), tmp_path / "given"
    train(labels, recipe=given, out=other, student=Table(0))
    (other / "result.json").unlink()
    with pytest.raises(PlanMismatchError, match=r"student was .*, is now"):
        train(labels, recipe=given, out=other, student=Table(1))


def test_a_folder_of_something_else_and_one_in_use_are_refused(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    out.mkdir()
    (out / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="something else than a run"):
        train(labels, recipe=recipe, out=out)
    (out / "metrics.jsonl").unlink()
    with run._alone(out), pytest.raises(InputError, match="another process is training"):
        train(labels, recipe=recipe, out=out)
    with pytest.raises(InputError, match="no finished run"):
        Trained.read(out)


def test_a_loss_that_is_not_finite_stops_with_step_and_keys(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    real = loop.take_step

    def poisoned(student: Any, optimizer: Any, batches: Any, *rest: Any, **options: Any) -> Any:
        if options["step"] == 4:
            keys.extend(batches[1]["key"])
            batches[1]["soft_labels"].log_probs.fill_(torch.nan)
        return real(student, optimizer, batches, *rest, **options)

    monkeypatch.setattr(loop, "take_step", poisoned)
    recipe = replace(recipe, data=replace(recipe.data, accumulate=2))
    with pytest.raises(DivergedError, match=r"step 5: the loss is nan") as caught:
        train(labels, recipe=recipe, out=out)
    named = str(caught.value).split("keys ")[1].split(".")[0]
    assert named == ", ".join(f'"{key}"' for key in keys)
    # From the checkpoint of step 3 it goes on as if nothing had been.
    monkeypatch.undo()
    train(labels, recipe=recipe, out=out)
    train(labels, recipe=recipe, out=out.with_name("whole"))
    assert left(out) == left(out.with_name("whole"))


def test_an_infinite_gradient_stops_too(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(DivergedError, match=r"step 1: the gradient's norm is inf"):
        train(labels, recipe=recipe, out=out)


def test_an_interrupted_run_leaves_a_checkpoint_and_says_how_to_go_on(
    labels: sl.LabelSet,
    long: TrainRecipe,
    out: Path,
    whole_run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = loop.take_step

    def pressed(*args: Any, **options: Any) -> Any:
        if options["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **options)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", pressed)
        with pytest.raises(KeyboardInterrupt, match=r"after step 5 of 12.*run the same command"):
            train(labels, recipe=long, out=out)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (out / "checkpoints" / "step-000000005").is_dir()
    train(labels, recipe=long, out=out)
    assert left(out) == left(whole_run(long).out)


def test_epochs_are_whole_even_where_the_last_step_has_fewer_batches(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    data = replace(recipe.data, accumulate=3)
    result = train(labels, recipe=replace(recipe, steps=None, epochs=2, data=data), out=out)
    batches = 2 * -(-result.records["training"] // 4)
    assert batches % 3
    assert result.steps == -(-batches // 3)
    lengths = labels.columns(["length"])["length"].to_pylist()
    training = split(labels, None, data, seed=recipe.seed).training
    assert training is not None
    assert result.tokens == 2 * sum(lengths[n] for n in training)


def test_packed_rows_and_cut_records_train_and_resume(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(recipe.data, row_length=16, max_length=6, batch_size=2)
    recipe = replace(recipe, steps=None, epochs=3, data=data)
    whole = train(labels, recipe=recipe, out=out.with_name("whole"))
    real, counted = loop.take_step, iter(range(1000))

    def dying(*args: Any, **options: Any) -> Any:
        if next(counted) == 7:
            raise Killed
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", dying)
        with pytest.raises(Killed):
            train(labels, recipe=recipe, out=out)
    train(labels, recipe=recipe, out=out)
    assert left(out) == left(whole.out)


def test_a_module_of_ones_own_is_trained_where_it_is(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    model = Table(seed=1)
    before = model.table.detach().clone()
    given = replace(recipe, student=None)
    result = train(labels, recipe=given, out=out, student=model)
    assert not torch.equal(model.table, before)
    assert result.after is not None
    assert result.after.kl < result.before.kl  # type: ignore[operator,union-attr]
    again = Table(seed=1)
    assert train(labels, recipe=given, out=out, student=again) == result
    assert torch.equal(again.table, model.table)
    with pytest.raises(InputError, match="the recipe names one too"):
        train(labels, recipe=recipe, out=out, student=model)
    with pytest.raises(InputError, match="not its hidden states times one matrix"):
        train(
            labels, recipe=replace(given, loss=LossRecipe(through="hidden")),
            out=out.with_name("hidden"), student=Table(seed=1),
        )  # fmt: skip


def test_a_student_of_other_classes_is_refused(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, model: Any
) -> None:
    with pytest.raises(VocabularyMismatchError, match=r"512 classes.* 16"):
        train(labels, recipe=replace(recipe, student=None), out=out, student=model)


def test_a_set_without_inputs_is_joined_to_its_data(
    precompute: Any, id_samples: list[dict[str, Any]], recipe: TrainRecipe, tmp_path: Path
) -> None:
    bare = precompute(tmp_path / "bare", id_samples, store_inputs=False)
    full = precompute(tmp_path / "full", id_samples)
    one = train(bare, id_samples, recipe=recipe, out=tmp_path / "a")
    other = train(full, recipe=recipe, out=tmp_path / "b")
    assert left(one.out) == left(other.out)


def test_a_sampled_set_is_trained_on_and_judged_by_a_dense_one(
    precompute: Any, id_samples: list[dict[str, Any]], recipe: TrainRecipe, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"codec": None, "temperatures": None}
    drawn = precompute(tmp_path / "drawn", id_samples, selection=sl.Sampled(6), **options)
    dense = precompute(tmp_path / "dense", id_samples, selection=sl.Dense())
    with pytest.raises(InputError, match=r"is sampled.*'soft_cross_entropy'"):
        train(drawn, recipe=recipe, out=tmp_path / "kl")
    recipe = replace(recipe, steps=80, loss=LossRecipe(name="soft_cross_entropy"))
    result = train(drawn, recipe=recipe, out=tmp_path / "run", held_out=dense)
    assert result.before is not None
    assert result.after is not None
    assert result.after.kl < 0.5 * result.before.kl  # type: ignore[operator]
    # Alone it has no KL, but the cross-entropy that its draws estimate.
    alone = train(drawn, recipe=replace(recipe, steps=1), out=tmp_path / "alone")
    assert alone.after is not None
    assert alone.after.kl is None
    assert alone.after.soft_cross_entropy is not None


def test_a_stream_trains_for_steps_and_is_evaluated_on_another_set(
    labels: sl.LabelSet,
    precompute: Any,
    id_samples: list[dict[str, Any]],
    recipe: TrainRecipe,
    tmp_path: Path,
) -> None:
    import datasets

    rows = [{"id": f"other {row['id']}", "ids": [*row["ids"][::-1], 1]} for row in id_samples[:6]]
    other = precompute(tmp_path / "other", rows)
    stream = datasets.Dataset.from_list(id_samples).to_iterable_dataset()
    data = replace(recipe.data, shuffle=False, held_out=0)
    recipe = replace(recipe, data=data)
    result = train(labels, stream, recipe=recipe, out=tmp_path / "run", held_out=other)
    assert result.records == {"training": len(labels), "held_out": len(other)}
    assert result.after is not None
    with pytest.raises(InputError, match="say steps="):
        train(labels, stream, recipe=replace(recipe, steps=None, epochs=1), out=tmp_path / "b",
              held_out=other)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"autocast": True}, "autocast.*on CUDA, not on cpu"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"loss": LossRecipe(k=9)}, "keeps 6"),
    ],
)
def test_what_cannot_run_is_refused_before_a_folder_is_made(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(labels, recipe=replace(recipe, **changes), out=out)
    assert not out.exists()


def test_checkpoints_that_a_kill_left_beside_a_result_are_removed(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    train(labels, recipe=replace(recipe, steps=1), out=out)
    (out / "checkpoints" / "step-000000001").mkdir(parents=True)
    train(labels, recipe=replace(recipe, steps=1), out=out)
    assert not (out / "checkpoints").exists()


def test_a_student_that_has_trained_since_is_another_one_and_the_error_says_so(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    given, model = replace(recipe, student=None, steps=1), Table(0)
    train(labels, recipe=given, out=out, student=model)
    (out / "result.json").unlink()
    with pytest.raises(PlanMismatchError, match="has trained since is another one: build it anew"):
        train(labels, recipe=given, out=out, student=model)
    with pytest.raises(PlanMismatchError) as caught:
        train(labels, recipe=replace(given, seed=4), out=out, student=model)
    assert "build it anew" not in str(caught.value)


def test_a_finished_run_gives_its_weights_to_a_model_of_its_shape_alone(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    given, model, fresh = replace(recipe, student=None, steps=1), llama(), llama()
    torch.nn.init.zeros_(fresh.lm_head.weight)
    result = train(labels, recipe=given, out=out, student=model)
    assert train(labels, recipe=given, out=out, student=fresh) == result
    assert torch.equal(fresh.lm_head.weight, model.lm_head.weight)
    for other, words in (
        (Table(0), "missing in the one given"),
        (llama(intermediate_size=8), r"of shape \[16, 32\] there, and of shape \[16, 8\]"),
        (llama(num_hidden_layers=2), r"layers\.1\..* is in the one given alone"),
    ):
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(PlanMismatchError, match=words):
            train(labels, recipe=given, out=out, student=other)
        assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())


def test_a_device_without_numbers_is_refused(
    labels: sl.LabelSet, recipe: TrainRecipe, out: Path
) -> None:
    with pytest.raises(InputError, match="'meta', which has no numbers"):
        train(labels, recipe=replace(recipe, device="meta"), out=out)
