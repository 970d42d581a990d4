"""Help, versions, errors and exit statuses that all commands share."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from softlabels.cli import look
from softlabels.cli.arguments import PrecomputeArguments

SOFTLABELS = Path(sys.executable).with_name("softlabels")
COMMANDS = ["precompute", "info", "show", "verify"]


def test_help_names_every_command_and_says_what_exit_codes_mean(softlabels: Any) -> None:
    for arguments in ((), ("--help",)):
        done = softlabels(*arguments)
        assert done.code == 0
        for words in (*COMMANDS, "--version", "--debug", "Exit status: 0"):
            assert words in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_explains_every_flag(softlabels: Any, command: str) -> None:
    done = softlabels(command, "--help")
    assert done.code == 0
    if command == "precompute":
        flags = [f"--{field.name.replace('_', '-')}" for field in fields(PrecomputeArguments)]
        flags += ["--config", "--debug", "--no-store-inputs"]
    else:
        flags = ["--json", "--debug", *{"show": ["--part", "--view", "--start", "--positions",
                 "--top"], "verify": ["--repair"], "info": []}[command]]  # fmt: skip
    for flag in flags:
        assert flag in done.out
    for line in done.out.splitlines():
        if found := re.match(r"│ [* ] +(--\S+)( [A-Z.]+)? {2,}(.*)│", line):
            assert found[3].strip(), f"{found[1]} is not explained"


def test_version_is_the_packages(softlabels: Any) -> None:
    done = softlabels("--version")
    assert (done.code, done.out.strip()) == (0, metadata.version("softlabels"))


@pytest.mark.parametrize(
    "arguments", [("frob",), ("info",), ("info", "a", "b"), ("verify", "a", "--jso")]
)
def test_a_call_that_cannot_be_parsed_exits_2(softlabels: Any, arguments: tuple[str, ...]) -> None:
    done = softlabels(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "--help" in done.err


@pytest.mark.parametrize("command", ["info", "show", "verify"])
def test_what_is_no_label_set_is_one_paragraph(
    softlabels: Any, tmp_path: Path, command: str
) -> None:
    for path in (tmp_path, tmp_path / "none"):
        done = softlabels(command, path)
        assert (done.code, done.out) == (2, "")
        assert "is not a label set" in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["info", "show", "verify"])
def test_an_error_of_the_file_system_is_no_traceback(softlabels: Any, command: str) -> None:
    # The system refuses such a name to anyone, root included.
    done = softlabels(command, "n" * 300)
    assert (done.code, done.out) == (2, "")
    assert os.strerror(errno.ENAMETOOLONG) in done.err
    assert done.err.count("\n") == 1


def test_data_that_may_not_be_read_is_no_traceback(
    softlabels: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    done = softlabels("info", tiny)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {tiny / 'plan.json'}: Permission denied\n"


@pytest.mark.parametrize("error", [MemoryError(), OSError("odd"), MemoryError("of 3 GB")])
def test_errors_without_a_file_still_have_words(
    softlabels: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(look, "show_info", fail)
    done = softlabels("info", tiny)
    assert done.code == 2
    assert done.err.strip() in (
        "error: memory ran out",
        "error: odd",
        "error: memory ran out: of 3 GB",
    )


@pytest.mark.parametrize("arguments", [("info", "none"), ("frob",), ("info", "n" * 300)])
def test_debug_shows_the_traceback(arguments: tuple[str, ...]) -> None:
    from softlabels.cli.app import run

    assert run(arguments) == 2
    with pytest.raises(Exception, match=r"none|frob|nnn"):
        run([*arguments, "--debug"])


def test_an_interrupt_exits_130_and_says_what_is_left(
    softlabels: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "show_info", interrupt)
    done = softlabels("info", tiny)
    assert done.code == 130
    assert done.err == (
        "error: interrupted; what is finished stays: run the same command again to go on\n"
    )


@pytest.mark.slow
def test_ctrl_c_in_the_real_executable_leaves_a_set_that_goes_on(
    tmp_path: Path, teacher_dir: Path, data_file: Path
) -> None:
    out = tmp_path / "set"
    command = [
        SOFTLABELS, "precompute", "--teacher", teacher_dir, "--data", data_file, "--out", out,
        "--k", "4", "--max-length", "64", "--unit-rows", "1", "--batch-tokens", "1", "--quiet",
    ]  # fmt: skip
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        while not (out / "receipts").exists() and running.poll() is None:
            time.sleep(0.001)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate()
    assert running.returncode == 130, err
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert not (out / ".tmp").exists()
    assert not (out / "manifest.json").exists()
    from softlabels.cli.app import run

    assert run(list(map(str, command[1:]))) == 0


@pytest.mark.parametrize(
    "arguments",
    [("show", "--positions", "5000"), ("show", "--json", "--top", "1", "--positions", "1")],
)
def test_a_reader_that_has_seen_enough_is_no_error(
    finished_set: Path, arguments: tuple[str, ...]
) -> None:
    command, *flags = arguments
    # Buffered, as by default: few lines meet the closed pipe only when they are flushed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ours, theirs = os.pipe()
    os.close(ours)  # nobody reads
    done = subprocess.run(
        [SOFTLABELS, command, finished_set, *flags],
        stdout=theirs, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
