"""`softlabels train`: flags and a file reach the recipe, the result comes as a table or JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from softlabels.training import (
    DataRecipe,
    LossRecipe,
    OptimizerRecipe,
    StudentRecipe,
    Trained,
    TrainRecipe,
)

# A student of two layers, thirty-two wide.
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "student.json"
    path.write_text(json.dumps(CONFIG))
    return path


def test_every_flag_reaches_the_recipe(
    softlabels: Any, finished_set: Path, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = softlabels(
        "train", finished_set, "--out", out, "--student", config, "--loss", "js", "--beta", 0.3,
        "--temperature", 2, "--tail", "uniform", "--k", 8, "--hard-weight", 0.5,
        "--hard-weight-end", 0.1, "--hard-weight-schedule", "cosine", "--through", "logits",
        "--steps", 3, "--batch-size", 4, "--accumulate", 2, "--row-length", 64, "--max-length", 32,
        "--held-out-every", 7, "--lr", 0.01, "--schedule", "wsd", "--warmup", 0.1, "--decay", 0.3,
        "--final", 0.1, "--weight-decay", 0.02, "--clip", 0.5, "--seed", 5, "--device", "cpu",
        "--log-every", 2, "--evaluate-every", 2, "--checkpoint-every", 2, "--no-plot", "--quiet",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert Trained.read(out).recipe == TrainRecipe(
        student=StudentRecipe(config=CONFIG),
        loss=LossRecipe(name="js", beta=0.3, temperature=2.0, tail="uniform", k=8, hard_weight=0.5,
                        hard_weight_end=0.1, hard_weight_schedule="cosine", through="logits"),
        optimizer=OptimizerRecipe(lr=0.01, schedule="wsd", warmup=0.1, decay=0.3, final=0.1,
                                  weight_decay=0.02, clip=0.5),
        data=DataRecipe(batch_size=4, accumulate=2, row_length=64, max_length=32,
                        held_out_every=7),
        steps=3, seed=5, device="cpu", log_every=2, evaluate_every=2, checkpoint_every=2,
    )  # fmt: skip
    assert "held-out records" in done.out
    assert "agrees with the teacher" in done.out
    assert "the student is in model/" in done.out
    assert not (out / "metrics.png").exists()


def test_a_file_holds_the_same_fields_and_json_is_the_result(
    softlabels: Any, finished_set: Path, config: Path, tmp_path: Path
) -> None:
    out, path = tmp_path / "run", tmp_path / "run.yaml"
    path.write_text(f"labels: {finished_set}\nout: {out}\nstudent: {config}\nsteps: 2\nseed: 4\n")
    done = softlabels("train", "--config", path, "--steps", 1, "--json")
    assert done.code == 0
    result = Trained.read(out)
    assert done.json == json.loads(json.dumps(result.to_json()))
    assert (result.steps, result.recipe.seed) == (1, 4)
    assert (out / "metrics.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in done.err.splitlines()]
    assert (log[-1]["event"], log[-1]["doing"], log[-1]["step"]) == ("finished", "training", 1)
    # Another recipe in the same folder.
    done = softlabels("train", "--config", path, "--quiet")
    assert done.code == 2
    assert "recipe.steps was 1, is now 2" in done.err


def test_a_pruned_teacher_is_a_student(
    softlabels: Any, finished_set: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    done = softlabels(
        "train", finished_set, "--out", tmp_path / "run", "--prune", teacher_dir, "--layers", 1,
        "--steps", 1, "--quiet", "--json", "--no-plot",
    )  # fmt: skip
    assert done.code == 0
    assert done.json["recipe"]["student"]["layers"] == 1


WRONG = {
    "no loss": (("--loss", "klm"), "klm"),
    "no size": (("--student", "huge"), "sizes are nano, tiny"),
    "no config": (("--student", "nowhere.json"), "nowhere.json"),
    "prune without layers": (("--prune", "somewhere"), "needs both"),
    "both lengths": (("--epochs", 1), "one of them"),
    "data of nothing": (("--held-out-data", "d.jsonl"), "pass both"),
    "no number": (("--batch-size", "4.6"), '"4.6"'),
    "too many classes": (("--k", 17), "keeps 16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_paragraph_and_exits_2(
    softlabels: Any, finished_set: Path, tmp_path: Path, name: str
) -> None:
    flags, words = WRONG[name]
    done = softlabels("train", finished_set, "--out", tmp_path / "run", "--steps", 1, *flags)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_interrupted_run_says_which_step_is_saved(
    softlabels: Any, finished_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "interrupted after step 5 of 9, which is saved: run the same command again to go on"

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt(words)

    monkeypatch.setattr("softlabels.cli.student.train", interrupted)
    done = softlabels("train", finished_set, "--out", tmp_path / "run", "--no-plot")
    assert (done.code, done.err) == (130, f"error: {words}\n")


def test_without_matplotlib_it_stops_before_the_run_unless_no_figure_is_asked_for(
    softlabels: Any, finished_set: Path, config: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command = ("train", finished_set, "--out", tmp_path / "run", "--student", config, "--steps", 1,
               "--quiet")  # fmt: skip
    done = softlabels(*command)
    assert done.code == 2
    assert "pip install 'softlabels[plot]'" in done.err
    assert not (tmp_path / "run").exists()
    assert softlabels(*command, "--no-plot").code == 0


def test_what_a_terminal_would_obey_is_shown_and_not_sent(
    softlabels: Any, finished_set: Path, tmp_path: Path
) -> None:
    command = ("train", finished_set, "--out", tmp_path / "run", "--steps", 1, "--no-plot")
    path = tmp_path / "run.yaml"
    path.write_text(r'"ste\e[31mps": 1' + "\n")
    for flags in (("--device", "cu\x1b[31mda"), ("--config", path)):
        done = softlabels(*command, *flags)
        assert done.code == 2
        assert "\x1b" not in done.err
        assert r"\x1b[31m" in done.err


def test_a_set_without_t_1_is_shown_and_drawn_at_its_own_temperature(
    softlabels: Any, precompute: Any, config: Path, tmp_path: Path
) -> None:
    precompute(tmp_path / "labels", temperatures=(2.0,))
    done = softlabels(
        "train", tmp_path / "labels", "--out", tmp_path / "run", "--student", config, "--steps", 1,
        "--temperature", 2, "--held-out", 0.3, "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "at T = 2" in done.out
    assert "KL(teacher" not in done.out
    assert (tmp_path / "run" / "metrics.png").exists()
