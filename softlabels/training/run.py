"""train: from a label set and a recipe to a student and its metrics; run again to go on."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import softlabels
import softlabels.training.checkpoint as checkpoints
from softlabels.errors import InputError, PlanMismatchError, quoted
from softlabels.labelset.reader import LabelSet
from softlabels.loading.build import loader as make_loader
from softlabels.progress import shown
from softlabels.teachers.identity import weights_digest
from softlabels.training import student as students
from softlabels.training import trials
from softlabels.training.evaluate import Evaluation
from softlabels.training.forward import Student
from softlabels.training.journal import METRICS, Journal, read
from softlabels.training.loop import Run, steps_of, train_to_the_end
from softlabels.training.objective import check_loss
from softlabels.training.recipe import StudentRecipe, TrainRecipe, differences
from softlabels.training.split import Split, split
from softlabels.training.step import adamw

IDENTITY, RESULT, MODEL = "run.json", "result.json", "model"
_MAKING = ".making-"


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        out: its folder: metrics.jsonl, times.jsonl, and the student in `model`.
        recipe: as it ran, its device chosen.
        parameters: of the student.
        steps, tokens: trained.
        records: how many were trained on and held out.
        before, after: the student on the held-out records; None where there are none.
        seconds: of training and evaluating.
    """

    out: Path
    recipe: TrainRecipe
    parameters: int
    steps: int
    tokens: int
    records: Mapping[str, int]
    before: Evaluation | None
    after: Evaluation | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Every field but `out`, which is where it lies."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["out"]
        for name in ("recipe", "before", "after"):
            fields[name] = None if fields[name] is None else fields[name].to_json()
        return fields

    @classmethod
    def read(cls, out: str | os.PathLike[str]) -> Trained:
        """The result in a run's folder.

        Raises:
            InputError: there is none.
        """
        path = Path(out) / RESULT
        if not path.is_file():
            raise InputError(f"{out} holds no finished run: there is no {RESULT} in it")
        fields = json.loads(path.read_bytes())
        fields["recipe"] = TrainRecipe.from_json(fields["recipe"])
        for name in ("before", "after"):
            fields[name] = None if fields[name] is None else Evaluation.from_json(fields[name])
        return cls(out=Path(out), **fields)


def train(
    labels: LabelSet | str | os.PathLike[str],
    data: Any = None,
    *,
    recipe: TrainRecipe,
    out: str | os.PathLike[str],
    held_out: LabelSet | tuple[LabelSet, Any] | None = None,
    student: nn.Module | None = None,
    progress: bool | None = None,
) -> Trained:
    """Train a student on a label set; the same call goes on after a crash, or returns what is done.

    A killed run loses the steps since its last checkpoint. On a CPU it ends in the same bits as
    one that ran through, for one number of threads: weights and metrics.jsonl.

    Args:
        labels: an opened set, its folder or URL.
        data: what was labelled, as for `softlabels.loader`; may be left out where the set carries
            its inputs.
        recipe: the run.
        out: its folder, new, empty or from an earlier run of the same recipe.
        held_out: another set to evaluate on, with its data where it needs some; see
            `softlabels.training.split.split`. By default a part of `labels`.
        student: a model in place of the recipe's, trained where it is: a causal LM of
            transformers, or any module that is called as one and answers `logits`. Of a finished
            run it gets the weights, if it has their names and shapes.
        progress: show it on standard error, as a bar or as JSON lines; None in a terminal only.

    Raises:
        InputError: arguments that do not fit each other or the set, before any training.
        PlanMismatchError: the folder was begun with another recipe, set or student.
        VocabularyMismatchError: the student has other classes, or another tokenizer.
        DivergedError: a loss is not finite; with step and keys.
    """
    if not isinstance(labels, LabelSet):
        labels = LabelSet.open(labels)
    other = held_out if isinstance(held_out, tuple) or held_out is None else (held_out, None)
    recipe = replace(recipe, device=_device(recipe))
    _check(recipe, labels, student)
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        identity = _identity(recipe, labels, None if other is None else other[0])
        _check_same(root, identity)
        if (root / RESULT).is_file():
            if student is not None:
                _load_finished(student, root)
            # Of a run that was killed while it removed them.
            shutil.rmtree(root / "checkpoints", ignore_errors=True)
            return Trained.read(root)
        parts = split(labels, data, recipe.data, seed=recipe.seed, other=other)
        with _own_random_numbers(recipe):
            run = _prepared(root, recipe, labels, data, parts, student)
            identity["student"] = weights_digest(run.student.model)
            _check_same(root, identity)
            _write(root / IDENTITY, identity)
            return _trained(root, run, labels, parts, progress)


def _trained(
    root: Path, run: Run, labels: LabelSet, parts: Split, progress: bool | None
) -> Trained:
    checkpoints.clean(run.checkpoints)
    moment = checkpoints.load(run.checkpoints, run.student.model, run.optimizer)
    with (
        closing(Journal(root, moment.lengths)) as journal,
        shown(progress, doing="training", first="the first step") as report,
    ):
        moment = train_to_the_end(run, moment, journal, report)
    students.write(run.student.model, root / MODEL, labels.tokenizer_folder())
    evaluations = [Evaluation.from_json(line) for line in read(root / METRICS, "evaluation")]
    held = 0 if parts.held_out is None else len(parts.held_out)
    result = Trained(
        out=root,
        recipe=run.recipe,
        parameters=sum(p.numel() for p in run.student.model.parameters()),
        steps=moment.step,
        tokens=moment.tokens,
        records={
            "training": len(labels) if parts.training is None else len(parts.training),
            "held_out": held,
        },
        before=evaluations[0] if evaluations else None,
        after=evaluations[-1] if evaluations else None,
        seconds=round(moment.seconds, 3),
    )
    _write(root / RESULT, result.to_json())
    # Three times the weights, of which the student has all that a finished run is for.
    shutil.rmtree(run.checkpoints)
    return result


