"""Commands, how their errors are shown, and what they exit with."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Json, Toml, Yaml
from rich.console import Console
from rich.text import Text

from softlabels.cli.arguments import (
    DeriveArguments,
    PlanArguments,
    PrecomputeArguments,
    TrainArguments,
)
from softlabels.errors import CorruptShardError, InputError, SoftLabelsError

OK, FINDING, USAGE = 0, 1, 2

Directory = Annotated[Path, Parameter(help="The label set's folder.")]
Place = Annotated[
    str, Parameter(help="The label set's folder, or its URL (hf://, https://, s3://).")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")]

app = App(
    name="softlabels",
    help=(
        "Label once, distil forever: run a teacher over a dataset, store its top-k logits in "
        "Parquet that describes itself, and train any number of students without the teacher."
    ),
    help_epilogue=(
        "Every command: --debug shows the traceback of an error. "
        "Exit status: 0 all is well, 1 something was found, 2 the call was wrong."
    ),
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `run` says what an interrupted job leaves
)


@app.command
def precompute(arguments: Annotated[PrecomputeArguments, Parameter(name="*")]) -> int:
    """Run a teacher over data and write its soft labels; run it again to resume.

    A killed run loses the work unit at hand. The same command goes on where it stopped, and
    refuses, naming what differs, if the teacher, the data or a setting changed.

    --config run.yaml (or .toml, .json) reads any of these fields from a file; flags win over it.

    Example: softlabels precompute --teacher HuggingFaceTB/SmolLM2-135M --data docs.jsonl --key id
    --k 64 --out labels/docs
    """
    from softlabels.cli.label import label

    return label(arguments)


@app.command
def plan(arguments: Annotated[PlanArguments, Parameter(name="*")]) -> int:
    """Label a sample and say what all of it would take: hours, bytes, and what to choose.

    Takes the arguments of precompute, writes no label set, and prints for every codec and k the
    mass kept, the bytes and the error.

    Example: softlabels plan --teacher HuggingFaceTB/SmolLM2-135M --data docs.jsonl --k 64
    """
    from softlabels.cli.label import show_plan

    return show_plan(arguments)


@app.command
def derive(arguments: Annotated[DeriveArguments, Parameter(name="*")]) -> int:
    """Write a label set again, in another codec or with fewer entries; no teacher is needed.

    The mass of the entries left out joins the tails. A killed run goes on with the same command.

    Example: softlabels derive labels/docs labels/small --codec compact --k 16
    """
    from softlabels.cli.label import derive_set

    return derive_set(arguments)


@app.command
def train(arguments: Annotated[TrainArguments, Parameter(name="*")]) -> int:
    """Train a small student on a label set, without the teacher; run it again to resume.

    Ends with the student on held-out samples: KL to the teacher, agreement, perplexity and
    calibration error. A killed run loses the steps since its last checkpoint; the same command
    goes on there, to the bit on a CPU, and refuses, naming what differs, if something changed.

    --config run.yaml (or .toml, .json) reads any of these fields from a file; flags win over it.

    Example: softlabels train labels/docs --out runs/kl --loss kl --temperature 2 --epochs 3
    """
    from softlabels.cli.student import train_student

    return train_student(arguments)


@app.command
def info(directory: Place, /, *, json: AsJson = False) -> int:
    """What a label set is: teacher, data, selection, codec, totals, bytes per position."""
    from softlabels.cli.look import show_info

    return show_info(directory, as_json=json)


@app.command
def show(
    directory: Place,
    key: Annotated[
        str | None, Parameter(help="A sample's key; the first one's by default.")
    ] = None,
    /,
    *,
    part: Annotated[
        int | None, Parameter(help="Which window of the sample; the first labelled one by default.")
    ] = None,
    view: Annotated[int, Parameter(help="Which view of the sample.")] = 0,
    start: Annotated[int, Parameter(help="First position shown.")] = 0,
    positions: Annotated[
        int | None, Parameter(help="How many positions are shown: 24, or all as JSON.")
    ] = None,
    top: Annotated[
        int | None, Parameter(help="How many classes are shown at each: 5, or all as JSON.")
    ] = None,
    json: AsJson = False,
) -> int:
    """Look at a record: its tokens and what the teacher believed would follow each.

    Green: the teacher's first guess was the next token. Yellow: it was among the kept classes.
    """
    from softlabels.cli.look import Window, show_record

    if not json:
        positions = 24 if positions is None else positions
        top = 5 if top is None else top
    window = Window(start, positions, top)
    return show_record(directory, key, part, view, window=window, as_json=json)


@app.command
def verify(
    directory: Directory,
    /,
    *,
    repair: Annotated[
        bool,
        Parameter(negative="", help="Drop bad files, so that precompute makes them again."),
    ] = False,
    json: AsJson = False,
) -> int:
    """Check every checksum, count and invariant of a label set; exits 1 if something is wrong."""
    from softlabels.cli.look import show_verification

    return show_verification(directory, repair=repair, as_json=json)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit status."""
    tokens = [token for token in arguments if token != "--debug"]
    debug = len(tokens) < len(arguments)
    errors = Console(stderr=True)
    try:
        tokens, config = _take_config(tokens)
        app.config = config
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # a closed pipe is noticed here, not when the interpreter ends
        return result if isinstance(result, int) else OK
    except BrokenPipeError:
        # `softlabels show … | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OK
    except CycloptsError as error:
        if debug:
            raise
        return _say(
            errors, _words(error), hint="`softlabels --help` shows the commands", code=USAGE
        )
    except (SoftLabelsError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if debug:
            raise
        code = FINDING if isinstance(error, CorruptShardError) else USAGE
        return _say(errors, _words(error), code=code)
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not change the exit status
        if debug:
            raise
        words = "interrupted; what is finished stays: run the same command again to go on"
        words = str(interrupt) or words
        _say(errors, words, code=USAGE)
        return 128 + signal.SIGINT


def _words(error: BaseException) -> str:
    """What an error says, in one paragraph."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    words = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"memory ran out: {words}" if words else "memory ran out"
    return words


def _take_config(tokens: Sequence[str]) -> tuple[list[str], tuple[Callable[..., Any], ...]]:
    """Split off `--config FILE`: the same fields as the flags, which win over it."""
    rest = list(tokens)
    for index, token in enumerate(rest):
        name, equals, value = token.partition("=")
        if name == "--config":
            if not equals and index + 1 == len(rest):
                raise InputError("--config needs a file: --config run.yaml")
            path = Path(value if equals else rest[index + 1])
            del rest[index : index + (1 if equals else 2)]
            return rest, (_config_reader(path),)
    return rest, ()


def _config_reader(path: Path) -> Callable[..., Any]:
    readers: dict[str, Callable[..., Any]] = {
        ".yaml": Yaml,
        ".yml": Yaml,
        ".toml": Toml,
        ".json": Json,
    }
    if path.suffix not in readers:
        raise InputError(f"--config {path}: expected a .yaml, .toml or .json file")
    if not path.is_file():
        raise InputError(f"--config {path}: there is no such file")
    reader = readers[path.suffix](path, use_commands_as_keys=False)
    try:
        _ = reader.config
    except (CycloptsError, UnicodeDecodeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"--config {path} cannot be read: {reason}") from error
    return cast("Callable[..., Any]", reader)


def _say(console: Console, message: str, *, code: int, hint: str | None = None) -> int:
    # A config's or a library's words may hold what a terminal would obey.
    message = "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in message)
    text = Text.assemble(("error: ", "bold red"), message)
    console.print(text if hint is None else text + Text(f"\n{hint}"), soft_wrap=True)
    return code
