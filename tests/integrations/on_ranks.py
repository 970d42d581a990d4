"""One rank of several, each in its own process, on gloo; `launch` starts them.

    RANK=0 WORLD_SIZE=2 … python on_ranks.py LABELS OUT STATE STORY …

Tells the stories one after another, because a process takes longer to start than a story to tell,
and writes what it saw to OUT/RANK.json.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import softlabels as sl

LIMIT_S = 300
OPTIONS: dict[str, Any] = {"batch_size": 2, "seed": 0}


def launch(
    stories: Sequence[str], labels: Path, out: Path, *, world_size: int, state: Any = None
) -> list[dict[str, Any]]:
    """What every rank saw in each story. AssertionError with their words if one fails."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, str(labels), str(out), json.dumps(state), *stories]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        words = [process.communicate(timeout=LIMIT_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, said in zip(started, words, strict=True):
        assert process.returncode == 0, said
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(world_size)]


def keys_of(batch: dict[str, Any]) -> list[Any]:
    """(key, part) of its records; nothing for a filler."""
    pairs = zip(batch["key"], batch["part"].tolist(), strict=True)
    return [list(pair) for pair in pairs if pair[0] is not None]


def reading(labels: sl.LabelSet, out: Path, state: Any) -> list[Any]:
    """An epoch from a state on."""
    loader = sl.loader(labels, **OPTIONS)
    loader.load_state_dict(state)
    return [keys_of(batch) for batch in loader]


def plain(labels: sl.LabelSet, out: Path, state: Any) -> dict[str, Any]:
    """Four steps of a loop of one's own under DDP."""
    from students import RATE, flat, make_student, sums

    model = DistributedDataParallel(make_student())
    loader = sl.loader(labels, **OPTIONS)
    keys, losses, gradients = [], [], []
    for batch in islice(loader, 4):
        keys.append(keys_of(batch))
        total, count = sums(model, batch)
        distributed.all_reduce(count)
        loss = total / count * distributed.get_world_size()
        model.zero_grad()
        loss.backward()
        gradients.append(flat(model, gradients=True))
        with torch.no_grad():
            for p in model.parameters():
                p -= RATE * p.grad
        total = total.detach()
        distributed.all_reduce(total)
        losses.append(float(total / count))
    state = loader.state_dict()
    return {"keys": keys, "losses": losses, "gradients": gradients, "state": state}


def trainer(labels: sl.LabelSet, out: Path, state: Any) -> dict[str, Any]:
    """A SoftLabelTrainer; saves every step."""
    from students import arguments, flat, make_student

    from softlabels.integrations.transformers import SoftLabelTrainer

    args = arguments(out, save_strategy="steps", save_steps=1)
    made = SoftLabelTrainer(make_student(), args, loader=sl.loader(labels, **OPTIONS))
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    evaluated = made.evaluate(sl.loader(labels, batch_size=3))["eval_loss"]
    return {"losses": losses, "weights": flat(made.model), "evaluated": evaluated}


def accelerated(labels: sl.LabelSet, out: Path, state: Any) -> dict[str, Any]:
    """An Accelerator with two micro-batches a step, saved and restored in the middle."""
    from accelerate import Accelerator
    from students import RATE, flat, make_student, sums

    from softlabels.integrations.accelerate import prepare

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_student()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = accelerator.prepare(prepare(accelerator, sl.loader(labels, **OPTIONS)))
    keys: list[Any] = []

    def train(steps: int | None) -> None:
        for batch in islice(loader, steps):
            keys.append(keys_of(batch))
            with accelerator.accumulate(model):
                total, count = sums(model, batch)
                count = accelerator.reduce(count, "sum")
                accelerator.backward(total / count * accelerator.num_processes)
                optimizer.step()
                optimizer.zero_grad()

    train(2)
    accelerator.save_state(str(out / "saved"))
    train(None)
    straight, went = flat(model), keys[2:]
    keys.clear()
    accelerator.load_state(str(out / "saved"))
    train(None)
    assert (flat(model), keys) == (straight, went)
    train(None)
    return {"first": went, "second": keys[len(went) :], "weights": flat(model)}


def lightning(labels: sl.LabelSet, out: Path, state: Any) -> dict[str, Any]:
    """Lightning's Trainer under its DDP strategy."""
    from lightning_students import fit
    from students import flat

    student = fit(labels, out / "lightning", options=OPTIONS, strategy="ddp", devices=2)
    return {"keys": [keys_of(b) for b in student.batches], "weights": flat(student)}


def dispatched(labels: sl.LabelSet, out: Path, state: Any) -> dict[str, Any]:
    """What Accelerate makes of a DataLoader over a loader: the error's class and words."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration
    from torch.utils.data import DataLoader

    found = {}
    for choice in (None, False):
        config = DataLoaderConfiguration(dispatch_batches=choice)
        accelerator = Accelerator(cpu=True, dataloader_config=config)
        wrong = DataLoader(sl.loader(labels, **OPTIONS), batch_size=None)
        try:
            for _ in accelerator.prepare(wrong):
                break
        except Exception as error:
            found[str(choice)] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    folder, out, state = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    distributed.init_process_group("gloo")
    labels = sl.LabelSet.open(folder)
    seen = {story: globals()[story](labels, out, state) for story in sys.argv[4:]}
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
    distributed.destroy_process_group()
