"""ONNX models of arrays as teachers, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from softlabels.errors import TeacherError, quoted
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.traits import Kind

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class Session:
    """A model of one input, (B, …), and one output that counts; made by `softlabels.teachers.onnx`.

    Args:
        path: the `.onnx` file.
        output: the name of the output with the logits; the only one by default.
        kind: what they are: "categorical", "binary" or "embedding".
        positions: "first" for one label an array, "every" for one at each index of its first axis.
        classes: V, where the model does not say.
        class_names: of the classes in order.
        providers: where it runs; ONNX Runtime's own choice among the CPU alone by default.

    Raises:
        TeacherError: there is no such file, it is no model, or takes or gives something else.
    """

    takes, alignment, tokenizer, max_length = "arrays", "same", None, None

    def __init__(
        self,
        path: str | Path,
        *,
        output: str | None = None,
        kind: Kind = "categorical",
        positions: Literal["first", "every"] = "first",
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._path, self._providers = Path(path), list(providers)
        self.kind, self.positions, self.class_names = kind, positions, class_names
        if not self._path.is_file():
            raise TeacherError(f"the teacher {quoted(path)}: there is no such file")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES:
            found = ", ".join(f"{one.name} {one.type}" for one in inputs)
            raise TeacherError(
                f"the teacher {quoted(self._path.name)} takes {found}; a teacher of arrays takes "
                "one tensor of numbers: wrap others in softlabels.teachers.from_callable"
            )
        self._input = inputs[0]
        outputs = {one.name: one for one in self._session.get_outputs()}
        chosen = output or (next(iter(outputs)) if len(outputs) == 1 else None)
        if chosen not in outputs:
            raise TeacherError(
                f"the teacher {quoted(self._path.name)} gives {', '.join(map(quoted, outputs))}; "
                "say which of them are the logits: output="
            )
        self._output = chosen
        self.classes = classes or self._width(outputs[chosen].shape)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    @cached_property
    def _session(self) -> Any:
        try:
            return onnxruntime.InferenceSession(str(self._path), providers=self._providers)
        except Exception as error:  # its own errors have no common base
            raise TeacherError(
                f"the teacher {quoted(self._path.name)} cannot be loaded: "
                f"{quoted(error, limit=300)[1:-1]}"
            ) from error

    def _width(self, shape: Sequence[Any]) -> int:
        if not shape or not isinstance(shape[-1], int):
            raise TeacherError(
                f"the teacher {quoted(self._path.name)} does not say how many classes it has (its "
                f"output's shape is {shape}); say so: classes="
            )
        return shape[-1]

    @cached_property
    def identity(self) -> TeacherIdentity:
        """Its name, and the digest of its file."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return TeacherIdentity(
            name=self._path.stem,
            revision=None,
            weights=digest,
            config=f"output {self._output}",
            dtype=self._input.type.removeprefix("tensor(").rstrip(")"),
            engine="onnxruntime",
            engine_version=onnxruntime.__version__,
            classes=self.classes,
        )

    def prepare(self, array: Any) -> Any:
        """One array in the dtype of the input."""
        return array.astype(_DTYPES[self._input.type], copy=False)

    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`, of arrays of one shape, (B, …)."""
        size = self._input.shape[0]
        # A model that was exported for one sample takes one at a time.
        rows = size if isinstance(size, int) and size > 0 else len(input_ids)
        if len(input_ids) % rows:
            raise TeacherError(
                f"the teacher {quoted(self._path.name)} takes batches of {rows} arrays alone; "
                "export it with a batch axis of any size"
            )
        parts = [
            self._session.run([self._output], {self._input.name: part.numpy()})[0]
            for part in input_ids.split(rows)
        ]
        found = np.concatenate(parts).reshape(*wanted.shape, -1)
        if found.shape[-1] != self.classes:
            raise TeacherError(
                f"the teacher {quoted(self._path.name)} gave {found.shape} for "
                f"{tuple(input_ids.shape)}; expected {self.classes} classes at each of "
                f"{wanted.shape[1]} positions"
            )
        yield torch.from_numpy(found)[wanted]
