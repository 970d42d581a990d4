"""Standard output for people."""

from __future__ import annotations

from rich.console import Console


class Screen(Console):
    """A console that prints text as it is: never markup, numbers in no colour of their own."""

    def __init__(self, *, soft_wrap: bool = True) -> None:
        super().__init__(soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Let `run` see that the reader has gone; rich would exit with 1, which is a finding."""
        raise BrokenPipeError
