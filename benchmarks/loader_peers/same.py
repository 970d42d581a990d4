"""Whether a system delivers what it was given, each record once an epoch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from loader_peers.contents import Batch, Given, Way

# A probability's code is round(scale · p^⅓), and the kept ones are then rescaled to 1 − tail: the
# first moves scale · p^⅓ by a half at most, the other by at most as much again.
CODES_OFF = 1.0
# The codec's own bound of a tail mass sin²θ.
THETA_OFF = 0.0047


class Check:
    """Ends the run at the first difference.

    Args:
        scale: of the codec that rounded the labels; None where they must be equal to the bit.

    Attributes:
        code_error: the largest found, in units of the codec's steps.
    """

    def __init__(self, given: Given, scale: int | None) -> None:
        self._given, self._scale, self.code_error = given, scale, 0.0

    def epoch(self, batches: Iterable[Batch], way: Way, *, every: int) -> None:
        """Every record once, in order if that was asked for; the contents of every so many batches.

        Raises:
            SystemExit: not so.
        """
        numbers = []
        for place, batch in enumerate(batches):
            numbers.append(batch.numbers.numpy())
            if place % every == 0:
                self._contents(batch, np.asarray(batch.numbers))
        found = np.concatenate(numbers)
        wanted = np.arange(self._given.records)
        if not np.array_equal(np.sort(found), wanted):
            missing = np.setdiff1d(wanted, found)
            raise SystemExit(
                f"{way}: {len(found)} records of {len(wanted)}, {len(missing)} of them missing"
            )
        in_order = np.array_equal(found, wanted)
        # Workers may take turns; a shuffle that is none is not to be measured as one.
        if in_order == way.shuffled and not (way.workers and not way.shuffled):
            raise SystemExit(f"{way}: the records came {'' if in_order else 'not '}in order")

    def record(self, batch: Batch, number: int) -> None:
        """One record, looked up; token ids may be left out.

        Raises:
            SystemExit: it is another one.
        """
        wanted = np.asarray([number])
        if batch.numbers.tolist() != [number]:
            raise SystemExit(f"record {batch.numbers.tolist()} instead of {number}")
        if not batch.input_ids.numel():
            batch = batch._replace(input_ids=self._given.batch(wanted).input_ids)
        self._contents(batch, wanted)

    def _contents(self, batch: Batch, numbers: np.ndarray) -> None:
        wanted = self._given.batch(numbers)
        for field, found, given in zip(Batch._fields, batch, wanted, strict=True):
            if found.dtype != given.dtype or found.shape != given.shape:
                raise SystemExit(
                    f"{field} is {found.dtype} {tuple(found.shape)}, given were {given.dtype} "
                    f"{tuple(given.shape)}"
                )
        if self._scale is not None:
            self._rounded(batch, wanted, numbers)
            return
        for field, found, given in zip(Batch._fields, batch, wanted, strict=True):
            if not torch.equal(found, given):
                raise SystemExit(
                    f"{field} of records {numbers.tolist()} differ from what was given"
                )

    def _rounded(self, batch: Batch, wanted: Batch, numbers: np.ndarray) -> None:
        """Within the codec's bounds; entries in any order."""
        assert self._scale is not None
        found_ids, found_order = batch.ids.sort(-1)
        ids, order = wanted.ids.sort(-1)
        if not torch.equal(found_ids, ids) or not torch.equal(batch.input_ids, wanted.input_ids):
            raise SystemExit(f"ids of records {numbers.tolist()} differ from what was given")
        exact = self._given.exact(numbers).gather(-1, order).double()
        found = batch.log_probs.gather(-1, found_order).double()
        off = float((torch.exp(found / 3) - torch.exp(exact / 3)).abs().max()) * self._scale
        self.code_error = max(self.code_error, off)
        thetas = [t.double().exp().sqrt().asin() for t in (batch.log_tails, wanted.log_tails)]
        theta_off = float((thetas[0] - thetas[1]).abs().max())
        if off > CODES_OFF or theta_off > THETA_OFF:
            raise SystemExit(
                f"records {numbers.tolist()} are off by {off:.2f} steps, their tails by "
                f"{theta_off:.4f}"
            )
