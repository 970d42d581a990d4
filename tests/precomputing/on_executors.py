"""The job that every executor does, as a function and as a command.

python on_executors.py DATA OUT '{"workers": 2}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tables import CLASSES, TableTeacher

import softlabels as sl

ROWS, UNIT_ROWS, UNITS = 46, 4, 12
FATAL_ROW, FATAL_TOKEN = 22, CLASSES - 1


def write_rows(path: Path) -> Path:
    """Samples of one to three windows, of which one has a token that no other has."""
    rows = []
    for index in range(ROWS):
        ids = np.random.default_rng(index).integers(0, FATAL_TOKEN, 1 + 5 * index % 17).tolist()
        rows.append({"id": f"s{index}", "ids": [*ids, FATAL_TOKEN] if index == FATAL_ROW else ids})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(data: Any, out: Path, *, teacher: Any = None, **options: Any) -> sl.LabelSet:
    settings: dict[str, Any] = {"probes": 7, "codec": "plain", "progress": False}
    return sl.precompute(
        data, teacher or TableTeacher(), out, selection=sl.TopK(3), column="ids", key="id",
        max_length=6, unit_rows=UNIT_ROWS, batch_tokens=24, **(settings | options),
    )  # fmt: skip


def killing(marker: Path, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """End the process that labels the fatal token, as long as the marker is not there."""
    if (input_ids == FATAL_TOKEN).any():
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return logits
        os.kill(os.getpid(), signal.SIGKILL)
    return logits


def always_killing(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if (input_ids == FATAL_TOKEN).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return logits


def slow(seconds: float, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """A teacher's work takes a while, so that something can happen meanwhile."""
    time.sleep(seconds)
    return logits


def raising(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if (input_ids == FATAL_TOKEN).any():
        raise RuntimeError("no such token")
    return logits


def of_ray() -> list[psutil.Process]:
    """Processes below this one that are Ray's."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "ray" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses where they wait for connections."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


if __name__ == "__main__":
    data, out, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    seconds, marker = options.pop("slow", 0), options.pop("marker", None)
    wrong = None if marker is None else partial(killing, Path(marker))
    if seconds:
        wrong = partial(slow, seconds)
    job(data, out, teacher=TableTeacher(wrong=wrong), **options)
