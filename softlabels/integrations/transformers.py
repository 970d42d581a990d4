"""A transformers Trainer whose training data is a loader of soft labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from softlabels.errors import InputError
from softlabels.integrations.skipping import Skippable, position
from softlabels.integrations.steps import Batch, Steps
from softlabels.integrations.tensors import from_tensors, to_tensors
from softlabels.labels import SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.loading.collate import block_causal_mask, mask_dtype
from softlabels.loading.loader import Loader
from softlabels.loading.mix import Mix
from softlabels.losses import kl_divergence, reduce

# Of the student's outputs and a batch: the loss at every position, (...), not reduced.
Loss = Callable[[Any, Batch], Tensor]


def distillation(outputs: Any, batch: Batch) -> Tensor:
    """The default loss: `kl_divergence` at T = 1, (B, T)."""
    return kl_divergence(outputs.logits, batch["soft_labels"])


def labelled(batch: Batch) -> Tensor:
    """The positions that count by default: those with soft labels, bool (B, T)."""
    labels = batch["soft_labels"]
    if not isinstance(labels, SoftLabels):
        raise InputError(
            "this batch has labels of several teachers; say which positions count: positions="
        )
    if labels.mask is not None:
        return labels.mask
    return torch.ones(labels.shape, dtype=torch.bool, device=labels.ids.device)


class SoftLabelTrainer(Trainer):
    """Trains on a loader's batches, every labelled position of a step weighing the same.

    A step's loss is the sum over its positions divided by their number in all micro-batches of
    all ranks, whatever `average_tokens_across_devices` says, so that W ranks with G micro-batches
    train as one with W·G. The loader's `batch_size` counts, `per_device_train_batch_size` does
    not; nor do the arguments about columns, samplers, and dispatching.

    The place in the data is in every checkpoint (in its trainer_state.json), and
    `train(resume_from_checkpoint=…)` goes on there without reading what was seen.

    Args:
        model: the student; as Trainer's.
        args: as Trainer's.
        loader: or mix, made after `args`, so that it is this rank's; from now on moved by the
            Trainer.
        loss: see `Loss`; it gets the batch on the student's device, without text and keys.
        positions: which positions of a batch count, bool, of the loss's shape.
        others: as Trainer's. `eval_dataset` may be a Loader, or a dict of them: `evaluate` gives
            the mean loss over all of their positions.

    Raises:
        InputError: the loader is another rank's, or an argument asks for what cannot be had here.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        loader: Loader | Mix,
        loss: Loss = distillation,
        positions: Callable[[Batch], Tensor] = labelled,
        **others: Any,
    ) -> None:
        _check(args, others)
        self._steps = Skippable(loader, to_tensors)
        self._loss, self._positions = loss, positions
        super().__init__(model, args, train_dataset=loader, **others)
        self._steps.check_ranks(self.accelerator.process_index, self.accelerator.num_processes)
        # The loss is divided by a count of positions: Trainer must not divide by micro-batches.
        self.model_accepts_loss_kwargs = True
        forward = inspect.signature(self.accelerator.unwrap_model(self.model).forward)
        self._forward = frozenset(forward.parameters)
        world_size = self.accelerator.num_processes
        self.add_callback(position(self._steps, world_size, args.gradient_accumulation_steps))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader's batches, not prepared: they are shared out among the ranks already."""
        return DataLoader(self._steps, batch_size=None)

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Records in an epoch of all ranks; Trainer would count batches."""
        loader = self._steps.loader
        items = loader.feed.items() if isinstance(loader, Loader) else None
        return super().num_examples(dataloader) if items is None else items

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The micro-batches of a step, and the positions of all of them on all ranks."""
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)[0]
        if not all(batches):
            raise InputError(
                "this version of transformers does not skip the batches that it has trained "
                "before a checkpoint; please report it"
            )
        if not batches:
            return batches, None
        count = sum(self._positions(from_tensors(batch)).sum() for batch in batches)
        return batches, self.accelerator.reduce(torch.as_tensor(count).to(device), "sum")

    def model_inputs(self, batch: Batch) -> Batch:
        """What the student is called with: the fields that its `forward` names.

        Rows of several records come with a mask that keeps them apart; within a record tokens see
        those before them, and those after them too where labels are of the token itself
        (`hard_label_alignment` "same"). Override it for students that need something else.
        """
        inputs = {name: value for name, value in batch.items() if name in self._forward}
        if "segment_ids" in batch:
            model = self.accelerator.unwrap_model(self.model)
            inputs["attention_mask"] = block_causal_mask(
                batch["segment_ids"],
                causal=self._steps.causal,
                dtype=mask_dtype(model, next(model.parameters()).dtype),
            )
        return inputs

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch: its part of the step's mean, times the ranks.

        DDP averages gradients over ranks; the factor makes a sum of it.

        Args:
            model: the student, wrapped.
            inputs: a batch of plain tensors.
            return_outputs: as Trainer's.
            num_items_in_batch: positions of the step; the batch's own where None.
        """
        batch = from_tensors(inputs)
        outputs = model(**self.model_inputs(batch))
        positions = num_items_in_batch
        if positions is not None:
            positions = positions / self.accelerator.num_processes
        loss = reduce(self._loss(outputs, batch), self._positions(batch), positions=positions)
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Trainer's; for a Loader, the mean loss over all of its positions, in its first order."""
        named: Any = self.eval_dataset
        data = named if eval_dataset is None else eval_dataset
        data = named[data] if isinstance(data, str) else data
        _check_evaluated(data, {name: getattr(self, name) for name in _METRICS})
        if not isinstance(data, Loader):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        Steps(data).check_ranks(self.accelerator.process_index, self.accelerator.num_processes)
        mean = self._mean_loss(data)
        metrics = {f"{metric_key_prefix}_loss": mean}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> Any:
        """Trainer's; it keeps every logit, for which a Loader is refused."""
        if isinstance(test_dataset, (Loader, Mix, LabelSet)):
            raise InputError(
                f"predict was given a {type(test_dataset).__name__}, and would keep all logits of "
                "all positions; evaluate(loader) gives the mean loss, and for one batch at a time "
                "call the model with trainer.model_inputs(batch)"
            )
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    @torch.no_grad()
    def _mean_loss(self, loader: Loader) -> float:
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        loader.set_epoch(0)
        for batch in loader:
            moved = from_tensors(self._prepare_inputs(to_tensors(batch)))
            with self.compute_loss_context_manager():
                losses = self._loss(model(**self.model_inputs(moved)), moved)
            mask = self._positions(moved)
            sums += torch.stack([losses.masked_fill(~mask, 0).sum(), mask.sum()])
        model.train(was_training)
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        return float(total / max(count, 1))


