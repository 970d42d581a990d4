"""transformers models of images and sound as teachers: classifiers, and CTC of speech."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.errors import TeacherError, quoted
from softlabels.memory import sent
from softlabels.teachers.checkpoint import Checkpoint, Loading
from softlabels.teachers.digests import json_digest
from softlabels.teachers.identity import TeacherIdentity
from softlabels.teachers.tasks import Task
from softlabels.teachers.transformers import Pretrained

# A processor's own settings beside how it changes what it is given.
_NOT_THE_RESULT = frozenset({"image_processor_type", "feature_extractor_type", "processor_class"})


class OfArrays(Pretrained):
    """A classifier of images or sound that transformers runs, behind its own processor.

    Args:
        model: a checkpoint, or a model.
        task: what it answers.
        processor: an image processor or feature extractor of transformers; the model's own by
            default. A loaded model without one takes arrays as they are.
    """

    takes = "arrays"

    def __init__(self, model: Checkpoint | nn.Module, *, task: Task, processor: Any = None) -> None:
        super().__init__(model, task=task)
        self._processor = processor

    @property
    def vocabulary(self) -> int:
        """As many as classes: of a CTC model the characters that it writes."""
        return self.classes if self.task.has_classes else int(self.config.vocab_size)

    @property
    def max_length(self) -> int | None:
        """An array is taken whole."""
        return None

    @property
    def tokenizer(self) -> Any | None:
        """None: it takes no text."""
        return None

    @cached_property
    def processor(self) -> Any | None:
        """What makes its inputs; None where arrays are taken as they are."""
        if self._processor is not None:
            return self._processor
        checkpoint = self._checkpoint
        if checkpoint is None:
            if not self._path:
                return None
            checkpoint = Checkpoint(self._path, Loading())
        images = self.task.name == "image_classifier"
        kind = transformers.AutoImageProcessor if images else transformers.AutoFeatureExtractor
        found = checkpoint.part(kind)
        if found is None:
            raise TeacherError(
                f"the teacher {quoted(self.name)} has no preprocessor_config.json, which says how "
                "its inputs are made; pass processor=, or a loaded model for arrays as they are"
            )
        return found

    @cached_property
    def identity(self) -> TeacherIdentity:
        """As of any model; what its processor does is part of its config."""
        found = super().identity
        if self.processor is None:
            return found.model_copy(update={"vocabulary": None})
        settings = {
            name: value
            for name, value in self.processor.to_dict().items()
            if name not in _NOT_THE_RESULT
        }
        config = json_digest({"model": found.config, "processor": settings})
        return found.model_copy(update={"vocabulary": None, "config": config})

    def prepare(self, array: NDArray[Any]) -> NDArray[Any]:
        """One image, height × width × channels, or one waveform, (samples,), as the model takes it.

        Images without channels are grey. A waveform has the sampling rate of the feature extractor.
        """
        if self.processor is None:
            return array
        if self.task.name == "image_classifier":
            image = array[..., None].repeat(3, -1) if array.ndim == 2 else array
            # Of an image of few rows transformers would take them for channels.
            found = self.processor(
                images=[image], return_tensors="np", input_data_format="channels_last"
            )
        else:
            rate = self.processor.sampling_rate
            found = self.processor(
                np.asarray(array, np.float32), sampling_rate=rate, return_tensors="np"
            )
        made: NDArray[Any] = found[self._main_input][0]
        return made

    @property
    def _main_input(self) -> str:
        return str(getattr(self.model, "main_input_name", "pixel_values"))

    @torch.no_grad()
    def logits(self, input_ids: Tensor, wanted: Tensor, *, padding: Tensor) -> Iterator[Tensor]:
        """As `softlabels.teachers.Teacher`, of arrays of one shape, (B, …)."""
        self.model.eval()
        inputs = sent(input_ids, self.device)
        floats = next(self.model.parameters()).dtype
        inputs = inputs.to(floats) if inputs.is_floating_point() else inputs
        logits = self.model(**{self._main_input: inputs}).logits
        self._check_width(logits)
        rows = logits.unsqueeze(1) if logits.ndim == 2 else logits
        if rows.shape[:2] != wanted.shape:
            raise TeacherError(
                f"the teacher {quoted(self.name)} gave {rows.shape[1]} labels for arrays of shape "
                f"{tuple(inputs.shape[1:])}, of which {wanted.shape[1]} were expected"
            )
        yield rows[sent(wanted, self.device)]


class CTC(OfArrays):
    """A model of speech that says at every frame which character it hears."""

    def positions_of(self, shape: tuple[int, ...]) -> int:
        """Frames of a waveform, 0 where it is shorter than one."""
        found = self.model._get_feat_extract_output_lengths(torch.tensor(shape[0]))
        return max(0, int(found))
