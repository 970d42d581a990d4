"""scikit-learn's handwritten digits: rows, a teacher, students, and how a digit may be moved."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import softlabels as sl

# Of 1,797 digits: what teachers and students may learn from; the others test them.
LEARNT = 1200
BATCH = 32
Batch = dict[str, Any]


def rows() -> tuple[list[Batch], list[Batch]]:
    """Digits to learn from and to test with: `id`, `image` float32 (8, 8) from 0 to 1, `label`."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    made = [
        {
            "id": f"digit-{i:04d}",
            "image": (found.images[i] / 16).astype(np.float32),
            "label": int(found.target[i]),
        }
        for i in order.tolist()
    ]
    return made[:LEARNT], made[LEARNT:]


def few(learnt: Sequence[Batch], count: int) -> list[Batch]:
    """The first so many, of every digit as many."""
    each = count // 10
    seen = [0] * 10
    chosen = []
    for row in learnt:
        seen[row["label"]] += 1
        if seen[row["label"]] <= each or count >= len(learnt):
            chosen.append(row)
    return chosen


def draw(rng: np.random.Generator, image: np.ndarray) -> Batch:
    """How far a digit is turned, in degrees, and moved, in pixels."""
    angle, down, right = rng.uniform(-1, 1, 3)
    return {"angle": 10 * angle, "down": down / 2, "right": right / 2}


def moved(image: np.ndarray, params: Batch) -> np.ndarray:
    """The digit, turned about its middle and moved, in between its pixels linearly."""
    turn = np.deg2rad(params["angle"])
    matrix = np.asarray([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = (np.asarray(image.shape) - 1) / 2
    offset = middle - matrix @ (middle + np.asarray([params["down"], params["right"]]))
    return affine_transform(image, matrix, offset, order=1)


def views(count: int) -> sl.Views:
    """So many views of a digit, the first one as it is."""
    return sl.Views(moved, draw, count=count, clean=True, libraries=("scipy",))


class Convolutions(nn.Module):
    """A teacher: two convolutions, 20,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        # One by one: a digit's logits are the same to the bit whatever is in its batch.
        return torch.cat([self.layers(image[None, None]) for image in images])


def student() -> nn.Module:
    """A student: one hidden layer of 128."""
    return nn.Sequential(nn.Flatten(1), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def fit(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[Tensor, Batch], Tensor]
) -> nn.Module:
    """Train on every batch once, by Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for batch in batches:
        optimizer.zero_grad()
        loss(model(batch["inputs"]), batch).mean().backward()
        optimizer.step()
    return model


def hard(logits: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy with the gold labels."""
    return cross_entropy(logits, batch["label"], reduction="none")


def soft(logits: Tensor, batch: Batch) -> Tensor:
    """The KL from a teacher."""
    return sl.losses.kl_divergence(logits, batch["soft_labels"], temperature=4.0)


def steps(loader: sl.Loader, count: int) -> Iterator[Batch]:
    """So many batches, epoch after epoch."""
    epoch = 0
    while count > 0:
        loader.set_epoch(epoch)
        for batch in loader:
            if count > 0:
                yield batch
            count -= 1
        epoch += 1


def drawn(learnt: Sequence[Batch], count: int, seed: int) -> Iterator[Batch]:
    """So many batches of fresh views with gold labels, for a teacher."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        some = [learnt[i] for i in rng.integers(len(learnt), size=BATCH)]
        images = np.stack([moved(row["image"], draw(rng, row["image"])) for row in some])
        labels = torch.tensor([row["label"] for row in some])
        yield {"inputs": torch.from_numpy(images), "label": labels}


@torch.no_grad()
def accuracy(model: nn.Module, test: Sequence[Batch]) -> float:
    """The share of digits that it tells."""
    images = torch.from_numpy(np.stack([row["image"] for row in test]))
    labels = torch.tensor([row["label"] for row in test])
    return float((model(images).argmax(-1) == labels).float().mean())


def spread(values: Sequence[float]) -> str:
    """Their mean, and how far they are spread."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