def _check(args: TrainingArguments, others: dict[str, Any]) -> None:
    """Refuse what would be ignored, or be wrong."""
    for name in ("train_dataset", "data_collator", "compute_loss_func"):
        if others.get(name) is not None:
            raise InputError(
                f"{name}= was given; a SoftLabelTrainer takes its batches from loader= and "
                "their loss from loss="
            )
    evaluated = others.get("eval_dataset")
    for data in evaluated.values() if isinstance(evaluated, dict) else [evaluated]:
        _check_evaluated(data, others)
    if args.label_smoothing_factor:
        raise InputError(
            f"label_smoothing_factor is {args.label_smoothing_factor:g}, which Trainer applies to "
            "hard labels in a loss of its own; leave it 0, and smooth in loss="
        )
    if args.auto_find_batch_size:
        raise InputError(
            "auto_find_batch_size=True cannot change the loader's batches; choose batch_size in "
            "sl.loader(…)"
        )
    if args.dataloader_num_workers:
        raise InputError(
            f"dataloader_num_workers is {args.dataloader_num_workers}; set it to 0: the loader's "
            "threads prepare batches, sl.loader(…, threads=…)"
        )
    if args.n_gpu > 1:
        raise InputError(
            f"this process sees {args.n_gpu} GPUs, among which Trainer would cut every batch "
            "(DataParallel); start one process for each: torchrun --nproc-per-node …"
        )


_METRICS = ("compute_metrics", "preprocess_logits_for_metrics")


def _check_evaluated(data: Any, metrics: Mapping[str, Any]) -> None:
    """Refuse what Trainer would take for rows, and what the mean loss of a Loader ignores."""
    if isinstance(data, (Mix, LabelSet)):
        raise InputError(
            f"a {type(data).__name__} was given as eval_dataset; it must be a Loader, "
            "sl.loader(labels, data), or a dict of them"
        )
    if isinstance(data, Loader):
        for name in _METRICS:
            if metrics.get(name) is not None:
                raise InputError(
                    f"{name}= was given, but of a Loader as eval_dataset only the mean loss is "
                    "computed; leave it out, and compute metrics in a callback's on_evaluate"
                )
