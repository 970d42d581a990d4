"""verify --against: the teacher that made a set is known again, and another one is not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.cli.app import run
from softlabels.errors import InputError
from softlabels.teachers import TeacherIdentity
from softlabels.verifying.against import against

Precompute = Callable[..., sl.LabelSet]
V = 64
# What log-probs and tails rounded to float32 add to a KL.
FLOAT32 = 1e-7


def table_of(noise: float = 0.0, classes: int = V) -> torch.Tensor:
    made = torch.randn(V, classes, generator=torch.Generator().manual_seed(5)) * 2
    return made + noise * torch.randn(V, classes, generator=torch.Generator().manual_seed(6))


def teacher_of(table: torch.Tensor) -> Any:
    return sl.teachers.from_callable(
        lambda ids: table[ids], name="t", version="1", classes=table.shape[1]
    )


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(7)
    lengths = [3, 14, 6, 1, 9, 20]
    ids = [torch.randint(V, (n,), generator=generator).tolist() for n in lengths]
    return [{"id": f"s{i}", "ids": each} for i, each in enumerate(ids)]


@pytest.fixture
def label(precompute: Precompute) -> Precompute:
    def made(out: Path, **options: Any) -> sl.LabelSet:
        settings = {"selection": sl.TopK(8), "teacher": teacher_of(table_of()), "overlap": 2}
        return precompute(out, rows(), **(settings | options))

    return made


@pytest.mark.parametrize(
    "options",
    [
        *({"codec": codec} for codec in ("plain", "compact", "lossless")),
        {"codec": "compact", "selection": sl.TopP(0.7, 12)},
        {"codec": "compact", "selection": sl.Dense()},
        {"codec": "plain", "selection": sl.Dense(), "temperatures": (1.0,)},
    ],
    ids=str,
)
def test_the_same_teacher_is_known_again_whatever_is_kept(
    label: Precompute, tmp_path: Path, options: dict[str, Any]
) -> None:
    labels = label(tmp_path / "set", **options)
    verdict = against(labels, teacher_of(table_of()))
    assert verdict.same
    assert (verdict.records, verdict.positions) == (len(labels), labels.totals.positions)
    assert verdict.agreement == 1.0
    assert verdict.kl_mean == pytest.approx(verdict.own_mean, abs=FLOAT32)
    assert verdict.kl_max == pytest.approx(verdict.own_max, abs=FLOAT32)
    # What storing costs; float32 alone costs nothing.
    assert (verdict.own_mean > 1e-6) == (options["codec"] == "compact")
    assert verdict.weights_equal is None


@pytest.mark.parametrize("codec", ["plain", "compact"])
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_another_teacher_is_told_apart_by_the_kl_that_the_book_gives(
    label: Precompute, tmp_path: Path, codec: str, noise: float
) -> None:
    labels = label(tmp_path / "set", codec=codec)
    other = table_of(noise)
    verdict = against(labels, teacher_of(other))
    assert not verdict.same
    found = []
    for number in range(len(labels)):
        record, y = labels.take([number]), labels[number]
        for t in y.mask.nonzero().flatten().tolist():
            q = torch.log_softmax(other[record.token_ids[t]].double(), -1).exp()
            p = y.log_probs_at(1.0)[t].double().exp()
            rests = 1 - float(p.sum()), 1 - float(q[y.ids[t]].sum())
            kept = float((p * (p / q[y.ids[t]]).log()).sum())
            found.append(kept + rests[0] * math.log(rests[0] / rests[1]))
    assert verdict.kl_mean == pytest.approx(sum(found) / len(found), rel=1e-4)
    assert verdict.kl_max == pytest.approx(max(found), rel=1e-4)
    assert verdict.agreement is not None
    assert verdict.agreement < 1


def test_one_wrong_token_among_many_is_found_by_the_worst_position(
    precompute: Precompute, tmp_path: Path
) -> None:
    table, other = table_of(), table_of()
    other[3, 0] += 3
    data = [{"id": "long", "ids": [*([1, 2] * 400), 3]}]
    labels = precompute(
        tmp_path / "set", data, teacher=teacher_of(table), selection=sl.TopK(8), max_length=900
    )
    verdict = against(labels, teacher_of(other))
    assert verdict.kl_mean is not None
    assert verdict.kl_mean < verdict.tolerance_mean
    assert not verdict.same


class Told:
    """A teacher that tells its ten likeliest classes and no logits."""

    temperatures = (1.0,)
    classes, max_length, tokenizer = V, None, None

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table

    @property
    def identity(self) -> TeacherIdentity:
        return TeacherIdentity(
            name="t", revision="1", weights=None, dtype=None, engine="openai-server",
            engine_version="1", classes=V, logits_known=False,
        )  # fmt: skip

    def labels(
        self, input_ids: torch.Tensor, wanted: torch.Tensor, *, hard_labels: Any, k: int, **_: Any
    ) -> Iterator[sl.SoftLabels]:
        log_probs, ids = torch.log_softmax(self._table[input_ids[wanted]], -1).topk(k)
        tails = torch.log1p(-log_probs.double().exp().sum(-1, keepdim=True)).float()
        yield sl.SoftLabels(
            ids=ids, log_probs=log_probs, log_tails=tails, temperatures=(1.0,), classes=V,
            hard_log_probs=torch.full(ids.shape[:1], torch.nan),
        )  # fmt: skip


@pytest.mark.parametrize("codec", ["plain", "compact"])
def test_a_teacher_that_tells_no_logits_is_judged_by_what_it_tells(
    label: Precompute, tmp_path: Path, codec: str
) -> None:
    labels = label(tmp_path / "set", teacher=Told(table_of()), codec=codec, temperatures=(1.0,))
    assert labels.totals.positions > 0
    same, other = against(labels, Told(table_of())), against(labels, Told(table_of(1.0)))
    assert (same.same, same.agreement, other.same) == (True, 1.0, False)
    assert same.tolerance_mean > 1e-3


def test_the_sample_is_a_function_of_its_seed(label: Precompute, tmp_path: Path) -> None:
    labels, other = label(tmp_path / "set"), teacher_of(table_of(0.1))
    few = [against(labels, other, sample=3, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert [verdict.records for verdict in few] == [3, 3, 3]


def test_without_stored_inputs_the_data_is_needed_and_checked(
    label: Precompute, tmp_path: Path
) -> None:
    bare, full = label(tmp_path / "bare", store_inputs=False), label(tmp_path / "full")
    teacher = teacher_of(table_of(0.1))
    assert against(bare, teacher, data=rows(), sample=5) == against(full, teacher, sample=5)
    with pytest.raises(InputError, match="does not carry its inputs"):
        against(bare, teacher)
    changed = rows()
    changed[1]["ids"][7] += 1
    with pytest.raises(InputError, match=r'key "s1".*has other tokens in the data'):
        against(bare, teacher, data=changed)
    with pytest.raises(InputError, match=r'key "s0".*is not in the data'):
        against(bare, teacher, data=rows()[1:])


def test_what_cannot_be_compared_is_said(label: Precompute, tmp_path: Path) -> None:
    labels, teacher = label(tmp_path / "set"), teacher_of(table_of())
    wide = against(labels, teacher_of(table_of(classes=V + 1)))
    assert (wide.same, wide.reason) == (False, "it has 65 classes, the set's has 64")
    with pytest.raises(InputError, match="sample is 0"):
        against(labels, teacher, sample=0)
    drawn = label(tmp_path / "drawn", selection=sl.Sampled(4), codec=None, temperatures=None)
    with pytest.raises(InputError, match="no distribution"):
        against(drawn, teacher)


def test_on_the_command_line_another_teacher_exits_1(
    teacher_dir: Path,
    model: Any,
    tokenizer: Any,
    finished_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["verify", str(finished_set), "--sample", "4", "--against"]
    assert run([*command, str(teacher_dir)]) == 0
    assert "the same teacher: " in capsys.readouterr().out
    other = type(model)(model.config)
    other.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.2)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert run([*command, str(tmp_path / "other"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["findings"], found["against"]["same"]) == ([], False)
    assert found["against"]["weights_equal"] is False
    assert found["against"]["kl_mean"] > 2 * found["against"]["tolerance_mean"]
