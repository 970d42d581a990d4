"""Every block of docs/TRAINING.md runs, in one process; test_ranks has the loops on two."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from students import flat, make_student
from torch import distributed

PAGE = (Path(__file__).parents[2] / "docs" / "TRAINING.md").read_text()
PREAMBLE, *SECTIONS = PAGE.split("\n## ")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
TITLES = [section.partition("\n")[0] for section in SECTIONS]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What torchrun sets for one process; Accelerate forgets what it was told afterwards."""
    from accelerate.state import AcceleratorState, GradientState

    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name, value in (where | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


# Warnings of others, not of what the page shows: forks (Python 3.12) and pinned memory without a
# GPU, torchdata 0.11 and lightning 2.6 under torch 2.13.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning")
@pytest.mark.parametrize("title", TITLES)
def test_a_sections_blocks_run_and_train(
    title: str,
    labels_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: None,
) -> None:
    section = SECTIONS[TITLES.index(title)]
    shutil.copytree(labels_dir, tmp_path / "labels")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"student": make_student()}
    before = flat(names["student"])
    blocks = BLOCK.findall(PREAMBLE) + BLOCK.findall(section)
    assert len(blocks) > 1
    for block in blocks:
        for package in ("torchdata", "lightning"):
            if f"\nimport {package}" in f"\n{block}" or f"\nfrom {package}" in f"\n{block}":
                pytest.importorskip(package)
        exec(block, names)
    trained = flat(names["student"]) != before
    assert trained == (title != "Any other loop")
