"""What does softlabels cost a program that has torch and pyarrow anyway, before it does anything?

    python benchmarks/bench_import.py            # seven interleaved rounds, a fresh process each
    python benchmarks/bench_import.py --quick    # three

Names are loaded when they are first asked for. Ratios are to `import torch, pyarrow.parquet` in the
same round. What a student needs should take at most a third of that on a warm machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from timing import machine, markdown

LIMIT = 1 / 3
HEAVY = ("transformers", "datasets", "ray", "numba")
STUDENT = "a student's: LabelSet, loader, losses"
# What is run after torch and pyarrow are there.
PROGRAMS = {
    "import softlabels": "import softlabels",
    "losses": "import softlabels as sl; sl.losses",
    STUDENT: "import softlabels as sl; sl.LabelSet, sl.loader, sl.losses",
    "a labelling job's: precompute": "import softlabels as sl; sl.precompute",
    "every name": "from softlabels import *",
}
# Timed inside the process, so that starting the interpreter is in no number.
TIMED = """
import time
began = time.perf_counter()
import torch, pyarrow.parquet
base = time.perf_counter()
{program}
print(base - began, time.perf_counter() - base)
import sys
print(*(name for name in {heavy} if name in sys.modules))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    args = parser.parse_args()
    for program in PROGRAMS.values():
        timed(program)  # fills the disk cache and the bytecode
    rounds = 3 if args.quick else 7
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            taken[name].append(timed(program))
    bases = [base for pairs in taken.values() for base, _ in pairs]
    print(f"{machine()}\n\nimport torch, pyarrow.parquet: {statistics.median(bases):.2f} s\n")
    ratios = {
        name: statistics.median(more / base for base, more in pairs)
        for name, pairs in taken.items()
    }
    rows = [
        [name, f"{statistics.median(more for _, more in pairs):.3f}", f"{ratios[name]:.2f}"]
        for name, pairs in taken.items()
    ]
    print(markdown(["beyond that", "s", "ratio"], rows))
    if ratios[STUDENT] > LIMIT:
        sys.exit(f"what a student needs takes {ratios[STUDENT]:.2f} of that, at most {LIMIT:.2f}")


def timed(program: str) -> tuple[float, float]:
    """Seconds of torch and pyarrow, and of what follows, in a new process without heavy ones."""
    code = TIMED.format(program=program, heavy=HEAVY)
    # Bytecode is kept, as it is wherever a package is installed.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    seconds, heavy = done.stdout.splitlines()
    if heavy:
        sys.exit(f"error: {program} loads {heavy}")
    base, more = map(float, seconds.split())
    return base, more


if __name__ == "__main__":
    main()
