"""The stories of images, sound, sentences and answers, each told in small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[1] / "pipelines"


def run(name: str, *arguments: Any) -> str:
    command = [sys.executable, PIPELINES / name, *arguments]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_stored_views_make_the_very_student_that_the_online_teacher_makes(tmp_path: Path) -> None:
    found = run(
        "digits_views.py", "--out", tmp_path / "a", "--limit", 60, "--seeds", 1, "--views", 3,
        "--steps", 40, "--teacher-steps", 60, "--digits", 40,
    )  # fmt: skip
    (row,) = [line for line in found.splitlines() if line.startswith("| 40")]
    *_, stored, online = cells(row)
    assert stored == online
    # The pipeline itself compares every weight, and stops where one bit differs.
    assert "made the same students, weight by weight" in found


def test_generations_and_a_committee(tmp_path: Path) -> None:
    found = run(
        "born_again_digits.py", "--out", tmp_path / "a", "--generations", 2, "--seeds", 2,
        "--steps", 60, "--digits", 60,
    )  # fmt: skip
    shares = {
        cells(line)[0]: float(cells(line)[1].split()[0])
        for line in found.splitlines()
        if line.startswith(("| generation", "| taught", "| the committee"))
    }
    assert list(shares) == [
        "generation 0", "generation 1", "generation 2", "taught by the committee",
        "the committee itself",
    ]  # fmt: skip
    assert min(shares.values()) > 0.4  # a tenth is chance
    assert (tmp_path / "a" / "born_again.png").read_bytes().startswith(b"\x89PNG")


def test_pitches_of_frames(tmp_path: Path) -> None:
    found = run(
        "pitch_frames.py", "--out", tmp_path / "a", "--model", "tiny", "--tones", 12, "--limit",
        12, "--seeds", 1, "--steps", 4, "--only-tones", "--every", 1,
    )  # fmt: skip
    # Of a tone of half a second one row has 50 frames and the next one the last of them.
    assert "306 frames labelled" in found
    shares = [cells(line)[1:3] for line in found.splitlines() if "labels |" in line]
    assert all(0 <= float(share) <= 1 for share in shares[0])


def test_sentences_as_vectors(tmp_path: Path) -> None:
    found = run(
        "sentence_embeddings.py", "--out", tmp_path / "a", "--limit", 330, "--seeds", 1,
        "--steps", 30,
    )  # fmt: skip
    kept, learnt = found.split("\nStudents, on ")
    stored = {cells(line)[0]: cells(line)[1:] for line in kept.splitlines() if "| " in line}
    assert float(stored["int8"][1]) > 0.99
    assert int(stored["product"][0]) < int(stored["int8"][0]) < int(stored["float32"][0])
    taught = {cells(line)[0]: cells(line)[1:] for line in learnt.splitlines() if "| " in line}
    assert abs(float(taught["nothing"][0])) < 0.1 < float(taught["float16"][0])


def test_answers_and_what_was_believed_of_them(tmp_path: Path, teacher_dir: Path) -> None:
    found = run(
        "sequence_level.py", "--out", tmp_path / "a", "--teacher", teacher_dir, "--prompts",
        16, "--tokens", 6, "--layers", 1, "--epochs", 1, "--seeds", 1,
    )  # fmt: skip
    rows = [line for line in found.splitlines() if line.startswith("| ")]
    assert [cells(row)[0] for row in rows] == [
        "learns from", "nothing", "the answers as text", "the teacher's probabilities",
        "both, half and half",
    ]  # fmt: skip
