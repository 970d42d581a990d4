"""What does it cost to see an image as the teacher saw it, beside augmenting it anew?

    python benchmarks/bench_views.py [--images 256] [--rounds 7] [--quick]

scikit-learn's digits, drawn large in colour with noise, 320 × 320, encoded as JPEG, as images
mostly are. Views are crops of any size and place brought to 128 × 128, flips, brightness and
contrast. A teacher of a million parameters labels four views of each. In turn, batches of 64 are
made: by augmenting with fresh parameters and stacking, as a training loop would; and by the loader,
which reads labels, joins rows by key, holds them to their digests, and makes the stored views
again. Then a student of 60,000 parameters trains on stored views, and beside the teacher. Every
view is first found to be the one that was labelled, and every label that of the teacher.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timing import interleaved, machine, markdown
from torch import Tensor, nn

import softlabels as sl

SIZE, VIEW, VIEWS, BATCH = 320, 128, 4, 64
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="64 images, 2 rounds")
    args = parser.parse_args()
    images, rounds = (BATCH, 2) if args.quick else (args.images, args.rounds)
    rows, views = drawn(images), sl.Views(augmented, parameters, count=VIEWS)
    torch.manual_seed(0)
    teacher = network(64).eval()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        labels = sl.precompute(
            rows, sl.teachers.from_callable(teacher, classes=10, takes="arrays"),
            Path(folder) / "labels", column="image", key="id", label="label", views=views,
            codec="plain", progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        size = labels.totals.bytes / labels.totals.records
        print(
            f"{machine()}\n{len(labels):,} views labelled in {seconds:.1f} s, {size:.0f} B each\n"
        )
        check(labels, rows, views, teacher)

        stored, ahead = (
            sl.loader(labels, rows, batch_size=BATCH, seed=0, views=views, threads=threads)
            for threads in (0, 1)
        )
        contestants = {
            "augmented anew": lambda: exhausted(fresh(rows)),
            "stored views": lambda: exhausted(iter(stored)),
        }
        report("the same batches", contestants, rounds)
        contestants = {
            "augmented anew, gold labels": lambda: trained(fresh(rows), None),
            "stored views, made ahead by a thread": lambda: trained(iter(ahead), None),
            "online teacher": lambda: trained(fresh(rows), teacher),
        }
        report("a student's epoch", contestants, rounds)


def report(title: str, contestants: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Wall and CPU seconds, and beside the first's of the same turn."""
    taken = interleaved(contestants, runs=rounds)
    first = next(iter(taken.values()))
    lines = [
        [name, f"{it.wall:.2f}", f"{it.over(first):.3f}", f"{it.cpu:.2f}",
         f"{it.cpu_over(first):.3f}"]
        for name, it in taken.items()
    ]  # fmt: skip
    head = [title, "wall s", "ratio", "CPU s", "ratio"]
    print(markdown(head, lines) + "\n", flush=True)


