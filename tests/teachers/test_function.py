"""Callable teachers: they say who they are, and what they answer is checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import CLASSES, built
from torch import Tensor

import softlabels as sl
from softlabels.errors import TeacherError
from softlabels.teachers import TeacherIdentity, from_callable, resolve

IDS = torch.tensor([[1, 2, 3], [4, 0, 0]])
PADDING = torch.tensor([[False, False, False], [False, True, True]])
WANTED = torch.tensor([[True, False, True], [True, False, False]])
TABLE = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))


def lookup(ids: Tensor) -> Tensor:
    return TABLE[ids]


def answer(teacher: Any) -> Tensor:
    return torch.cat(list(teacher.logits(IDS, WANTED, padding=PADDING)))


def test_a_callable_gives_the_wanted_positions_in_row_major_order() -> None:
    teacher = from_callable(lookup, name="table", version="1", classes=7)
    assert answer(teacher).tolist() == TABLE[torch.tensor([1, 3, 4])].tolist()
    assert (teacher.classes, teacher.max_length, teacher.tokenizer) == (7, None, None)
    assert teacher.identity.model_dump(exclude={"engine_version"}) == {
        "name": "table",
        "revision": "1",
        "weights": None,
        "config": None,
        "dtype": None,
        "engine": "callable",
        "classes": 7,
        "logits_known": True,
    }


@pytest.mark.parametrize(
    "given", [{}, {"name": "n"}, {"version": "1"}, {"name": "", "version": ""}]
)
def test_a_callable_without_name_and_version_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(TeacherError, match=r"lookup\(\) does not say which it is; give it name="):
        from_callable(lookup, classes=7, **given)


class Named:
    name, version, classes, max_length, tokenizer = "mine", 3, 7, 20, "a tokenizer"

    def __call__(self, ids: Tensor) -> Tensor:
        return TABLE[ids]


def test_attributes_of_the_callable_say_what_arguments_do_not() -> None:
    teacher = from_callable(Named())
    assert (teacher.identity.name, teacher.identity.revision) == ("mine", "3")
    assert (teacher.classes, teacher.max_length, teacher.tokenizer) == (7, 20, "a tokenizer")
    given = from_callable(Named(), name="other", version="4", classes=9, max_length=2)
    assert (given.identity.name, given.identity.revision) == ("other", "4")
    assert (given.classes, given.max_length) == (9, 2)
    assert answer(resolve(Named())).shape == (3, 7)


@pytest.mark.parametrize("classes", [None, 0, -1, 7.0, "7"])
def test_a_callable_without_a_number_of_classes_is_refused(classes: Any) -> None:
    with pytest.raises(TeacherError, match="'table' needs classes="):
        from_callable(lookup, name="table", version="1", classes=classes)


@pytest.mark.parametrize(
    ("returned", "shape"),
    [
        (torch.zeros(2, 3, 8), r"\(2, 3, 8\)"),
        (torch.zeros(2, 2, 7), r"\(2, 2, 7\)"),
        (torch.zeros(3, 2, 7), r"\(3, 2, 7\)"),
        (torch.zeros(2, 7), r"\(2, 7\)"),
        ((torch.zeros(2, 3, 7),), "tuple"),
        (None, "NoneType"),
        (torch.zeros(2, 3, 7).numpy(), "ndarray"),
    ],
)
def test_an_answer_of_another_shape_is_refused_with_both(returned: Any, shape: str) -> None:
    teacher = from_callable(lambda ids: returned, name="table", version="1", classes=7)
    with pytest.raises(TeacherError, match=rf"returned {shape} for .*= \(2, 3, 7\)"):
        answer(teacher)


def test_an_output_with_logits_is_taken_for_them() -> None:
    teacher = from_callable(
        lambda ids: SimpleNamespace(logits=TABLE[ids]), name="table", version="1", classes=7
    )
    assert torch.equal(answer(teacher), TABLE[torch.tensor([1, 3, 4])])


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.dropout = torch.nn.Embedding(5, 7), torch.nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embed(ids))


def test_a_module_is_known_by_its_weights() -> None:
    identity = from_callable(Module(), classes=7).identity
    assert (identity.name, identity.revision, identity.dtype) == ("Module", None, "float32")
    assert identity == from_callable(Module(), classes=7).identity
    changed = Module()
    changed.embed.weight.data[0, 0] += 1
    assert identity.weights != from_callable(changed, classes=7).identity.weights
    named = from_callable(Module(), name="mine", version="2", classes=7).identity
    assert (named.name, named.revision, named.weights) == ("mine", "2", identity.weights)


def test_a_module_is_run_in_eval_mode_without_gradients() -> None:
    module = Module()
    teacher = from_callable(module, classes=7)
    for _ in range(2):
        module.train()
        found = answer(teacher)
        assert torch.equal(found, module.embed.weight[torch.tensor([1, 3, 4])])
        assert not found.requires_grad


class Weightless(torch.nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return TABLE[ids]


def test_a_module_without_weights_must_say_which_it_is() -> None:
    with pytest.raises(TeacherError, match="Weightless does not say which it is"):
        from_callable(Weightless(), classes=7)
    assert answer(from_callable(Weightless(), name="w", version="1", classes=7)).shape == (3, 7)


@dataclass(frozen=True)
class OwnTeacher:
    """A user's teacher whose identity is a field and not a property."""

    identity: TeacherIdentity
    classes: int = 7
    max_length: int | None = None
    tokenizer: Any | None = None

    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Any:
        yield TABLE[input_ids[wanted]]


