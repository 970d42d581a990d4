"""The rooms of softlabels/ stand in docs/CONTRIBUTING.md, in an order, and imports go one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "softlabels"
PAGE = (ROOT / "docs" / "CONTRIBUTING.md").read_text()


def rooms() -> list[str]:
    """In the order of the page's table."""
    table = PAGE[PAGE.index("| `softlabels/` |") :].split("\n\n")[0]
    return re.findall(r"`(\w+)/`", "\n".join(line.split("|")[1] for line in table.split("\n")[2:]))


def imported(file: Path) -> Iterator[str]:
    """Rooms and files of softlabels/ that a module imports when it is imported itself."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "softlabels":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("softlabels."):
            yield str(node.module).split(".")[1]


def test_every_room_stands_on_the_page() -> None:
    assert sorted(rooms()) == sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))


def test_imports_go_up_the_page_alone() -> None:
    order = rooms()
    common = {file.stem for file in PACKAGE.glob("*.py")}
    for place, room in enumerate(order):
        allowed = {*order[: place + 1], *common}
        for file in (PACKAGE / room).rglob("*.py"):
            assert set(imported(file)) <= allowed, f"{file.relative_to(ROOT)}: {room}"


def test_what_all_may_use_uses_no_room() -> None:
    for file in PACKAGE.glob("*.py"):
        if file.name != "__init__.py":
            assert not set(imported(file)) & set(rooms()), file.name
            assert f"`{file.name}`" in PAGE
