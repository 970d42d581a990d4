"""The recipe for Lightning in docs/TRAINING.md trains, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from on_ranks import OPTIONS, keys_of
from students import close, flat, oracle

import softlabels as sl

pytest.importorskip("lightning")
# lightning 2.6 under torch 2.13, and where it finds no other checkpoint to go on from.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*dirpath.*:UserWarning"),
]


def test_every_checkpoint_goes_on_to_the_same_student(labels: sl.LabelSet, tmp_path: Path) -> None:
    from lightning_students import fit

    straight = fit(labels, tmp_path / "straight", options=OPTIONS)
    _, weights, _ = oracle(labels, epochs=2, together=1, **OPTIONS)
    assert close(flat(straight), weights)
    keys = [keys_of(batch) for batch in straight.batches]
    per_epoch = len(keys) // 2
    for step in (1, per_epoch - 1, per_epoch, per_epoch + 1):
        resumed = fit(
            labels,
            tmp_path / str(step),
            options=OPTIONS,
            checkpoint=tmp_path / "straight" / f"step={step}.ckpt",
        )
        assert [keys_of(batch) for batch in resumed.batches] == keys[step:]
        assert flat(resumed) == flat(straight)
