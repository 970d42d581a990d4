"""What is longer than the terminal goes through a pager, as git does it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress

from rich.console import RenderableType

from softlabels.cli.screen import Screen

# `less`: colours as they are, nothing paged that fits, the text stays when it ends.
_LESS = "FRX"


def can_page() -> bool:
    """Whether there is a terminal, and a pager for it."""
    return _pager() is not None


def _pager() -> list[str] | None:
    command = shlex.split(os.environ.get("PAGER", "less"))
    if not on_terminal() or not command or shutil.which(command[0]) is None:
        return None
    return command


def on_terminal() -> bool:
    """Whether standard output is one; colours alone may be asked for elsewhere too."""
    return sys.stdout.isatty()


def print_paged(*parts: RenderableType) -> None:
    """Print; on a terminal with fewer lines through $PAGER, or less. An empty one pages nothing."""
    screen = Screen(soft_wrap=False)
    command = _pager()
    if command is None:
        screen.print(*parts, sep="\n")
        return
    with screen.capture() as captured:
        screen.print(*parts, sep="\n")
    text = captured.get()
    if text.count("\n") < screen.height:
        screen.file.write(text)
        return
    environment = {"LESS": _LESS, **os.environ}
    with suppress(BrokenPipeError):  # who pages has seen enough
        subprocess.run(command, input=text.encode(), env=environment, check=False)
