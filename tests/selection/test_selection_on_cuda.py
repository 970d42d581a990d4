"""What reduces on a CUDA device against plain torch and float64 sums.

On a device (`-m gpu`), and without one through triton's interpreter, where triton is installed.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from softlabels import TopK
from softlabels.selection import reduce_torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)
# Read when triton is imported; it can do nothing else where there is no device.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

# The interpreter warns of the infinities that a device takes in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
AT = (4.0, 2.0, 1.0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("triton is not interpreted here")
    return str(request.param)


@pytest.fixture
def engine() -> ModuleType:
    from softlabels.selection import reduce_triton

    return reduce_triton


def normal(rows: int, classes: int, *, scale: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator) * scale


def check(
    engine: ModuleType, logits: Tensor, k: int, temperatures: tuple[float, ...] = AT
) -> tuple[Tensor, ...]:
    """Values, ids and the next value to the bit; the sums of each row against float64."""
    found = tuple(t.cpu() for t in engine.reduce(logits, k, temperatures))
    z = logits.cpu().float()
    values, ids, rest_max, _ = reduce_torch.reduce(z, k, temperatures)
    assert torch.equal(found[1], ids)
    assert torch.equal(found[0].view(torch.int32), values.view(torch.int32))
    assert torch.equal(found[2], rest_max)
    rest = z.double().scatter(-1, ids, -math.inf)
    rest -= rest_max.masked_fill(rest_max == -math.inf, 0).double().unsqueeze(-1)
    sums = torch.stack([(rest / t).exp().sum(-1) for t in temperatures], -1)
    torch.testing.assert_close(found[3].double(), sums, rtol=2e-5, atol=0)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0, 60.0])
@pytest.mark.parametrize(("classes", "k"), [(1041, 1), (4096, 5), (5001, 40), (4500, 130)])
def test_values_ids_and_sums_are_those_of_torch(
    engine: ModuleType, device: str, classes: int, k: int, scale: float, dtype: torch.dtype
) -> None:
    check(engine, normal(3, classes, scale=scale).to(device, dtype), k)


@pytest.mark.parametrize("temperatures", [(1.0,), (8.0, 2.0, 1.0, 0.5), (3.0, 1.0), (1.5, 1.0)])
def test_sums_hold_at_any_temperatures(
    engine: ModuleType, device: str, temperatures: tuple[float, ...]
) -> None:
    check(engine, normal(2, 3000).to(device), 7, temperatures)


def test_the_rest_of_a_peaked_row_is_summed_and_not_what_is_left_of_one(
    engine: ModuleType, device: str
) -> None:
    logits = normal(2, 4000, scale=0.1)
    logits[:, [5, 6, 3999]] = torch.tensor([90.0, 40.0, 89.0])
    sums = check(engine, logits.to(device), 3)[3]
    assert (sums > 2000).all()


def test_equal_logits_are_taken_by_id_from_wherever_they_stand(
    engine: ModuleType, device: str
) -> None:
    logits = normal(20, 5003).bfloat16().clamp(max=2.0)
    logits[:, 1000] = 9.0
    logits[3] = 0.0
    logits[3, ::2] *= -1  # both zeros are one
    ids = check(engine, logits.to(device), 64)[1]
    assert (ids[:3, 0] == 1000).all()
    assert ids[3].tolist() == list(range(64))


def test_forbidden_classes_fill_what_is_left_of_k(engine: ModuleType, device: str) -> None:
    logits = torch.full((3, 3001), -math.inf)
    logits[0, [7, 2999]] = 1.0
    logits[1, 3000] = -5.0
    logits[1, 64:96] = 2.0
    check(engine, logits.to(device), 9)


@pytest.mark.parametrize("worst", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1700, slice(None), slice(40, 3000)])
def test_rows_that_are_no_distribution_spoil_no_other(
    engine: ModuleType, device: str, worst: float, place: int | slice
) -> None:
    logits = normal(3, 3001)
    alone = [t.cpu() for t in engine.reduce(logits.to(device), 5, AT)]
    logits[1, place] = worst
    found = [t.cpu() for t in engine.reduce(logits.to(device), 5, AT)]
    for ours, other in zip(found, alone, strict=True):
        assert torch.equal(ours[[0, 2]], other[[0, 2]])
    whole = torch.cat([found[0][1], found[3][1]])
    assert not torch.isfinite(whole).all()
    assert ((found[1] >= 0) & (found[1] < 3001)).all()


def test_rows_may_lie_apart_or_across(engine: ModuleType, device: str) -> None:
    logits = normal(4, 6002).to(device)
    for view in (logits[::2, 1:3002], logits[:, ::2], logits[:, :3001].t().contiguous().t()):
        check(engine, view, 6)
    check(engine, logits[:1].expand(3, -1), 6)


@pytest.mark.parametrize(
    ("rows", "classes", "k"), [(1, 2000, 5), (0, 2000, 5), (2, 70, 70), (2, 70, 69), (2, 1, 1)]
)
def test_every_shape_has_an_answer(
    engine: ModuleType, device: str, rows: int, classes: int, k: int
) -> None:
    check(engine, normal(rows, classes).to(device), k)


def test_in_how_many_rows_at_a_time_changes_no_bit(engine: ModuleType, device: str) -> None:
    logits = normal(5, 4001).to(device, torch.bfloat16)
    whole = engine.reduce(logits, 8, AT)
    for row in range(5):
        for ours, other in zip(engine.reduce(logits[row : row + 1], 8, AT), whole, strict=True):
            assert torch.equal(ours[0], other[row])


@pytest.mark.gpu
@pytest.mark.parametrize("k", [300, 1024])
def test_many_classes_may_be_kept(engine: ModuleType, k: int) -> None:
    check(engine, normal(3, 50_001).cuda(), k)
    check(engine, normal(3, 50_001).bfloat16().cuda(), k)


@pytest.mark.gpu
def test_rows_beyond_two_to_the_31_values_are_reached(engine: ModuleType) -> None:
    rows, classes = 17_000, 128_256
    assert rows * classes > 2**31
    logits = torch.zeros(rows, classes, dtype=torch.bfloat16, device="cuda")
    logits[-3:] = normal(3, classes).to("cuda", torch.bfloat16)
    found = engine.reduce(logits, 64, AT)
    for ours, other in zip(found, engine.reduce(logits[-3:].clone(), 64, AT), strict=True):
        assert torch.equal(ours[-3:], other)
    assert found[1][0].tolist() == list(range(64))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_device_keeps_the_classes_that_the_cpu_keeps(dtype: torch.dtype) -> None:
    logits, hard = normal(64, 20_011).to(dtype), torch.arange(64) - 1
    here = TopK(32)(logits, hard, temperatures=(1.0, 2.0, 4.0))
    there = TopK(32)(logits.cuda(), hard.cuda(), temperatures=(1.0, 2.0, 4.0)).to("cpu")
    assert torch.equal(there.ids, here.ids)
    for name in ("log_probs", "logsumexp", "log_tails", "hard_log_probs"):
        a, b = getattr(there, name), getattr(here, name)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5, equal_nan=True)
