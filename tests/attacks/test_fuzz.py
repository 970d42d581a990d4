"""Random damage to plans, manifests, receipts, codecs and frames: errors have names."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softlabels import SoftLabels
from softlabels.codecs import Codec, Needs, resolve
from softlabels.codecs.frames import frames_of, sizes_of
from softlabels.errors import SoftLabelsError
from softlabels.format import manifest
from softlabels.format import plan as plans
from softlabels.format.receipts import Receipts

quick = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=20),
    st.integers(-(1 << 70), 1 << 70), st.sampled_from([0, -1, 1 << 31, 1 << 53, 1 << 63]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a JSON document."""
    found = [prefix] if prefix else []
    names = (
        value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    )
    for name in names:
        found += paths(value[name], (*prefix, name))
    return found


def damaged(document: Any, data: st.DataObject) -> bytes:
    """One to three values of it replaced or removed."""
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        places = paths(document)
        if not places:
            break
        *way, last = data.draw(st.sampled_from(places))
        inner = document
        for step in way:
            inner = inner[step]
        if data.draw(st.booleans()) and isinstance(inner, dict):
            del inner[last]
        else:
            inner[last] = data.draw(VALUES)
    return json.dumps(document).encode()


def flipped(good: bytes, data: st.DataObject, *, start: int = 0) -> bytes:
    """A few of its bytes replaced, from a place on."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(start, len(good) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


def named(action: Callable[[], object]) -> None:
    """Run it; only errors of the library may come out."""
    try:
        action()
    except SoftLabelsError as error:
        assert str(error)


@quick
@given(data=st.data())
def test_plans(packed_set: Path, data: st.DataObject) -> None:
    changed = damaged(json.loads((packed_set / "plan.json").read_bytes()), data)
    named(lambda: plans.parse(changed, where="plan.json").make_codec())


@quick
@given(data=st.data())
def test_manifests_and_receipts(packed_set: Path, data: st.DataObject) -> None:
    found = damaged(json.loads((packed_set / "manifest.json").read_bytes()), data)
    named(lambda: manifest.parse(found, where="manifest.json"))
    receipts = list(Receipts.parse((packed_set / "shards.parquet").read_bytes(), where=""))
    receipt = damaged(receipts[0].model_dump(mode="json"), data)
    named(lambda: manifest.parse_receipt(receipt, where="receipt"))


def made(name: str) -> tuple[Codec, dict[str, pa.Array]]:
    """A codec of 300 classes, and two records in it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 300, generator=generator)
    values, ids = logits.topk(5)
    lse = logits.logsumexp(-1)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - lse
    sampled = name == "sampled"
    labels = SoftLabels(
        ids=ids, log_probs=values - lse.unsqueeze(-1), logsumexp=lse, logits=values, classes=300,
        log_tails=None if sampled else rest.unsqueeze(-1),
        temperatures=() if sampled else (1.0,), sampled=sampled,
    )  # fmt: skip
    needs = Needs(300, 5, labels.temperatures, sampled=sampled)
    codec = resolve(name, needs, pilot=lambda: labels)
    return codec, codec.encode(labels, np.array([0, 4, 9]))


@pytest.mark.parametrize("name", ["compact", "lossless", "sampled"])
@quick
@given(data=st.data())
def test_frames(name: str, data: st.DataObject) -> None:
    """Right sizes and checksums around planes of random bytes: what an attacker would write."""
    codec, columns = made(name)
    layout = codec.layout  # type: ignore[attr-defined]
    blobs = []
    for blob, positions in zip(columns["packed"].to_pylist(), (4, 5), strict=True):
        frames, places = frames_of(pa.chunked_array([[blob]]))
        sizes = sizes_of(frames, places, least=np.array([0]), most=np.array([1 << 20]))
        good = layout.frames.unpack(frames, places, sizes=sizes, positions=np.array([positions]))
        planes = flipped(bytes(good), data)
        planes += bytes(data.draw(st.integers(0, 4)))
        blobs.append(layout.frames.pack([memoryview(planes)], positions=positions))
    entries = [data.draw(st.integers(15, 25)), columns["entries"][1].as_py()]
    table = pa.table(
        {"positions": pa.array([4, 5], pa.int32()), "entries": pa.array(entries, pa.int32()),
         "packed": blobs}
    )  # fmt: skip

    def decode() -> None:
        labels, offsets = codec.decode(table)
        assert labels.ids.shape == (9, 5)
        assert offsets.tolist() == [0, 4, 9]

    named(decode)


@pytest.mark.parametrize("name", ["compact", "lossless", "sampled", "plain"])
@quick
@given(data=st.data())
def test_settings_of_codecs(name: str, data: st.DataObject) -> None:
    from softlabels.codecs import from_json

    if name == "plain":
        settings_of = resolve(name, Needs(300, 5, (1.0,)), pilot=lambda: None).to_json()  # type: ignore[arg-type, return-value]
    else:
        settings_of = made(name)[0].to_json()
    changed = json.loads(damaged(settings_of, data))
    named(lambda: from_json(changed))
