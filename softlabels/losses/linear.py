"""From hidden states to the loss, the logits never all in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlabels.labels import NO_LABEL, SoftLabels
from softlabels.losses.buckets import (
    Pointwise,
    blocks,
    check_classes,
    engine_for,
    loss_and_gradient,
    result_dtype,
)
from softlabels.losses.divergences import against, forward_kl
from softlabels.losses.linear_inputs import check_hard_labels, check_head
from softlabels.losses.products import add_product, graph_is_kept, scaled
from softlabels.losses.targets import Tail, Target, target

# Logits of a chunk, float32: beside them there is the head's gradient, and little else. Fewer rows
# make the products slower (benchmarks/bench_losses.py).
CHUNK_BYTES = 96 << 20
# On an accelerator each chunk reads the head twice and its gradient once.
ACCELERATOR_CHUNK_BYTES = 1 << 30


def linear_kl_divergence(
    hidden: Tensor,
    weight: Tensor,
    labels: SoftLabels,
    *,
    bias: Tensor | None = None,
    hard_labels: Tensor | None = None,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    temperature: float = 1.0,
    tail: Tail = "rest",
    classes: int | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    r"""`kl_divergence` of hidden · weightᵀ + bias, and cross-entropy, a few rows at a time.

        soft_weight · KL + hard_weight · (−log q_t)

    Loss and gradients are made in the forward pass, one chunk of logits after another; positions
    with neither kind of label are skipped. Products are of the head's dtype, or of autocast's;
    the head's gradient is summed in float32. Where positions weigh differently in what is made of
    the result, the backward pass computes it again.

    Args:
        hidden: the head's input, float, (..., d).
        weight: of the head, (V, d).
        labels: teacher, batch shape (...).
        bias: of the head, (V,).
        hard_labels: int64, (...), from `next_tokens`; −100 where there is none.
        soft_weight: of the KL, at `temperature` and multiplied by its square.
        hard_weight: of the cross-entropy, at temperature 1; needs hard_labels.
        tail: as in `kl_divergence`; "uniform" takes the memory that this function saves.
        classes: how many of the head's rows are classes, where it is padded: the others have
            logits of −∞ and no gradient.
        chunk_rows: positions of a chunk; by default as many as give 96 MiB of float32 logits on a
            CPU, and 1 GiB on an accelerator, where narrower ones are not widened if triton is
            installed.

    Returns:
        (...), float64 for float64 hidden states, else float32; 0 where there is no label.

    Raises:
        InputError: shapes or dtypes differ, a weight has no labels, or a count is out of range.
        VocabularyMismatchError: a class is outside the head.
        MissingTailError: as in `kl_divergence`.
    """
    check_head(hidden, weight, labels, bias=bias, classes=classes, chunk_rows=chunk_rows)
    check_hard_labels(labels, hard_labels, hard_weight=hard_weight)
    classes = len(weight) if classes is None else classes
    teacher = target(labels, temperature=temperature, tail=tail, classes=classes)
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = len(flat)
    hard = None if hard_labels is None or not hard_weight else hard_labels.reshape(rows)
    has_soft = torch.ones(rows, dtype=torch.bool, device=flat.device)
    if labels.mask is not None:
        has_soft = labels.mask.reshape(rows)
    has_any = has_soft if hard is None else has_soft | (hard != NO_LABEL)
    wanted = has_any.nonzero().squeeze(1)
    work = _Work(
        classes=classes,
        dtype=_product_dtype(hidden, weight),
        ids=teacher.ids.reshape(rows, teacher.ids.shape[-1])[wanted],
        log_p=teacher.log_p.reshape(rows, teacher.log_p.shape[-1])[wanted],
        log_p_rest=teacher.log_p_rest.reshape(rows)[wanted],
        has_soft=has_soft[wanted],
        hard=None if hard is None else hard[wanted],
        soft_weight=soft_weight,
        hard_weight=hard_weight,
        temperature=temperature,
        chunk=chunk_rows or _chunk_rows(flat.device, classes),
    )
    check_classes(work.ids.masked_fill(~work.has_soft.unsqueeze(-1), 0), classes)
    if work.hard is not None:
        check_classes(_classes_of(work.hard), classes)
    some: Tensor = _Linear.apply(flat[wanted], weight, bias, work)  # type: ignore[no-untyped-call]
    return some.new_zeros(rows).index_copy(0, wanted, some).view(hidden.shape[:-1])


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What hidden · weightᵀ is computed in, as autocast would where it is on."""
    device = hidden.device.type
    if torch.float64 in (hidden.dtype, weight.dtype) or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)


