"""`softlabels train`: a student from a label set, and how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from softlabels.cli.arguments import TrainArguments
from softlabels.cli.screen import Screen
from softlabels.errors import InputError, quoted
from softlabels.labelset.reader import LabelSet
from softlabels.training import (
    DataRecipe,
    Evaluation,
    LossRecipe,
    OptimizerRecipe,
    StudentRecipe,
    Trained,
    TrainRecipe,
    train,
)
from softlabels.training.plot import check_matplotlib, plot


def train_student(arguments: TrainArguments) -> int:
    """Train, draw, and say what came out."""
    if arguments.plot:
        check_matplotlib()
    held_out: Any = None
    if arguments.held_out_labels is not None:
        held_out = (LabelSet.open(arguments.held_out_labels), arguments.held_out_data)
    elif arguments.held_out_data is not None:
        raise InputError("--held-out-data is the data of --held-out-labels; pass both")
    result = train(
        arguments.labels,
        arguments.data,
        recipe=_recipe(arguments),
        out=arguments.out,
        held_out=held_out,
        progress=not arguments.quiet,
    )
    figure = plot(arguments.out) if arguments.plot else None
    if arguments.json:
        print(json.dumps(result.to_json(), allow_nan=False))
        return 0
    show_result(result)
    where = f"{arguments.out}: the student is in model/, its metrics in metrics.jsonl"
    Screen().print(where if figure is None else f"{where} and {figure.name}")
    return 0


def show_result(result: Trained) -> None:
    """A table of the held-out metrics before and after."""
    records, screen = result.records, Screen()
    screen.print(
        f"a student of {result.parameters / 1e6:.1f} million parameters, {result.steps:,} steps, "
        f"{result.tokens:,} tokens of {records['training']:,} records, {result.seconds:.0f} s"
    )
    if result.before is None or result.after is None:
        screen.print("nothing was held out, so nothing is known of it on other text")
        return
    table = Table(title=f"On {records['held_out']:,} held-out records")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    before, after = _words(result.before), _words(result.after)
    for name in after:
        table.add_row(name, before[name], after[name])
    Screen(soft_wrap=False).print(table)


def _words(found: Evaluation) -> dict[str, str]:
    numbers: dict[str, tuple[float | None, str]] = {
        "KL(teacher ‖ student), nats": (found.kl, ".3f"),
        **{f"  at T = {t}": (kl, ".3f") for t, kl in found.kl_at.items()},
        "cross-entropy of sampled labels, nats": (found.soft_cross_entropy, ".3f"),
        "agrees with the teacher": (found.top1_agreement, ".1%"),
        "perplexity": (found.perplexity, ",.1f"),
        "cross-entropy, nats": (found.cross_entropy, ".3f"),
        "  the teacher's": (found.teacher_cross_entropy, ".3f"),
        "calibration error": (found.calibration_error, ".3f"),
    }
    return {
        name: format(value, form) for name, (value, form) in numbers.items() if value is not None
    }


def _recipe(arguments: TrainArguments) -> TrainRecipe:
    epochs = arguments.epochs
    if arguments.steps is None and epochs is None:
        epochs = 1
    taken = {
        "loss": ("temperature tail k alpha beta hard_weight hard_weight_end hard_weight_schedule "
                 "through"),
        "optimizer": "lr schedule warmup decay final weight_decay clip",
        "data": ("batch_size accumulate row_length max_length shuffle held_out held_out_every"),
        "run": "steps seed device autocast log_every evaluate_every checkpoint_every",
    }  # fmt: skip
    fields: dict[str, dict[str, Any]] = {
        part: {name: getattr(arguments, name) for name in names.split()}
        for part, names in taken.items()
    }
    return TrainRecipe(
        student=_student(arguments),
        loss=LossRecipe(name=arguments.loss, **fields["loss"]),
        optimizer=OptimizerRecipe(**fields["optimizer"]),
        data=DataRecipe(**fields["data"]),
        epochs=epochs,
        **fields["run"],
    )


def _student(arguments: TrainArguments) -> StudentRecipe:
    name = arguments.student
    if name is None or not name.endswith(".json"):
        return StudentRecipe(size=name, teacher=arguments.prune, layers=arguments.layers)
    try:
        config = json.loads(Path(name).read_bytes())
    except ValueError as error:
        raise InputError(f"--student {quoted(name)} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"--student {quoted(name)} holds no fields of a config")
    return StudentRecipe(config=config, teacher=arguments.prune, layers=arguments.layers)
