"""What a training run is, as values that check themselves and write themselves as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from softlabels.errors import InputError, quoted
from softlabels.losses.targets import TAILS, Tail
from softlabels.training.checks import check_choice, check_counts, check_number

LossName = Literal[
    "kl",
    "reverse_kl",
    "js",
    "total_variation",
    "soft_cross_entropy",
    "logit_mse",
    "decoupled_kl",
    "ce",
]
Decay = Literal["constant", "linear", "cosine"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
Through = Literal["auto", "logits", "hidden"]

# Those that linear_kl_divergence can give.
FROM_HIDDEN: tuple[LossName, ...] = ("kl", "ce")


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """Which student, and how it begins; one of `size`, `config` and `teacher`.

    Attributes:
        size: a Llama by the name of its size, see `softlabels.training.student.SIZES`; "tiny"
            where nothing is given.
        config: the fields of a transformers config, its `model_type` among them. A missing
            `vocab_size` is the labels'.
        teacher: a model's folder or Hub name: the student is it, with fewer layers.
        layers: how many of the teacher's layers are kept, evenly spaced, first and last included.
    """

    size: str | None = None
    config: Mapping[str, Any] | None = None
    teacher: str | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("size", "config", "teacher") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(
                f"StudentRecipe: {' and '.join(given)} are given; a student comes from one of them"
            )
        if (self.teacher is None) != (self.layers is None):
            raise InputError(
                f"StudentRecipe: teacher is {self.teacher!r} and layers {self.layers!r}; a pruned "
                "student needs both"
            )
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise InputError(
                "StudentRecipe: config has no model_type, such as 'llama'; pass a dict of the "
                "fields of a transformers config"
            )
        for name in ("size", "teacher"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"StudentRecipe: {name} is {getattr(self, name)!r}; it is a name")
        check_counts(self, "layers")


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """What is minimised: (1 − w) · KD + w · CE, each a mean over its positions.

    CE is −log q of the hard label at T = 1; it counts at labelled positions that have one.

    Attributes:
        name: of the KD loss, one of `softlabels.losses`; "ce" for hard labels alone.
        temperature: of the KD loss, which is multiplied by its square.
        tail: what stands for the classes not kept: "rest", "renormalised" or "uniform".
        k: only so many of the kept classes, the likeliest; all by default.
        hard_weight: w at the first step, 0 to 1.
        hard_weight_end: w at the last step, where it changes.
        hard_weight_schedule: how it changes: "constant", "linear" or "cosine".
        alpha, beta: `beta` of "js" (0.5 by default), both of "decoupled_kl" (1 by default).
        through: "hidden" takes the loss from hidden states, the logits never all in memory (of
            "kl" and "ce", for students whose head is one matrix); "logits" makes them; "auto" is
            "hidden" where that can be.
    """

    name: LossName = "kl"
    temperature: float = 1.0
    tail: Tail = "rest"
    k: int | None = None
    hard_weight: float = 0.0
    hard_weight_end: float | None = None
    hard_weight_schedule: Decay = "constant"
    alpha: float | None = None
    beta: float | None = None
    through: Through = "auto"

    def __post_init__(self) -> None:
        check_choice(self, "name", get_args(LossName))
        check_choice(self, "tail", TAILS)
        check_choice(self, "hard_weight_schedule", get_args(Decay))
        check_choice(self, "through", get_args(Through))
        check_number(self, "temperature", above=0)
        check_counts(self, "k")
        for name in ("hard_weight", "hard_weight_end"):
            check_number(self, name, least=0, most=1)
        if (self.hard_weight_end is None) != (self.hard_weight_schedule == "constant"):
            raise InputError(
                f"LossRecipe: hard_weight_end is {self.hard_weight_end} and hard_weight_schedule "
                f"{self.hard_weight_schedule!r}; a weight that changes needs an end and 'linear' "
                "or 'cosine'"
            )
        self._check_fit()

    def _check_fit(self) -> None:
        """Refuse what this loss would not look at."""
        known = {"js": ("beta",), "decoupled_kl": ("alpha", "beta")}.get(self.name, ())
        ignored = [n for n in ("alpha", "beta") if getattr(self, n) is not None and n not in known]
        if self.name in ("ce", "logit_mse"):
            ignored += ["temperature"] * (self.temperature != 1) + ["tail"] * (self.tail != "rest")
        if self.name == "ce":
            ignored += ["k"] * (self.k is not None)
            ignored += ["hard_weight"] * (self.hard_weight != 0 or self.hard_weight_end is not None)
        if self.name == "decoupled_kl":
            ignored += ["tail"] * (self.tail != "rest")
        if ignored:
            raise InputError(
                f"LossRecipe: the loss {self.name!r} has no {ignored[0]}; leave it out, or choose "
                "another loss"
            )
        if self.through == "hidden" and self.name not in FROM_HIDDEN:
            raise InputError(
                f"LossRecipe: the loss {self.name!r} needs the logits; through='hidden' is for "
                f"{' and '.join(FROM_HIDDEN)}"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW, and its learning rate at each step; norms and biases do not decay.

    Attributes:
        lr: at its highest.
        schedule: after the warmup: "constant"; "linear" or "cosine" down to final · lr; "wsd",
            constant and then linear for the last `decay` of all steps.
        warmup: share of all steps in which it rises from 0.
        decay: share of all steps in which "wsd" falls.
        final: where it ends, as a share of lr.
        weight_decay, betas, eps: of AdamW.
        clip: largest norm of the gradient; None leaves it as it is.
    """

    lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    decay: float = 0.2
    final: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):  # from JSON
            object.__setattr__(self, "betas", tuple(self.betas))
        check_choice(self, "schedule", get_args(Schedule))
        check_number(self, "lr", above=0)
        check_number(self, "clip", above=0)
        check_number(self, "eps", above=0)
        check_number(self, "weight_decay", least=0)
        for name in ("warmup", "decay", "final"):
            check_number(self, name, least=0, most=1)
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        if not pair or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in self.betas):
            raise InputError(f"OptimizerRecipe: betas are {self.betas!r}; two numbers from 0 to 1")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise InputError(
                f"OptimizerRecipe: warmup {self.warmup} and decay {self.decay} are more than all "
                "steps"
            )


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """What a step trains on, and what is kept from training.

    Attributes:
        batch_size: rows in a batch.
        accumulate: batches in a step; every position of them weighs the same.
        row_length: put several records into each row of so many tokens.
        max_length: tokens of a record, at most.
        shuffle: each epoch in another order; False for streams.
        held_out: share of the samples that is kept for evaluation, drawn by key and seed; 0 keeps
            none. By default .1, and where another label set is held out, none.
        held_out_every: in its place, every n-th sample of the set's order.
    """

    batch_size: int = 8
    accumulate: int = 1
    row_length: int | None = None
    max_length: int | None = None
    shuffle: bool = True
    held_out: float | None = None
    held_out_every: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "batch_size", "accumulate", "row_length", "max_length")
        check_number(self, "held_out", least=0, below=1)
        if self.held_out_every is not None:
            check_counts(self, "held_out_every", least=2)
            if self.held_out is not None:
                raise InputError("DataRecipe: held_out and held_out_every are given; choose one")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A whole run.

    Attributes:
        student: None where a model is passed to `train`, else `StudentRecipe()`.
        steps, epochs: how long; one of them.
        seed: of the student's first weights, its dropout, the order and the held-out samples.
        device: "cpu" or "cuda"; CUDA where there is one.
        autocast: run the student in bfloat16; on CUDA.
        log_every: steps between lines of metrics.jsonl.
        evaluate_every: steps between evaluations; by default at the beginning and end alone.
        checkpoint_every: steps that a killed run loses, at most.
    """

    student: StudentRecipe | None = None
    loss: LossRecipe = field(default_factory=LossRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    steps: int | None = None
    epochs: int | None = None
    seed: int = 0
    device: str | None = None
    autocast: bool = False
    log_every: int = 10
    evaluate_every: int | None = None
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        check_counts(self, "steps", "epochs", "log_every", "evaluate_every", "checkpoint_every")
        check_counts(self, "seed", least=0)
        if self.seed >= 1 << 63:
            raise InputError(f"TrainRecipe: seed is {self.seed}; it must be below 2⁶³")
        if (self.steps is None) == (self.epochs is None):
            raise InputError(
                f"TrainRecipe: steps is {self.steps} and epochs {self.epochs}; say how long it "
                "trains with one of them"
            )

    def to_json(self) -> dict[str, Any]:
        """Every field, nested, in types of JSON."""
        made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return made

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The recipe of `to_json`; a field that is left out has its default.

        Raises:
            InputError: an unknown field, or a value that cannot be.
        """
        kinds: dict[str, Any] = {
            "student": StudentRecipe,
            "loss": LossRecipe,
            "optimizer": OptimizerRecipe,
            "data": DataRecipe,
        }
        nested = {
            name: _made(kind, data[name], f"{name}.")
            for name, kind in kinds.items()
            if data.get(name) is not None
        }
        made: Self = _made(cls, {**data, **nested}, "")
        return made


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two nested dicts, by dotted name."""
    found = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{where}{name}.")
        elif old != new:
            found.append(f"{where}{name} was {_shown(old)}, is now {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    return "not given" if value is None else quoted(value) if isinstance(value, str) else f"{value}"


def _made(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise InputError(f"a recipe's {where[:-1]} is {quoted(data)}; its fields go in an object")
    known = {f.name for f in dataclasses.fields(kind)}
    for name in data:
        if name not in known:
            raise InputError(f"a recipe has no field {quoted(where + name)}")
    return kind(**data)
