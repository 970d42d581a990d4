"""`softlabels audit`: a report, figures, numbers, and an exit status that can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl

ROWS = [{"id": f"s{n}", "ids": [(n + t) % 16 for t in range(12)]} for n in range(6)]


def by_counting(ahead: int) -> Any:
    table = torch.eye(16).roll(ahead, 1) * 9
    return sl.teachers.from_callable(
        lambda ids: table[ids], name="counts", version=str(ahead), classes=16
    )


@pytest.fixture
def off_by_one(precompute: Any, tmp_path: Path) -> Path:
    precompute(tmp_path / "off", ROWS, teacher=by_counting(0), max_length=12)
    return tmp_path / "off"


def test_a_report_is_one_file_and_the_numbers_are_on_the_screen(
    softlabels: Any, finished_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    done = softlabels("audit", finished_set, "--out", out)
    assert (done.code, done.err) == (0, "")
    totals = sl.LabelSet.open(finished_set).totals
    assert f"all {totals.positions:,} positions of {totals.records:,} records" in done.out
    for words in ("entropy", "kept mass", "calibration error", "perplexity", "alignment"):
        assert words in done.out.lower()
    page = out.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "tiny-llama" in page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_json_is_strict_and_complete(softlabels: Any, finished_set: Path) -> None:
    found = softlabels("audit", finished_set, "--json").json
    assert found["whole"] is True
    assert found["positions"] == found["totals"]["positions"]
    assert found["distributions"]["calibration"]["bins"]
    assert found["alignment"]["verdict"] in ("aligned", "cannot tell")
    assert len(found["suspects"]) == 16
    few = softlabels("audit", finished_set, "--json", "--sample", 200, "--seed", 3).json
    assert few["whole"] is False
    assert 0 < few["positions"] < found["positions"]


def test_labels_beside_their_tokens_are_a_finding(softlabels: Any, off_by_one: Path) -> None:
    done = softlabels("audit", off_by_one)
    assert done.code == 1
    assert "token before." in done.out
    done = softlabels("audit", off_by_one, "--json")
    assert (done.code, done.json["alignment"]["verdict"]) == (1, "token before")


def test_figures_are_png_and_svg_of_the_same_bytes_each_time(
    softlabels: Any, finished_set: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        assert softlabels("audit", finished_set, "--figures", tmp_path / name).code == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 16
    assert {"calibration.png", "calibration.svg", "ranks.svg"} <= set(names)
    for name in names:
        data = (tmp_path / "a" / name).read_bytes()
        assert data[:4] == b"\x89PNG" or b"<svg" in data[:1000]
        if name.endswith("png"):
            assert data == (tmp_path / "b" / name).read_bytes()


def test_rejects_are_counted_with_their_reason(
    softlabels: Any, precompute: Any, tmp_path: Path
) -> None:
    rows = [*ROWS, {"id": "bad", "ids": [99]}, {"id": "worse", "ids": [98]}]
    precompute(tmp_path / "set", rows, teacher=by_counting(1), on_error="skip", max_length=12)
    found = softlabels("audit", tmp_path / "set", "--json").json["rejected"]
    assert sum(one["count"] for one in found) == 2
    assert [key for one in found for key in one["keys"]] == ["bad", "worse"]


def test_a_report_that_cannot_be_written_is_refused_before_the_set_is_read(
    softlabels: Any, tiny: Path, tmp_path: Path
) -> None:
    for shard in (tiny / "data").iterdir():
        shard.unlink()
    for out in (tmp_path, tmp_path / "nowhere" / "report.html"):
        done = softlabels("audit", tiny, "--out", out)
        assert done.code == 2
        assert f'--out "{str(out)[:40]}' in done.err
    (tmp_path / "file").write_text("")
    done = softlabels("audit", tiny, "--figures", tmp_path / "file")
    assert done.code == 2
    assert "--figures" in done.err


def test_a_sample_of_nothing_is_refused(softlabels: Any, tiny: Path) -> None:
    done = softlabels("audit", tiny, "--sample", 0)
    assert (done.code, done.out) == (2, "")
    assert "sample is 0" in done.err


def test_a_damaged_set_is_named_and_leaves_no_report(
    softlabels: Any, tiny: Path, tmp_path: Path
) -> None:
    shard = tiny / "data" / "train-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    out = tmp_path / "report.html"
    done = softlabels("audit", tiny, "--out", out)
    assert (done.code, out.exists()) == (1, False)
    assert "data/train-00001.parquet" in done.err
