"""Students that transformers builds: of a size, of a config, or pruned from a teacher."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softlabels.errors import InputError, SoftLabelsError, VocabularyMismatchError, quoted
from softlabels.labelset.reader import LabelSet
from softlabels.training.checkpoint import WEIGHTS, save_weights, sync
from softlabels.training.prune import open_teacher, pruned
from softlabels.training.recipe import StudentRecipe

# Llamas with tied embeddings: layers, width, heads.
SIZES = {
    "nano": (2, 64, 4),
    "tiny": (4, 128, 4),
    "mini": (6, 256, 4),
    "small": (8, 512, 8),
    "base": (12, 768, 12),
}
_LEAST_POSITIONS = 2048
# Far beyond where a soft cap bends what it is given.
_LOUD = 100.0


def build(recipe: StudentRecipe, labels: LabelSet, *, seed: int) -> Any:
    """The student, in float32 on the CPU, in the mode for training.

    Args:
        labels: whose classes it has.
        seed: of its first weights.

    Raises:
        InputError: transformers is not installed, or no such student can be built.
        VocabularyMismatchError: it has other classes, or another tokenizer.
        TeacherError: the teacher to prune cannot be loaded.
    """
    check_labels(labels)
    if find_spec("transformers") is None:
        raise InputError(
            "a student from a recipe is built by transformers; pip install "
            "'softlabels[transformers]', or pass a model of your own: train(…, student=)"
        )
    if recipe.teacher is not None and recipe.layers is not None:
        whole, tokenizer = open_teacher(recipe.teacher)
        check_classes(whole.config, labels)
        if tokenizer is not None:
            labels.check_tokenizer(tokenizer)
        with _explained(f"a student of {recipe.layers} layers of {quoted(recipe.teacher)}"):
            model = pruned(whole, recipe.layers)
    else:
        fields = recipe.config or _of_size(recipe.size or "tiny")
        model = _from_config(fields, labels, seed=seed)
    return model.float().train()


def check_labels(labels: LabelSet) -> None:
    """Refuse a set that is not about the next token.

    Raises:
        InputError: saying what it is about.
    """
    plan = labels.plan
    if plan.hard_label_alignment != "next" or plan.teacher.vocabulary is not None:
        raise InputError(
            f"{labels.name} has labels of {plan.teacher.classes} classes aligned "
            f"{plan.hard_label_alignment!r}; this trainer is for causal LMs, whose labels are "
            "about the next token: train others in a loop of your own (docs/TRAINING.md)"
        )


def check_classes(config: Any, labels: LabelSet) -> None:
    """Refuse a student whose logits are not the labels' classes, by its config or None.

    Raises:
        VocabularyMismatchError: naming both numbers.
    """
    if config is None:
        return
    plan = labels.plan
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    classes = getattr(text, "vocab_size", None)
    if classes is not None and classes != plan.teacher.classes:
        raise VocabularyMismatchError(
            f"the student has {classes} classes (vocab_size), the labels of {labels.name} "
            f"{plan.teacher.classes}: its logits would mean other tokens. Leave out vocab_size, or "
            "label with a teacher that shares the student's tokenizer"
        )


def check_length(model: nn.Module, longest: int) -> None:
    """Refuse a student that was made for fewer positions than a record has.

    Raises:
        InputError: naming both numbers.
    """
    room = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if room is not None and room < longest:
        raise InputError(
            f"records have up to {longest} tokens, the student takes {room} "
            "(max_position_embeddings); cut them with max_length, or build it for more"
        )


def separate_head(model: Any) -> nn.Linear | None:
    """The linear layer that alone makes the model's logits; None where something else is in them.

    Tried once: with hidden states of its own body, and with loud ones, which a soft cap or a
    scaling would change.
    """
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "base_model"):
        return None
    from softlabels.teachers.heads import apply_head

    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    was_training, device = model.training, head.weight.device
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.arange(1, 9, device=device).remainder(len(head.weight)).unsqueeze(0)
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            loud = _LOUD * torch.linspace(-1, 1, states.numel(), device=device).view_as(states)
            apart = _close(head(states), model(input_ids=ids, use_cache=False).logits[0])
            alone = _close(head(loud), apply_head(model, loud))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    finally:
        model.train(was_training)
    return head if apart and alone else None


def write(model: Any, final: Path, tokenizer: Path | None) -> None:
    """A finished student as `save_pretrained` writes it, with the labels' tokenizer.

    Args:
        final: the folder, which is there whole or not at all; replaced where it is there.
        tokenizer: a folder whose files are copied.
    """
    making = final.with_name(f".making-{final.name}")
    for left_over in (making, final):
        shutil.rmtree(left_over, ignore_errors=True)
    making.mkdir()
    if hasattr(model, "save_pretrained"):
        with _quietly():
            model.save_pretrained(making)
    else:
        save_weights(model, making / WEIGHTS)
    if tokenizer is not None:
        shutil.copytree(tokenizer, making, dirs_exist_ok=True)
    for path in (*making.iterdir(), making):
        sync(path)
    making.rename(final)
    sync(final.parent)


@contextmanager
def _quietly() -> Iterator[None]:
    """No bar for a file that takes a second."""
    from transformers.utils import logging as bars

    logging: Any = bars
    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            logging.enable_progress_bar()


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _of_size(name: str) -> dict[str, Any]:
    if name not in SIZES:
        raise InputError(
            f"there is no student of size {quoted(name)}; sizes are {', '.join(SIZES)}, or pass "
            "the fields of a config"
        )
    layers, width, heads = SIZES[name]
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": True,
    }


def _from_config(given: Mapping[str, Any], labels: LabelSet, *, seed: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    if "auto_map" in given:
        raise InputError(
            "the student's config names Python code of its own (auto_map), which is never run; "
            "leave it out, or build the model yourself and pass it: train(…, student=)"
        )
    plan = labels.plan
    special = {} if plan.tokenizer is None else plan.tokenizer.special_tokens
    defaults: dict[str, Any] = {"vocab_size": plan.teacher.classes}
    for name in ("bos", "eos"):
        defaults[f"{name}_token_id"] = special.get(f"{name}_token")
    if given["model_type"] == "llama":
        longest = plan.preparation.max_length
        defaults["max_position_embeddings"] = max(_LEAST_POSITIONS, longest)
    fields = {**defaults, **given}
    kind = fields.pop("model_type")
    with _explained(f"a student of model_type {quoted(kind)}"):
        config = AutoConfig.for_model(kind, **fields)
        check_classes(config, labels)  # before a model of that size is made
        # Not the global generator: what is drawn depends on the seed alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return auto.from_config(config, dtype=torch.float32)


@contextmanager
def _explained(who: str) -> Iterator[None]:
    """What transformers raises at a config that cannot be, in a line."""
    try:
        yield
    except SoftLabelsError:
        raise
    except Exception as error:  # configs are checked by many libraries, each with its own
        words = " ".join(str(error).split())
        raise InputError(f"{who} cannot be built: {quoted(words, limit=300)[1:-1]}") from error
