"""What does `import softlabels` cost a program that has torch and pyarrow anyway?

    python benchmarks/bench_import.py            # seven interleaved pairs, a fresh process each
    python benchmarks/bench_import.py --quick    # three

The time over `import torch, pyarrow.parquet` should be at most 0.3 s on a warm machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys

LIMIT_S = 0.3
HEAVY = ("transformers", "datasets", "ray", "numba")
# Timed inside the process, so that starting the interpreter is in neither number.
TIMED = """
import time
began = time.perf_counter()
import torch, pyarrow.parquet
{more}
print(time.perf_counter() - began)
import sys
print(*(name for name in {heavy} if name in sys.modules))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three pairs instead of seven")
    args = parser.parse_args()
    imports = {"torch, pyarrow.parquet": "", "and softlabels": "import softlabels"}
    seconds: dict[str, list[float]] = {name: [] for name in imports}
    for more in imports.values():
        timed(more)  # fills the disk cache and the bytecode
    for _ in range(3 if args.quick else 7):
        for name, more in imports.items():
            seconds[name].append(timed(more))
    base, whole = seconds.values()
    over = statistics.median(b - a for a, b in zip(base, whole, strict=True))
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}")
    for name, values in seconds.items():
        print(f"import {name:24} {statistics.median(values):.3f} s")
    print(f"softlabels alone: {over:.3f} s, the limit is {LIMIT_S} s")
    sys.exit(over > LIMIT_S)


def timed(more: str) -> float:
    """Seconds that the imports take in a new process, which must not load anything heavy."""
    code = TIMED.format(more=more, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()
    if heavy:
        sys.exit(f"error: importing softlabels loads {heavy}")
    return float(seconds)


if __name__ == "__main__":
    main()