def _chunk_rows(device: torch.device, classes: int) -> int:
    budget = CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    return max(1, budget // (4 * max(1, classes)))


@dataclass(frozen=True)
class _Work:
    """Rows that have a label, and what is to be made of them, by products of one dtype."""

    # Rows of the head; those after them are padding, without a gradient. The head is not cut before
    # autograd sees it, which would copy its gradient.
    classes: int
    dtype: torch.dtype
    ids: Tensor
    log_p: Tensor
    log_p_rest: Tensor
    has_soft: Tensor
    hard: Tensor | None
    soft_weight: float
    hard_weight: float
    temperature: float
    chunk: int

    @property
    def one_gradient(self) -> bool:
        """Whether a row's gradient by its logits is not a sum of two."""
        return self.hard is None or self.temperature == 1.0

    def logits_gradient(
        self, logits: Tensor, rows: slice, *, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of some rows, and its gradient by their logits in place of these."""
        soft, wide = self.has_soft[rows].unsqueeze(-1), result_dtype(logits)
        log_p = torch.where(soft, self.log_p[rows], -torch.inf).to(wide)
        rest = self.log_p_rest[rows].masked_fill(~soft.squeeze(-1), -torch.inf).to(wide)
        ids = self.ids[rows].masked_fill(~soft, 0)
        if self.hard is None:
            found = Target(ids, log_p, rest)
            pointwise = _scaled(against(found, forward_kl, wide), self.soft_weight)
            return loss_and_gradient(
                logits, ids, found.used, pointwise, temperature=self.temperature, gradient=gradient
            )
        hard = self.hard[rows]
        if self.temperature == 1.0:
            return self._together(logits, Target(ids, log_p, rest), hard, gradient=gradient)
        found = Target(ids, log_p, rest)
        pointwise = _scaled(against(found, forward_kl, wide), self.soft_weight)
        one, slope = loss_and_gradient(
            logits.clone(), ids, found.used, pointwise,
            temperature=self.temperature, gradient=gradient,
        )  # fmt: skip
        certain = _classes_of(hard).unsqueeze(-1)
        other, more = loss_and_gradient(
            logits, certain, torch.ones_like(certain, dtype=torch.bool), self._hard(hard),
            temperature=1.0, gradient=gradient,
        )  # fmt: skip
        return one + other, None if slope is None or more is None else more.add_(slope)

    def _hard(self, hard: Tensor) -> Pointwise:
        known = hard != NO_LABEL
        return lambda log_q, _: torch.where(known, -self.hard_weight * log_q[..., 0], 0)

    def _together(
        self, logits: Tensor, teacher: Target, hard: Tensor, *, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Both losses from one exponential: the hard label is an entry of its own, the last."""
        known, label = hard != NO_LABEL, _classes_of(hard).unsqueeze(-1)
        is_hard = teacher.used & (teacher.ids == label)
        kept = is_hard.any(-1)
        used = torch.cat([teacher.used & ~is_hard, torch.ones_like(label, dtype=torch.bool)], -1)
        ids = torch.where(used[..., :-1], teacher.ids, label)
        soft = against(teacher, forward_kl, result_dtype(logits))

        def both(log_q: Tensor, log_q_rest: Tensor) -> Tensor:
            at_hard = log_q[..., -1]
            entries = torch.where(is_hard, at_hard.unsqueeze(-1), log_q[..., :-1])
            rest = torch.where(kept, log_q_rest, torch.logaddexp(log_q_rest, at_hard))
            ce = torch.where(known, -at_hard, 0)
            return self.soft_weight * soft(entries, rest) + self.hard_weight * ce

        ids = torch.cat([ids, label], -1)
        return loss_and_gradient(logits, ids, used, both, temperature=1.0, gradient=gradient)


def _classes_of(hard: Tensor) -> Tensor:
    """The hard labels, 0 where there is none; every other negative one stays, to be refused."""
    return hard.masked_fill(hard == NO_LABEL, 0)


def _scaled(pointwise: Pointwise, weight: float) -> Pointwise:
    return lambda log_q, log_q_rest: weight * pointwise(log_q, log_q_rest)


class _Linear(torch.autograd.Function):
    """Rows (n, d), a head (V, d) and a bias (V,) or None → loss (n,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work
    ) -> Tensor:
        needs = ctx.needs_input_grad[:3]
        ctx.work, ctx.needs = work, needs
        ctx.dtypes = [None if it is None else it.dtype for it in (hidden, weight, bias)]
        hidden, weight = hidden.to(work.dtype), weight.to(work.dtype)
        loss, slopes = _pass(hidden, weight, bias, work, needs=needs, upstream=None)
        ctx.save_for_backward(hidden, weight, bias, *slopes)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, by_hidden, *of_head = ctx.saved_tensors
        scale, keep = upstream[0] if len(upstream) else upstream.new_ones(()), graph_is_kept()
        if any(ctx.needs[1:]) and not bool((upstream == scale).all()):
            needs = (False, *ctx.needs[1:])
            _, (_, *of_head) = _pass(hidden, weight, bias, ctx.work, needs=needs, upstream=upstream)
            scale = torch.ones_like(scale)
        slopes, scales = (by_hidden, *of_head), (upstream.unsqueeze(-1), scale, scale)
        return *(
            None if slope is None else scaled(slope, by, dtype=dtype, keep=keep)
            for slope, by, dtype in zip(slopes, scales, ctx.dtypes, strict=True)
        ), None


def _pass(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    work: _Work,
    *,
    needs: tuple[bool, bool, bool],
    upstream: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Loss, and its gradients by hidden states, head and bias, where they are needed.

    Args:
        upstream: the gradient of what is made of the loss, (n,); None for 1 everywhere.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    # What is added to or multiplied is not rounded before.
    exact = bias is None and upstream is None and work.one_gradient
    narrow = exact and engine_for(hidden) is not None
    loss = hidden.new_zeros(len(hidden), dtype=wide)
    by_hidden = torch.zeros_like(hidden) if needs[0] else None
    by_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
    by_bias = None if bias is None or not needs[2] else torch.zeros_like(bias, dtype=wide)
    head = weight[: work.classes]
    # One for all chunks: a system clears memory, page by page, each time that it gives it out.
    room = hidden.new_empty(min(work.chunk, len(hidden)), len(head))
    for start in range(0, len(hidden), work.chunk):
        rows = slice(start, min(start + work.chunk, len(hidden)))
        logits = torch.mm(hidden[rows], head.T, out=room[: rows.stop - start])
        logits = logits if narrow else logits.to(wide)
        if bias is not None:
            logits += bias[: work.classes]
        for part in blocks(len(logits), logits.shape[1], logits.device):
            some = slice(start + part.start, start + part.stop)
            loss[some], slope = work.logits_gradient(logits[part], some, gradient=any(needs))
            if slope is not None and upstream is not None:
                slope *= upstream[some].unsqueeze(-1)
        if not any(needs):
            continue
        if by_bias is not None:
            by_bias[: work.classes] += logits.sum(0)
        slope = logits.to(hidden.dtype)
        if by_hidden is not None:
            torch.mm(slope, head, out=by_hidden[rows])
        if by_weight is not None:
            add_product(by_weight[: work.classes], slope.T, hidden[rows])
        # Where they are not in `room`, not beside the next chunk's.
        del logits, slope
    return loss, [by_hidden, by_weight, by_bias]