def drawn(count: int) -> list[Row]:
    """Digits, large and in colour."""
    rng = np.random.default_rng(0)
    found = load_digits()
    rows = []
    for i in range(count):
        image = Image.fromarray((found.images[i] * 15).astype(np.uint8)).resize((SIZE, SIZE))
        colour = np.asarray(image, float)[..., None] * rng.uniform(0.3, 1, 3)
        noisy = (colour + rng.normal(0, 12, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, format="JPEG", quality=90)
        encoded = {"bytes": out.getvalue(), "path": None}
        rows.append({"id": f"image-{i}", "image": encoded, "label": int(found.target[i])})
    return rows


def parameters(rng: np.random.Generator, image: np.ndarray) -> Row:
    """A crop's corner and side, whether to flip, and how bright."""
    side = int(rng.integers(SIZE // 2, SIZE + 1))
    top, left = (int(rng.integers(0, SIZE - side + 1)) for _ in range(2))
    return {
        "box": [left, top, left + side, top + side],
        "flip": bool(rng.integers(2)),
        "bright": float(rng.uniform(0.7, 1.3)),
        "contrast": float(rng.uniform(0.7, 1.3)),
    }


def augmented(image: np.ndarray, params: Row) -> np.ndarray:
    """The view, uint8 (128, 128, 3)."""
    crop = Image.fromarray(image).resize(
        (VIEW, VIEW), Image.Resampling.BICUBIC, box=tuple(params["box"])
    )
    found = np.asarray(crop, np.float32)
    found = found[:, ::-1] if params["flip"] else found
    mean = found.mean()
    found = ((found - mean) * params["contrast"] + mean) * params["bright"]
    return found.clip(0, 255).astype(np.uint8)


def network(width: int) -> nn.Module:
    """Strided convolutions of images (B, 128, 128, 3) uint8."""
    return nn.Sequential(
        Scaled(),
        nn.Conv2d(3, width // 2, 5, stride=4, padding=2), nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.ReLU(),
        *[layer for _ in range(width // 8) for layer in
          (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())],
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 10),
    )  # fmt: skip


class Scaled(nn.Module):
    """From bytes to −1 … 1, channels first."""

    def forward(self, images: Tensor) -> Tensor:
        return images.movedim(-1, 1).float() / 127.5 - 1


def fresh(rows: list[Row]) -> Iterator[Row]:
    """As many views as are stored, each drawn anew."""
    rng = np.random.default_rng(0)
    order = np.tile(rng.permutation(len(rows)), VIEWS)
    for start in range(0, len(order), BATCH):
        some = [rows[i] for i in order[start : start + BATCH]]
        images = [decoded(row) for row in some]
        made = [augmented(image, parameters(rng, image)) for image in images]
        labels = torch.tensor([row["label"] for row in some])
        yield {"inputs": torch.from_numpy(np.stack(made)), "label": labels}


def decoded(row: Row) -> np.ndarray:
    """The pixels of a row."""
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


def exhausted(batches: Iterator[Row]) -> int:
    return sum(len(batch["label"]) for batch in batches)


def trained(batches: Iterator[Row], teacher: nn.Module | None) -> None:
    """A student, on what the batch says or the teacher says now."""
    torch.manual_seed(0)
    student = network(16)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    for batch in batches:
        logits = student(batch["inputs"])
        if "soft_labels" in batch:
            loss = sl.losses.kl_divergence(logits, batch["soft_labels"])
        elif teacher is not None:
            with torch.no_grad():
                told = sl.TopK(10)(teacher(batch["inputs"]), batch["label"], temperatures=(1.0,))
            loss = sl.losses.kl_divergence(logits, told)
        else:
            loss = nn.functional.cross_entropy(logits, batch["label"])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()


@torch.no_grad()
def check(labels: sl.LabelSet, rows: list[Row], views: sl.Views, teacher: nn.Module) -> None:
    """Every view is the one that its parameters make, and has the teacher's labels."""
    told = {
        (record["key"], record["view"]): record["view_params"]
        for record in labels.columns(["key", "view", "view_params"]).to_pylist()
    }
    images, seen = {row["id"]: decoded(row) for row in rows}, 0
    for batch in sl.loader(labels, rows, batch_size=BATCH, views=views):
        logits = torch.log_softmax(teacher(batch["inputs"]), -1)
        y = batch["soft_labels"]
        torch.testing.assert_close(logits.gather(-1, y.ids), y.log_probs, atol=1e-4, rtol=1e-4)
        for key, view, found in zip(
            batch["key"], batch["view"].tolist(), batch["inputs"], strict=True
        ):
            expected = views.realise(images[key], told[key, view], None)
            if not np.array_equal(found.numpy(), expected):
                raise SystemExit(f"view {view} of {key} is not the one that was labelled")
            seen += 1
    if seen != len(rows) * VIEWS:
        raise SystemExit(f"{seen} views were seen of {len(rows) * VIEWS}")


if __name__ == "__main__":
    main()
