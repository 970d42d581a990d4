"""The command line, `softlabels`: `precompute`, `train`, `show` and the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from softlabels.cli.app import run


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0 when all is well, 1 for a finding, 2 for a wrong call."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
