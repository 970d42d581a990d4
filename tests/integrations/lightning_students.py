"""The student and its labels as Lightning takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from students import RATE, make_student, sums

import softlabels as sl
from softlabels.integrations import Steps


class Student(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.model = make_student()
        self.batches: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        self.batches.append(batch)
        total, count = sums(self.model, batch)
        count = self.trainer.strategy.reduce(count, reduce_op="sum")
        return total / count * self.trainer.world_size

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE)


class Labels(lightning.LightningDataModule):  # type: ignore[misc]
    def __init__(self, labels: sl.LabelSet, **options: Any) -> None:
        super().__init__()
        self.labels, self.options = labels, options
        self.state: dict[str, Any] | None = None

    def train_dataloader(self) -> Steps:
        self.steps = Steps(sl.loader(self.labels, **self.options))
        if self.state is not None:
            self.steps.load_state_dict(self.state)
        return self.steps

    def state_dict(self) -> dict[str, Any]:
        return self.steps.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def fit(
    labels: sl.LabelSet,
    out: Path,
    *,
    options: dict[str, Any],
    checkpoint: Path | None = None,
    **others: Any,
) -> Student:
    """Two epochs; a checkpoint after every step."""
    student = Student()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        callbacks=[
            ModelCheckpoint(out, every_n_train_steps=1, save_top_k=-1, filename="{step}"),
        ],
        **({"devices": 1} | others),
    )
    trainer.fit(student, datamodule=Labels(labels, **options), ckpt_path=checkpoint)
    return student
