"""Train a small student from a label set alone; the teacher is not needed, and not opened.

    python pipelines/train_student.py runs/quickstart/labels --out runs/quickstart/student

Every fifth sample is held out. Before and after training the student is compared with the teacher
on them: KL in nats a position, how often both think the same token likeliest, and more. Run it
again after a crash and it goes on. `softlabels train` does the same with a flag for each field.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from softlabels.cli.student import show_result
from softlabels.training import DataRecipe, OptimizerRecipe, StudentRecipe, TrainRecipe, train
from softlabels.training.plot import plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, help="a label set that carries its inputs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the run")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--keep-closed", type=Path, help="fail if a file below it is opened")
    args = parser.parse_args()
    if args.keep_closed is not None:
        keep_closed(args.keep_closed.resolve())
    recipe = TrainRecipe(
        student=StudentRecipe(config=llama(args.hidden_size)),
        optimizer=OptimizerRecipe(lr=1e-2, warmup=0.15),
        # A few thousand tokens: many small steps learn more from them than few large ones.
        data=DataRecipe(batch_size=1, held_out_every=5),
        epochs=args.epochs,
        log_every=1,
        evaluate_every=30,
    )
    result = train(args.labels, recipe=recipe, out=args.out)
    plot(args.out)
    show_result(result)


def llama(hidden_size: int) -> dict[str, Any]:
    """Two layers; nearly all of its parameters are the embedding of the teacher's tokens."""
    return {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }


def keep_closed(folder: Path) -> None:
    """Make every `open` of a file below `folder` an error, for the rest of this process."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return  # a descriptor of a file that is open already
        # Resolved: the folder may be reached by a relative path or through a link.
        path = Path(os.fsdecode(arguments[0])).resolve()
        if path.is_relative_to(folder):
            raise PermissionError(f"{path} belongs to the teacher, which must stay closed")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    main()