def _prepared(
    root: Path,
    recipe: TrainRecipe,
    labels: LabelSet,
    data: Any,
    parts: Split,
    student: nn.Module | None,
) -> Run:
    model = student
    if model is None:
        model = students.build(recipe.student or StudentRecipe(), labels, seed=recipe.seed)
    students.check_classes(getattr(model, "config", None), labels)
    longest = min(labels.plan.preparation.max_length, recipe.data.max_length or 1 << 62)
    students.check_length(model, longest)
    model = model.to(recipe.device).train()
    trials.check_causal(model, labels.plan.teacher.classes)
    head = students.separate_head(model)
    if head is None and recipe.loss.through == "hidden":
        raise InputError(
            f"the logits of a {type(model).__name__} are not its hidden states times one matrix; "
            "leave out through='hidden'"
        )
    if recipe.data.row_length is not None:
        packed = Student(model, head, recipe.autocast)
        trials.check_packing(packed, labels.plan.teacher.classes, longest)
    chosen = recipe.data
    training: Any = parts.training  # an array: of millions of records a list is no small thing
    loader = make_loader(
        labels,
        data,
        batch_size=chosen.batch_size,
        shuffle=chosen.shuffle,
        seed=recipe.seed,
        records=training,
        max_length=chosen.max_length,
        row_length=chosen.row_length,
        rank=0,
        world_size=1,
        device=recipe.device or "cpu",
    )
    steps, batches = steps_of(recipe, loader)
    return Run(
        recipe=recipe,
        student=Student(model, head, recipe.autocast),
        optimizer=adamw(model, recipe.optimizer),
        loader=loader,
        held_out=parts.held_out,
        checkpoints=root / "checkpoints",
        steps=steps,
        batches=batches,
    )


def _check(recipe: TrainRecipe, labels: LabelSet, student: nn.Module | None) -> None:
    """Refuse in the first second what would fail later."""
    if student is not None and recipe.student is not None:
        raise InputError("a student is given, and the recipe names one too; leave one of them out")
    if recipe.autocast and not str(recipe.device).startswith("cuda"):
        raise InputError(f"autocast runs the student in bfloat16 on CUDA, not on {recipe.device}")
    students.check_labels(labels)
    check_loss(recipe.loss, labels)


def _device(recipe: TrainRecipe) -> str:
    chosen = recipe.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "meta":
        raise InputError("device is 'meta', which has no numbers to train with; choose cpu or cuda")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device is {chosen!r}, which cannot be used: {quoted(reason, limit=300)[1:-1]}"
        ) from error
    return chosen


def _identity(recipe: TrainRecipe, labels: LabelSet, other: LabelSet | None) -> dict[str, Any]:
    """What a run in a folder is, as JSON."""
    return {
        "recipe": recipe.to_json(),
        "labels": _digest(labels),
        "held_out": None if other is None else _digest(other),
        "student": None,
        "written_by": f"softlabels {softlabels.__version__}, torch {torch.__version__}",
    }


def _digest(labels: LabelSet) -> str:
    state = hashlib.sha256(labels.plan.to_bytes())
    for receipt in labels.receipts:
        state.update(receipt.sha256.encode())
    return state.hexdigest()


def _load_finished(student: nn.Module, root: Path) -> None:
    """Give a model of the same shape what a finished run has learnt."""
    weights = root / MODEL / checkpoints.WEIGHTS
    if found := checkpoints.misfit(student, weights):
        raise PlanMismatchError(
            f"{root} holds a finished run of another student: {found}. Pass a model as that one, "
            "or choose another folder"
        )
    checkpoints.load_weights(student, weights)


def _check_same(root: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with another recipe, set or (where it is known) student."""
    path = root / IDENTITY
    if not path.is_file():
        if (root / METRICS).exists() or (root / MODEL).exists():
            raise InputError(f"{root} holds something else than a run: choose another folder")
        return
    before, now = json.loads(path.read_bytes()), dict(identity)
    for found in (before, now):
        found.pop("written_by", None)
    if now["student"] is None:
        before["student"] = None
    if found := differences(before, now):
        trained = " (a student that has trained since is another one: build it anew)"
        raise PlanMismatchError(
            f"{root} was begun with another run: {'; '.join(found)}. Use the first one's"
            f"{trained if now['student'] != before['student'] else ''}, or choose another folder"
        )


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    """A small file of JSON, whole or not at all."""
    making = path.with_name(f"{_MAKING}{path.name}")
    making.write_text(json.dumps(fields, indent=2, allow_nan=False) + "\n")
    checkpoints.sync(making)
    making.replace(path)
    checkpoints.sync(path.parent)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Nobody else trains into this folder."""
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is training into {root}; wait for it, or choose another folder"
            ) from None
        yield


@contextmanager
def _own_random_numbers(recipe: TrainRecipe) -> Iterator[None]:
    """Dropout depends on the seed alone, and the caller's generators stay as they are."""
    device = torch.device(recipe.device or "cpu")
    devices = [] if device.type == "cpu" else [device.index or torch.cuda.current_device()]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(recipe.seed)
        yield
