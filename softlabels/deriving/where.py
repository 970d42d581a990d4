"""Choosing records by what their labels show: a condition that is parsed, never run as code."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import InputError, quoted
from softlabels.format.records import Records

Floats = NDArray[np.float64]

STATISTICS = {
    "positions": "labelled positions",
    "length": "tokens",
    "entropy": "mean entropy in nats of what is stored at T = 1, the classes not kept taken as one",
    "mass": "mean mass of the classes kept, T = 1",
    "tail": "mean mass of the classes not kept, T = 1",
    "hard_log_prob": "mean log-prob of the hard labels; where there is none, no comparison holds",
    "perplexity": "exp(−hard_log_prob)",
}
_GRAMMAR = (
    f"a condition compares {', '.join(STATISTICS)} and numbers with < <= > >= == !=, computes with "
    "+ - * / and joins with and, or, not and parentheses"
)
_MOST_CHARACTERS, _LARGEST = 500, 1e300

_ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_COMPARISONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    # Of a number that is not known, no comparison holds.
    ast.NotEq: lambda a, b: (a < b) | (a > b),
}


@dataclass(frozen=True)
class Condition:
    """A condition on the statistics of a record; made by `parse`.

    Attributes:
        text: in one form, whatever spaces and parentheses it was given with.
    """

    text: str

    @cached_property
    def _tree(self) -> ast.expr:
        return ast.parse(self.text, mode="eval").body

    @property
    def names(self) -> frozenset[str]:
        """The statistics that it uses."""
        return frozenset(n.id for n in ast.walk(self._tree) if isinstance(n, ast.Name))

    def __call__(self, values: Mapping[str, Floats]) -> NDArray[np.bool_]:
        """Where it holds.

        Args:
            values: at least those of `names`, each (R,), with R known from any of them.
        """
        records = len(next(iter(values.values())))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.broadcast_to(np.asarray(_value(self._tree, values), bool), records)


def parse(text: str) -> Condition:
    """Read a condition, such as "entropy < 2 and mass > .9".

    Raises:
        InputError: it is none.
    """
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
        raise InputError(
            f"where is {quoted(text)}; it must be text of {_MOST_CHARACTERS} characters at most: "
            f"{_GRAMMAR}"
        )
    try:
        with warnings.catch_warnings():
            # Of what Python would warn about ("1is 2"), nothing passes the checks below.
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
        if _is_truth(tree):
            return Condition(ast.unparse(tree))
        problem = "it is a number, not a condition"
    except InputError as error:
        problem = str(error)
    except (SyntaxError, ValueError):
        problem = "it cannot be read"
    except (RecursionError, MemoryError):
        problem = "it is nested too deeply"
    raise InputError(f"where {quoted(text, limit=120)}: {problem}; {_GRAMMAR}")


def _is_truth(node: ast.expr) -> bool:
    """Whether it is true or false; else it is a number. Raises `InputError` where it is neither."""
    match node:
        case ast.BoolOp(values=values):
            return _all_are(values, truth=True)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _all_are([operand], truth=True)
        case ast.Compare(left=left, ops=ops, comparators=others) if _known(ops, _COMPARISONS):
            return not _all_are([left, *others], truth=False)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _all_are([left, right], truth=False)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _ARITHMETIC:
            return _all_are([operand], truth=False)
        case ast.Name(id=name) if name in STATISTICS:
            return False
        case ast.Name(id=name):
            raise InputError(f"there is no statistic {quoted(name)}")
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if abs(value) < _LARGEST:
                return False
    raise InputError(f"{quoted(ast.unparse(node))} is not allowed")


def _known(ops: list[ast.cmpop], known: Mapping[type[ast.AST], Any]) -> bool:
    return all(type(op) in known for op in ops)


def _all_are(nodes: list[ast.expr], *, truth: bool) -> bool:
    """`truth`, after checking that each of the nodes is a truth, or that each is a number."""
    for node in nodes:
        if _is_truth(node) != truth:
            wanted = "a comparison" if truth else "a number"
            raise InputError(f"{quoted(ast.unparse(node))} stands where {wanted} is needed")
    return truth


def _value(node: ast.expr, values: Mapping[str, Floats]) -> Any:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return reduce(np.logical_and, [_value(part, values) for part in parts])
        case ast.BoolOp(values=parts):
            return reduce(np.logical_or, [_value(part, values) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_value(operand, values))
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_value(side, values) for side in (left, *others)]
            pairs = zip(ops, sides[:-1], sides[1:], strict=True)
            return reduce(np.logical_and, [_COMPARISONS[type(op)](a, b) for op, a, b in pairs])
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return _ARITHMETIC[type(op)](_value(operand, values))
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
    raise AssertionError(ast.dump(node))


def statistics(records: Records, names: Collection[str]) -> dict[str, Floats]:
    """Statistics of each record, (R,) each; `STATISTICS` says what they are.

    Means are over a record's labelled positions; of a record without any they are NaN.

    Raises:
        MissingTailError: what the classes not kept sum to at T = 1 is not stored.
    """
    positions = np.diff(records.label_offsets)
    found = {
        "positions": positions.astype(np.float64),
        "length": np.diff(records.token_offsets).astype(np.float64),
    }
    owner = np.repeat(np.arange(len(records)), positions)

    def mean(values: Tensor, known: NDArray[np.bool_] | None = None) -> Floats:
        flat = values.double().numpy()
        of, flat = (owner, flat) if known is None else (owner[known], flat[known])
        count = np.bincount(of, minlength=len(records))
        with np.errstate(invalid="ignore"):
            return np.bincount(of, flat, len(records)) / count

    labels = records.soft
    if {"entropy", "mass", "tail"} & set(names):
        log_tail = labels.log_tail(1.0).double()
        found["tail"] = mean(log_tail.exp())
        found["mass"] = mean(-log_tail.expm1())
        if "entropy" in names:
            nats = _nats(labels.log_probs_at(1.0).double()).sum(-1) + _nats(log_tail)
            found["entropy"] = mean(nats)
    if {"hard_log_prob", "perplexity"} & set(names):
        hard = labels.hard_log_probs
        if hard is None:
            hard = labels.log_probs.new_full(labels.shape, np.nan)
        found["hard_log_prob"] = mean(hard, ~hard.isnan().numpy())
        with np.errstate(over="ignore"):
            found["perplexity"] = np.exp(-found["hard_log_prob"])
    return {name: found[name] for name in names}


def _nats(log_probs: Tensor) -> Tensor:
    """−p log p, and 0 where p is 0."""
    return -(log_probs.exp() * log_probs.clamp(min=-1e4))
