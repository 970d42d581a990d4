"""The forger is good: what it reseals without a change is accepted, so refusals are earned."""

from __future__ import annotations

from pathlib import Path

from forge import FIRST, refusals, replant, reseal, rewrite


def test_a_set_that_is_resealed_unchanged_is_accepted(tiny: Path, packed: Path) -> None:
    for root in (tiny, packed):
        rewrite(root / FIRST, lambda table: table)
        reseal(root)
        assert refusals(root) == []
        replant(root)
        reseal(root)
        assert refusals(root) == []
