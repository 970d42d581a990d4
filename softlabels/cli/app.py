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
from softlabels.cli.sharing_arguments import ImportArguments, LayoutName
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
    help_format="markdown",
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
    """Write a label set again: other codec, fewer entries, some records, sets merged; no teacher.

    The mass of the entries left out joins the tails. A killed run goes on with the same command.

    --where compares what a record's labels show, as in "entropy < 2 and mass > .9": positions,
    length, and at T = 1 the mean entropy (nats), mass and tail (of the classes kept, and not kept),
    hard_log_prob and perplexity.

    New data later: label it alone, with the same settings, then append it. So only new records are
    labelled: softlabels precompute --data new.jsonl … --out labels/new; softlabels derive
    labels/docs labels/all --merge labels/new

    Example: softlabels derive labels/docs labels/small --codec compact --k 16 --fraction .1
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
        int | None,
        Parameter(help="How many are shown: 24; all in a pager, as JSON and as HTML."),
    ] = None,
    position: Annotated[
        int | None, Parameter(help="Show one position alone, its classes with bars.")
    ] = None,
    top: Annotated[
        int | None,
        Parameter(help="How many classes are shown at each: 5, 20 of one position, all as JSON."),
    ] = None,
    html: Annotated[Path | None, Parameter(help="Write the record as one HTML file.")] = None,
    json: AsJson = False,
) -> int:
    """Look at a record: its tokens and what the teacher believed would follow each.

    Tokens are coloured by the teacher's surprise; a guess is green where it is the next token.
    Longer than the terminal, it goes through $PAGER, or less.
    """
    from softlabels.cli.show import show_record
    from softlabels.looking.record import Window

    window = Window(start, positions, top)
    return show_record(
        directory, key, part, view, window=window, position=position, html=html, as_json=json
    )


@app.command
def audit(
    directory: Place,
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help="Write the report as one HTML file that needs no network.")
    ] = None,
    figures: Annotated[
        Path | None, Parameter(help="Write the charts into a folder, as PNG and SVG.")
    ] = None,
    sample: Annotated[
        int,
        Parameter(help="Positions read at most; of a larger set, of a seeded sample of records."),
    ] = 1_000_000,
    seed: Annotated[int, Parameter(help="Of the sample.")] = 0,
    json: AsJson = False,
) -> int:
    """What a label set holds, and whether it can be trusted: exits 1 if labels are misplaced.

    Distributions, calibration, alignment with the tokens, fidelity to dense logits, bytes, the
    records that surprise the teacher most, likely wrong hard labels, and what was rejected.

    Example: softlabels audit labels/docs --out report.html
    """
    from softlabels.cli.audit import show_audit

    return show_audit(
        directory, out=out, figures=figures, positions=sample, seed=seed, as_json=json
    )


@app.command
def diff(a: Place, b: Place, /, *, json: AsJson = False) -> int:
    """What two label sets differ in: recipe, records, values; exits 1 if they do.

    Records are joined by key, part and view. The KL is taken over the classes that both keep and
    one rest, where tokens and labelled positions are the same.

    Example: softlabels diff labels/docs labels/small
    """
    from softlabels.cli.diff import show_difference

    return show_difference(a, b, as_json=json)


@app.command
def verify(
    directory: Directory,
    /,
    *,
    repair: Annotated[
        bool,
        Parameter(negative="", help="Drop bad files, and say the command that makes them again."),
    ] = False,
    against: Annotated[
        str | None, Parameter(help="Run this teacher on a sample: is it the one that labelled?")
    ] = None,
    data: Annotated[
        str | None, Parameter(help="What was labelled, where the set does not carry its inputs.")
    ] = None,
    sample: Annotated[int, Parameter(help="Records that are run again.")] = 64,
    seed: Annotated[int, Parameter(help="Which records.")] = 0,
    workers: Annotated[int | None, Parameter(help="Threads; one for each core, at most 8.")] = None,
    quiet: Annotated[bool, Parameter(negative="", help="No progress.")] = False,
    json: AsJson = False,
) -> int:
    """Check every checksum, count and invariant of a label set; exits 1 if something is wrong.

    --against judges by the KL between what is stored and what the teacher gives now, less what
    selection and codec cost by themselves: exits 1 if it is another teacher.

    Example: softlabels verify labels/docs --against HuggingFaceTB/SmolLM2-135M --sample 32
    """
    from softlabels.cli.check import Suspect, show_verification

    suspect = None if against is None else Suspect(against, data, sample, seed)
    progress = False if quiet else None
    return show_verification(
        directory, drop=repair, suspect=suspect, workers=workers, progress=progress, as_json=json
    )


@app.command
def push(
    directory: Directory,
    repository: Annotated[str, Parameter(help="USER/NAME on the Hugging Face Hub.")],
    /,
    *,
    private: Annotated[
        bool, Parameter(negative="", help="Make the repository private; it must be new or so.")
    ] = False,
    revision: Annotated[str, Parameter(help="The branch, made if there is none.")] = "main",
    license: Annotated[
        str | None, Parameter(help="Of the labels, as the Hub writes it: cc-by-4.0, say.")
    ] = None,
    teacher_license: Annotated[str | None, Parameter(help="Of the teacher.")] = None,
    data_license: Annotated[str | None, Parameter(help="Of the data.")] = None,
    json: AsJson = False,
) -> int:
    """Publish a finished set on the Hub, in one commit; HF_TOKEN comes from the environment.

    A reader never sees half a set. What is there already is not sent again, also after a crash.

    Example: softlabels push labels/docs me/docs-labels --license cc-by-4.0
    """
    from softlabels.cli.sharing import push_set
    from softlabels.sharing.licences import Licences

    licences = Licences(labels=license, teacher=teacher_license, data=data_license)
    return push_set(
        directory,
        repository,
        private=private,
        revision=revision,
        licences=licences,
        as_json=json,
    )


@app.command
def pull(
    source: Annotated[
        str, Parameter(help="USER/NAME[@REVISION] on the Hub, or a set's URL (https://, s3://).")
    ],
    directory: Annotated[Path, Parameter(help="A folder: new, empty, or from an earlier pull.")],
    /,
    *,
    json: AsJson = False,
) -> int:
    """Copy a published set to a folder, every digest checked; run it again to go on.

    Example: softlabels pull me/docs-labels labels/docs
    """
    from softlabels.cli.sharing import pull_set

    return pull_set(source, directory, as_json=json)


@app.command(name="import")
def import_(arguments: Annotated[ImportArguments, Parameter(name="*")]) -> int:
    """Make a label set of what another tool wrote; run it again to go on.

    Labels that fit a neighbour's token better than their own are refused, with the --shift that
    mends it. Such sets have no logits, and tails at T = 1 alone.

    Example: softlabels import distillkit captured labels/old --teacher meta-llama/Llama-3.1-8B
    """
    from softlabels.cli.sharing import import_labels

    return import_labels(arguments)


@app.command
def export(
    layout: LayoutName,
    source: Place,
    out: Annotated[Path, Parameter(help="A folder, new or empty.")],
    /,
    *,
    settings: Annotated[
        Path | None,
        Parameter(help="Of distillkit: its config; by default all k log-probs in float32."),
    ] = None,
) -> int:
    """Write a label set in the layout of another tool.

    Example: softlabels export axolotl labels/docs exported
    """
    from softlabels.cli.sharing import export_labels

    return export_labels(layout, source, out, settings)


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
