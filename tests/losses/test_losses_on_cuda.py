"""Losses on a CUDA device against float64, and their kernels through triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import softlabels as sl
from softlabels.losses import buckets, linear

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)
# Read when triton is imported; it can do nothing else where there is no device.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

# The interpreter warns of the infinities that a device takes in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
ROWS, D, CLASSES = 9, 8, 5000


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("triton is not interpreted here")
        from softlabels.losses import buckets_triton

        def engine_for(logits: Tensor) -> Any:
            return None if logits.dtype == torch.float64 else buckets_triton

        monkeypatch.setattr(buckets, "engine_for", engine_for)
        monkeypatch.setattr(linear, "engine_for", engine_for)
    return str(request.param)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(device: str) -> sl.SoftLabels:
    teacher = normal(ROWS, CLASSES, seed=1) * 3
    teacher[5, 4200:4212] += 30
    hard = torch.zeros(ROWS, dtype=torch.int64)
    return sl.TopK(12)(teacher, hard, temperatures=(1.0, 2.0)).to(device)


@pytest.mark.parametrize("loss", ["kl_divergence", "reverse_kl_divergence", "js_divergence"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_losses_of_logits_and_their_gradients_are_those_of_float64(
    device: str, loss: str, temperature: float
) -> None:
    given = normal(ROWS, CLASSES, seed=2) * 4
    given[3, 5:] = -torch.inf
    given[4] += 200
    given[5, :4100] = -torch.inf  # all that is seen of the row at first
    results = []
    for dtype in (torch.float32, torch.float64):
        logits = given.to(device, dtype).requires_grad_()
        found = getattr(sl.losses, loss)(logits, labels(device), temperature=temperature)
        keep = found.isfinite()
        results.append((found.detach(), torch.autograd.grad(found[keep].sum(), logits)[0]))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("hard_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_loss_of_hidden_states_is_no_worse_than_their_dtype(
    device: str, dtype: torch.dtype, temperature: float, hard_weight: float
) -> None:
    hidden, weight = normal(ROWS, D, seed=3), normal(CLASSES, D, seed=4)
    hard = (torch.arange(ROWS) * 7 - 1).where(torch.arange(ROWS) > 0, -100).to(device)
    y = labels(device)
    options: dict[str, Any] = {"temperature": temperature, "hard_weight": hard_weight}
    options["hard_labels"] = hard if hard_weight else None
    results = []
    for kind in (dtype, torch.float64):
        parts = [part.to(device, dtype).to(kind).requires_grad_() for part in (hidden, weight)]
        loss = sl.losses.linear_kl_divergence(*parts, y, chunk_rows=4, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss.mean(), parts)))
    # bfloat16 has 8 bits, and logits, slopes and gradients are each rounded to it.
    least = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for ours, exact in zip(*results, strict=True):
        assert (ours.double() - exact).norm() <= least * exact.norm()


@pytest.mark.gpu
def test_labels_of_every_class_leave_no_rest() -> None:
    teacher, logits = normal(ROWS, CLASSES, seed=1) * 3, normal(ROWS, CLASSES, seed=2).cuda()
    y = sl.TopK(CLASSES)(teacher, torch.zeros(ROWS).long(), temperatures=(1.0,)).to("cuda")
    exact = torch.nn.functional.kl_div(
        logits.double().log_softmax(-1),
        teacher.cuda().double().log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    found = sl.losses.kl_divergence(logits, y)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
