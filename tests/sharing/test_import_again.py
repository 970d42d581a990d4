"""Imports that are run again, keys and names that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlabels as sl
from softlabels.errors import InputError, PlanMismatchError
from softlabels.sharing.formats import Arrays
from softlabels.sharing.imports import Origin, import_set


def arrays(folder: Path, seed: int = 0, **more: Any) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    np.save(folder / "input_ids.npy", rng.integers(0, 16, (4, 6)))
    np.save(folder / "ids.npy", np.tile(np.arange(2), (4, 6, 1)))
    np.save(folder / "log_probs.npy", np.log(rng.uniform(0.1, 0.4, (4, 6, 2))).astype(np.float32))
    for name, array in more.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.mark.parametrize("change", ["shift", "tokens", "labels"])
def test_an_import_goes_on_with_the_same_files_and_settings_alone(
    tmp_path: Path, change: str
) -> None:
    origin = Origin(classes=16)
    first = Arrays(arrays(tmp_path / "first"))
    import_set(first, tmp_path / "set", origin=origin, shift=0)
    import_set(first, tmp_path / "set", origin=origin, shift=0)
    source, shift = first, 0
    if change == "shift":
        shift = -1
    else:
        source = Arrays(arrays(tmp_path / "second", seed=1))
        if change == "labels":
            np.save(tmp_path / "second/input_ids.npy", np.load(tmp_path / "first/input_ids.npy"))
    with pytest.raises(PlanMismatchError, match="row 0"):
        import_set(source, tmp_path / "set", origin=origin, shift=shift)


def test_keys_that_are_no_whole_numbers_are_not_cut(tmp_path: Path) -> None:
    source = arrays(tmp_path / "a", key=np.arange(4) + 0.5)
    with pytest.raises(InputError, match="int64"):
        import_set(Arrays(source, key="key"), tmp_path / "set", origin=Origin(classes=16), shift=0)


@pytest.mark.parametrize("k", [0, -1, 17])
def test_a_k_that_cannot_be_is_refused(tmp_path: Path, k: int) -> None:
    with pytest.raises(InputError, match="k is"):
        import_set(
            Arrays(arrays(tmp_path / "a")), tmp_path / "s", origin=Origin(classes=16), k=k, shift=0
        )


@pytest.mark.parametrize("name", ["me/a--b", "me/-x", "me/x.git"])
def test_a_name_that_the_hub_does_not_take(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no repository"):
        sl.LabelSet.open(f"hf://datasets/{name}")