class Lazy:
    """A teacher whose weights must not be loaded to find out that it is one."""

    classes, max_length, tokenizer = 7, None, None

    @property
    def identity(self) -> TeacherIdentity:
        raise AssertionError("loaded")

    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Any:
        yield from ()


def test_everything_that_names_a_teacher_is_resolved(teacher_dir: Path, tmp_path: Path) -> None:
    own = OwnTeacher(from_callable(lookup, name="t", version="1", classes=7).identity)
    for teacher in (own, Lazy(), from_callable(lookup, name="t", version="1", classes=7)):
        assert resolve(teacher) is teacher
    model = built("Llama")
    for named in (teacher_dir, str(teacher_dir), model):
        assert type(resolve(named)).__name__ == "CausalLM"
    assert resolve(model).classes == CLASSES
    module = Module()
    module.classes = 7
    assert type(resolve(module)).__name__ == "FunctionTeacher"


@pytest.mark.parametrize("junk", [None, 5, ["model"], {"name": "x"}, b"model", SimpleNamespace()])
def test_what_is_no_teacher_is_refused_with_what_would_be(junk: Any) -> None:
    with pytest.raises(TeacherError, match=rf"a {type(junk).__name__} is no teacher; pass a model"):
        resolve(junk)


@pytest.mark.parametrize("junk", [lookup, len, print, Module, Module()])
def test_a_callable_that_does_not_say_enough_is_refused(junk: Any) -> None:
    with pytest.raises(TeacherError, match=r"does not say which it is|needs classes="):
        resolve(junk)


def test_a_model_s_name_without_transformers_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TeacherError, match=r"pip install 'softlabels\[transformers\]'"):
        resolve("some/model")


def test_ids_are_labelled_by_a_model_that_has_no_tokenizer_and_text_is_not(
    llama: Any, tmp_path: Path
) -> None:
    rows = [{"ids": [5, 6, 7]}, {"ids": [8]}]
    settings = {"selection": sl.TopK(3), "max_length": 8, "codec": "plain", "progress": False}
    labels = sl.precompute(rows, llama, tmp_path / "ids", column="ids", **settings)
    with torch.no_grad():
        expected = llama(torch.tensor([[5, 6, 7]])).logits[0].log_softmax(-1).topk(3)
    assert labels[0].ids.tolist() == expected.indices.tolist()
    torch.testing.assert_close(labels[0].log_probs, expected.values, rtol=1e-5, atol=1e-5)
    with pytest.raises(sl.errors.InputError, match="the teacher has no tokenizer"):
        sl.precompute([{"text": "a"}], llama, tmp_path / "text", **settings)
