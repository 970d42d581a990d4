"""What is public, what it loads, and what the package says of itself."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import softlabels as sl
from softlabels import errors

ROOT = Path(sl.__file__).parent


def modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages([str(ROOT)], "softlabels.")]
    # Triton comes with torch where there may be an accelerator; timm needs torchvision's own build.
    engines = {"_triton": "triton", ".timm_models": "timm"}
    missing = tuple(end for end, engine in engines.items() if not importlib.util.find_spec(engine))
    return [name for name in found if not name.endswith(missing)]


def test_all_is_in_order_and_a_name_that_is_not_there_is_refused() -> None:
    assert list(sl.__all__) == sorted(sl.__all__) == dir(sl)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(sl, "no_such_name")  # noqa: B009


# In processes that have loaded nothing of softlabels, but torch and Arrow.
ALONE = """
import os, sys
import pyarrow.parquet, torch
import softlabels
assert not [name for name in sys.modules if name.startswith("softlabels.")]
for name in softlabels.__all__:
    child = os.fork()
    if not child:
        getattr(softlabels, name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


def test_every_public_name_loads_first() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("room", [sl.losses, sl.teachers])
def test_a_public_rooms_all_is_what_it_holds(room: ModuleType) -> None:
    for name in room.__all__:
        assert hasattr(room, name)


def test_the_names_that_the_design_fixes_are_there() -> None:
    for name in ("precompute", "loader"):
        assert inspect.isfunction(getattr(sl, name))
    for name in ("LabelSet", "SoftLabels", "TopK", "Loader"):
        assert inspect.isclass(getattr(sl, name))
    for name in ("reduce", "kl_divergence", "cross_entropy"):
        assert callable(getattr(sl.losses, name))


IMPORT = """
import sys
from softlabels import *
heavy = {"transformers", "datasets", "ray", "numba", "vllm", "sklearn", "pandas", "matplotlib",
         "rich", "cyclopts", "huggingface_hub"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_all_of_softlabels_loads_nothing_heavy_and_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_version_is_the_distributions() -> None:
    assert sl.__version__ == metadata.version("softlabels")


def test_the_package_is_typed_and_the_marker_is_shipped() -> None:
    assert (ROOT / "py.typed").read_bytes() == b""


def test_the_executable_is_the_command_line() -> None:
    [script] = metadata.entry_points(group="console_scripts", name="softlabels")
    from softlabels.cli import main

    assert script.load() is main


def drawn_tree() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name → parent and built-in bases, from the drawing in the docstring of errors.py."""
    assert errors.__doc__ is not None
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        words = line.lstrip(" │├└─").split()
        if not words or not words[0].split("(")[0].endswith("Error"):
            continue
        depth = (len(line) - len(line.lstrip(" │├└─"))) // 4 - 1
        name, _, bases = words[0].rstrip(")").partition("(")
        path[depth:] = [name]
        found[name] = (path[depth - 1] if depth else "Exception", tuple(filter(None, [bases])))
    return found


def test_the_tree_of_errors_in_the_docstring_is_the_tree_of_classes() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    real = {
        name: (kind.__bases__[0].__name__, tuple(base.__name__ for base in kind.__bases__[1:]))
        for name, kind in classes.items()
    }
    assert drawn_tree() == real
    assert all(issubclass(kind, errors.SoftLabelsError) for kind in classes.values())


def test_errors_print_their_message_and_pickle() -> None:
    import pickle

    for name in drawn_tree():
        error = getattr(errors, name)("what happened")
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == "what happened"
        assert str(getattr(errors, name)()) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 日本", '"plain ünïcode 日本"'),
        ('"\\', '"\\"\\\\"'),
        ("\x1b[31m\x00\x7f\x9b", '"\\u001b[31m\\u0000\\u007f\\u009b"'),
        ("\u202e\u2028\ud800\U000e0001", '"\\u202e\\u2028\\ud800\\U000e0001"'),
        (7, '"7"'),
        ("x" * 200, '"' + "x" * 78 + "…"),
    ],
)
def test_quoted_text_cannot_move_a_cursor_or_hide_a_line(text: Any, shown: str) -> None:
    assert errors.quoted(text) == shown
    assert len(shown) <= 80
    assert shown.isprintable()


def test_every_module_and_every_public_function_and_class_has_a_docstring() -> None:
    missing = []
    for name in ["softlabels", *modules()]:
        module = importlib.import_module(name)
        things: dict[str, Any] = {name: module}
        for label, value in vars(module).items():
            own = getattr(value, "__module__", None) == name and not label.startswith("_")
            if own and (inspect.isclass(value) or inspect.isfunction(value)):
                things[f"{name}.{label}"] = value
        missing += [where for where, thing in things.items() if not (thing.__doc__ or "").strip()]
    assert missing == []
