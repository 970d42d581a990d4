"""timm's image models as teachers, behind the transform that they were trained with."""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from softlabels.errors import TeacherError, quoted
from softlabels.teachers.function import FunctionTeacher, from_callable


def open_timm(
    model: str | nn.Module, *, device: str | torch.device | None = None
) -> FunctionTeacher:
    """A model by timm's name, with its pretrained weights, or one that is made already.

    Args:
        device: of a name: "cuda" where there is one, else "cpu".

    Raises:
        TeacherError: there is no such model, or it has no classes.
    """
    made: Any = model
    if isinstance(model, str):
        try:
            made = timm.create_model(model, pretrained=True)
        except Exception as error:  # what the download raises, and what timm does
            raise TeacherError(
                f"timm's model {quoted(model)} cannot be made: {quoted(error, limit=300)[1:-1]}"
            ) from error
        made.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    classes = int(getattr(made, "num_classes", 0))
    if classes < 1:
        raise TeacherError(f"a {type(made).__name__} without classes gives no logits")
    transform = create_transform(**resolve_model_data_config(made), is_training=False)

    def prepare(array: NDArray[Any]) -> NDArray[Any]:
        """An image, height × width (× 3) uint8, as the model takes it."""
        image = Image.fromarray(array).convert("RGB")
        found: NDArray[Any] = np.asarray(transform(image))
        return found

    name = str(getattr(made, "pretrained_cfg", {}).get("architecture") or type(made).__name__)
    return from_callable(made, name=name, classes=classes, takes="arrays", prepare=prepare)
