"""Fitted scikit-learn classifiers as teachers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import sklearn
import torch
import xxhash
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from softlabels.errors import TeacherError
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.traits import Kind

# A probability of 0 has no log; this one is nobody's, and two of them still tell 10⁻³⁸ from 0.
_LEAST = float(np.finfo(np.float32).tiny)


class Estimator:
    """A classifier of arrays, each flattened to features; made by `softlabels.teachers.sklearn`.

    Logistic regression and its like give the logits of their softmax. All others give the log of
    `predict_proba`, of which only normalised values are known; what is 0 becomes the smallest
    float32. Of several labels a sample (targets with a column each) each has a sigmoid of its own:
    kind "binary".

    Args:
        model: fitted, with `predict_proba` or, of logistic regression, `decision_function`.
        version: of what cannot be told from its state.

    Raises:
        TeacherError: it is no classifier, not fitted, or gives no probabilities.
    """

    takes, alignment, positions, tokenizer, max_length = "arrays", "same", "first", None, None

    def __init__(self, model: Any, *, version: str | None = None) -> None:
        name = type(model).__name__
        if not is_classifier(model):
            raise TeacherError(f"a {name} is no classifier of scikit-learn")
        try:
            check_is_fitted(model)
        except NotFittedError:
            raise TeacherError(f"the {name} is not fitted; call its fit() first") from None
        if not hasattr(model, "predict_proba"):
            raise TeacherError(
                f"the {name} gives no probabilities; wrap it in "
                "sklearn.calibration.CalibratedClassifierCV, or choose one with predict_proba"
            )
        self._model, self._version = model, version
        self._labels = getattr(model, "classes_", None)
        several = _several(model, self._labels)
        self.kind: Kind = "binary" if several else "categorical"
        self.classes = several or len(self._labels)  # type: ignore[arg-type]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes as they were fitted; of several labels a sample None."""
        return None if self.kind == "binary" else tuple(map(str, self._labels))  # type: ignore[arg-type]

    @cached_property
    def identity(self) -> TeacherIdentity:
        """Its kind, and a digest of what it learnt."""
        return TeacherIdentity(
            name=type(self._model).__name__,
            revision=self._version,
            weights=state_digest(self._model),
            dtype=None,
            engine="scikit-learn",
            engine_version=sklearn.__version__,
            classes=self.classes,
            logits_known=self._gives_logits,
        )

    @property
    def _gives_logits(self) -> bool:
        return self.kind == "categorical" and isinstance(self._model, LogisticRegression)

    def prepare(self, array: NDArray[Any]) -> NDArray[Any]:
        """The features of one sample, (n,)."""
        return array.reshape(-1)

    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`, of features (B, n)."""
        features = input_ids.numpy()
        if self._gives_logits:
            found = self._model.decision_function(features)
            # Of two classes it is the log-odds of the second.
            logits = np.stack([np.zeros_like(found), found], 1) if found.ndim == 1 else found
        elif self.kind == "binary":
            logits = _log_odds(_of_each(self._model.predict_proba(features)))
        else:
            logits = _log(self._model.predict_proba(features))
        yield torch.from_numpy(logits.astype(np.float32))[wanted[:, 0]]


def _several(model: Any, labels: Any) -> int:
    """How many labels a sample may have at once; 0 where one alone."""
    if isinstance(labels, list) or getattr(model, "multilabel_", False):
        return len(labels)
    # A network with a sigmoid for each of several classes.
    sigmoids = getattr(model, "out_activation_", None) == "logistic"
    return len(labels) if sigmoids and len(labels) > 2 else 0


def _of_each(probs: Any) -> NDArray[np.float64]:
    """Of each label, (B, labels): columns, or a list with two columns for each."""
    if not isinstance(probs, list):
        return np.asarray(probs, np.float64)
    if any(each.shape[1] != 2 for each in probs):
        raise TeacherError("a label that was fitted has other values than yes and no")
    return np.stack([each[:, 1] for each in probs], 1)


def _log(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Their logs, normalised again."""
    held = np.maximum(probs, _LEAST)
    logs: NDArray[np.float64] = np.log(held / held.sum(-1, keepdims=True))
    return logs


def _log_odds(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    no = np.maximum(1 - probs, np.finfo(np.float64).eps / 2)
    odds: NDArray[np.float64] = np.log(np.maximum(probs, _LEAST)) - np.log(no)
    return odds


def state_digest(model: Any) -> str:
    """xxh3-128 (hex) of a fitted model: its parameters and arrays, and those of what it is made of.

    Without pickle, whose bytes differ from one version to the next.

    Raises:
        TeacherError: it holds what has no bytes of its own.
    """
    state = xxhash.xxh3_128()
    for piece in _pieces(model, ()):
        state.update(piece)
    return state.hexdigest()


def _pieces(value: Any, above: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes of a value, in an order of their own."""
    if id(value) in above:
        yield b"again"
        return
    above = (*above, id(value))
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes():
            yield f"{type(value).__name__} {value!r}\n".encode()
        case np.ndarray() if value.dtype.hasobject:
            yield f"objects {value.shape}\n".encode()
            for one in value.ravel().tolist():
                yield from _pieces(one, above)
        case np.ndarray():
            yield f"array {value.dtype.str} {value.shape}\n".encode()
            yield np.ascontiguousarray(value).tobytes()
        case np.generic():
            yield from _pieces(np.asarray(value), above)
        case Mapping():
            yield f"mapping {len(value)}\n".encode()
            for name in sorted(value, key=str):
                yield from _pieces(name, above)
                yield from _pieces(value[name], above)
        case Sequence() | set() | frozenset():
            ordered = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
            yield f"sequence {len(value)}\n".encode()
            for one in ordered:
                yield from _pieces(one, above)
        case type():
            yield f"type {value.__module__}.{value.__qualname__}\n".encode()
        case _ if callable(value) and hasattr(value, "__qualname__"):
            yield f"function {value.__module__}.{value.__qualname__}\n".encode()
        case _:
            yield f"object {type(value).__module__}.{type(value).__qualname__}\n".encode()
            yield from _pieces(_state_of(value), above)


def _state_of(value: Any) -> Any:
    """What an object holds."""
    if hasattr(value, "tocsr"):  # sparse matrices
        rows = value.tocsr().sorted_indices()
        return [rows.shape, rows.data, rows.indices, rows.indptr]
    if isinstance(value, (np.random.RandomState, np.random.Generator)):
        return ()  # what it draws next has no part in what was learnt
    held = value.__getstate__() if hasattr(value, "__getstate__") else vars(value)
    if isinstance(held, Mapping):
        # The version is the engine's; caches of hashes and the like begin with an underscore.
        return {n: v for n, v in held.items() if n != "_sklearn_version"}
    if held is None:
        try:
            # Compiled classes say how they are made again: of which arguments, with which state.
            made = value.__reduce_ex__(2)
            return [] if isinstance(made, str) else list(made[1:3])
        except TypeError:
            pass
        raise TeacherError(
            f"a {type(value).__name__} inside the model says nothing of its state, so a changed "
            "teacher would not be noticed; wrap it in softlabels.teachers.from_callable(function, "
            "name=…, version=…)"
        )
    return held
