"""Hard labels from a column: class numbers, or their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.arrow import nulls_of, numpy_of
from softlabels.errors import InputError, quoted


def hard_labels(
    column: pa.ChunkedArray, *, name: str, classes: int, class_names: Sequence[str] | None
) -> NDArray[np.int64]:
    """The class of each row, −1 where it is null, (N,).

    Args:
        name: of the column, for errors.
        classes: V.
        class_names: of the V classes; needed where the column has names.

    Raises:
        InputError: a label is none of the classes.
    """
    if pa.types.is_null(column.type):
        return np.full(len(column), -1)
    if not pa.types.is_integer(column.type):
        if class_names is None:
            raise InputError(
                f"the column {quoted(name)} holds names of classes, and the teacher's classes have "
                "none; give the teacher class_names=, or a column of class numbers"
            )
        places = {found: number for number, found in enumerate(class_names)}
        values = column.to_pylist()
        for value in values:
            if value is not None and value not in places:
                raise InputError(
                    f"the column {quoted(name)} has the label {quoted(value)}, which is none of "
                    f"the teacher's classes; the first of them is {quoted(class_names[0])}"
                )
        return np.asarray([-1 if value is None else places[value] for value in values], np.int64)
    known: NDArray[np.int64] = numpy_of(column, null=-1).astype(np.int64)
    nulls = nulls_of(column)
    wrong = ((known < 0) | (known >= classes)) & ~nulls
    if wrong.any():
        raise InputError(
            f"the column {quoted(name)} has the label {known[wrong][0]}, which is none of the "
            f"teacher's classes, 0 … {classes - 1}; null is for samples without a label"
        )
    return known
