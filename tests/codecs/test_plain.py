"""The plain codec: every float32 bit comes back, and what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels import SoftLabels, codecs
from softlabels.codecs import Plain
from softlabels.errors import CorruptShardError, InputError, UnsupportedFormatError

# The widths at which an id needs another type, and one short of them.
WIDTHS = [1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 151_936]
EDGES = [
    0x00000000,  # 0
    0x80000000,  # −0
    0x00000001,  # the smallest subnormal
    0x807FFFFF,  # the largest negative subnormal
    0x00800000,  # the smallest normal
    0xFF7FFFFF,  # the lowest finite value
    0xFF800000,  # −inf
    0x7F800000,  # +inf
]
NAN = 0x7FC00000


@dataclass(frozen=True)
class Case:
    codec: Plain
    labels: SoftLabels
    offsets: np.ndarray


def float32s(shape: Any, *, nan: bool = False) -> st.SearchStrategy[torch.Tensor]:
    """Tensors of any float32 bit patterns; NaN only as the one that null comes back as."""

    def view(bits: np.ndarray) -> torch.Tensor:
        values = bits.view(np.float32)
        unknown = np.isnan(values)
        bits[unknown] = NAN if nan else 0xFF800000
        return torch.from_numpy(bits.view(np.float32))

    bits = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([*EDGES, NAN]))
    return hnp.arrays(np.uint32, shape, elements=bits).map(view)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    classes = draw(st.sampled_from(WIDTHS))
    k = classes if classes <= 257 and draw(st.booleans()) else draw(st.integers(1, min(classes, 5)))
    counts = draw(st.lists(st.integers(0, 3), max_size=5))
    temperatures = tuple(draw(st.lists(st.sampled_from([1.0, 2.0, 0.5]), unique=True, max_size=3)))
    positions = sum(counts)
    ids = st.one_of(st.integers(0, classes - 1), st.sampled_from([0, classes - 1]))
    tails = float32s((positions, len(temperatures))) if temperatures else st.none()
    hard = st.none() | float32s(positions, nan=True)
    labels = SoftLabels(
        ids=torch.from_numpy(draw(hnp.arrays(np.int64, (positions, k), elements=ids))),
        log_probs=draw(float32s((positions, k))),
        logsumexp=draw(st.none() | float32s(positions)),
        log_tails=draw(tails),
        temperatures=temperatures,
        hard_log_probs=draw(hard),
    )
    return Case(Plain(classes, temperatures), labels, np.cumsum([0, *counts], dtype=np.int64))


def as_table(case: Case) -> pa.Table:
    columns = case.codec.encode(case.labels, case.offsets)
    schema = pa.schema([pa.field("positions", pa.int32()), *case.codec.fields])
    return pa.table({"positions": np.diff(case.offsets).astype(np.int32), **columns}, schema)


def bits(values: torch.Tensor | None) -> Any:
    return None if values is None else values.numpy().view(np.int32).tolist()


def check_same(found: SoftLabels, expected: SoftLabels, *, rows: int) -> None:
    assert len(found) == len(expected)
    assert found.ids.dtype == torch.int64
    if len(expected):  # else k is not known
        assert found.ids.tolist() == expected.ids.tolist()
        assert bits(found.log_probs) == bits(expected.log_probs)
    if rows:  # else nothing says which columns are null
        assert found.temperatures == expected.temperatures
        assert bits(found.log_tails) == bits(expected.log_tails)
        assert bits(found.logsumexp) == bits(expected.logsumexp)
        assert bits(found.hard_log_probs) == bits(expected.hard_log_probs)


@given(cases())
@settings(deadline=None, max_examples=120)
def test_every_bit_comes_back_from_arrow(case: Case) -> None:
    labels, offsets = case.codec.decode(as_table(case))
    check_same(labels, case.labels, rows=len(offsets) - 1)
    assert offsets.tolist() == case.offsets.tolist()


@given(cases(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_bit_comes_back_from_parquet(case: Case, chunked: bool) -> None:
    table, sink = as_table(case), pa.BufferOutputStream()
    pq.write_table(
        table, sink, use_dictionary=False, use_byte_stream_split=case.codec.split_columns
    )
    found = pq.read_table(pa.BufferReader(sink.getvalue()))
    if chunked and len(table) > 1:
        found = pa.concat_tables([found.slice(0, 1), found.slice(1)])
    labels, _ = case.codec.decode(found)
    check_same(labels, case.labels, rows=len(table))


@given(cases(), st.data())
@settings(deadline=None, max_examples=60)
def test_a_slice_of_rows_decodes_to_those_rows(case: Case, data: st.DataObject) -> None:
    rows = len(case.offsets) - 1
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    labels, offsets = case.codec.decode(as_table(case).slice(start, stop - start))
    bounds = slice(int(case.offsets[start]), int(case.offsets[stop]))
    check_same(labels, case.labels[bounds], rows=stop - start)
    assert offsets.tolist() == (case.offsets[start : stop + 1] - case.offsets[start]).tolist()


@given(cases())
@settings(deadline=None, max_examples=60)
def test_columns_are_what_a_loop_over_rows_would_write(case: Case) -> None:
    rows = as_table(case).to_pylist()
    for row, start, stop in zip(rows, case.offsets[:-1], case.offsets[1:], strict=True):
        labels = case.labels[int(start) : int(stop)]
        assert row["ids"] == [index for position in labels.ids.tolist() for index in position]
        flat = [value for position in labels.log_probs.tolist() for value in position]
        assert row["log_probs"] == flat
        assert row["logsumexp"] == (None if labels.logsumexp is None else labels.logsumexp.tolist())
        tails = None if labels.log_tails is None else labels.log_tails.flatten().tolist()
        assert row["log_tails"] == tails
        hard = labels.hard_log_probs
        known = None if hard is None else [None if v != v else v for v in hard.tolist()]
        assert row["hard_log_probs"] == known


@pytest.mark.parametrize(
    ("classes", "kind"),
    [(1, "uint16"), (255, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (1 << 32, "uint32")],
)
def test_ids_take_two_bytes_up_to_65536_classes_and_four_above(classes: int, kind: str) -> None:
    codec = Plain(classes, ())
    assert str(codec.id_type) == kind
    assert codec.to_json()["id_type"] == kind
    labels = SoftLabels(ids=torch.tensor([[classes - 1]]), log_probs=torch.zeros(1, 1))
    found, _ = codec.decode(as_table(Case(codec, labels, np.asarray([0, 1]))))
    assert found.ids.tolist() == [[classes - 1]]


@pytest.mark.parametrize("classes", [1, 255, 256, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("beyond", [0, 1, 65_536, 1 << 32])
def test_an_id_that_is_no_class_is_refused(classes: int, beyond: int) -> None:
    labels = SoftLabels(ids=torch.tensor([[classes + beyond]]), log_probs=torch.zeros(1, 1))
    with pytest.raises(InputError, match=str(classes + beyond)):
        Plain(classes, ()).encode(labels, np.asarray([0, 1]))


@pytest.mark.parametrize("classes", [10, 65_537])
def test_a_negative_id_is_refused(classes: int) -> None:
    labels = SoftLabels(ids=torch.tensor([[0], [-1]]), log_probs=torch.zeros(2, 1))
    with pytest.raises(InputError, match="-1"):
        Plain(classes, ()).encode(labels, np.asarray([0, 2]))


def test_lists_longer_than_int32_offsets_reach_are_refused_and_not_wrapped() -> None:
    one = torch.zeros(1, 1)
    labels = SoftLabels(ids=one.long().expand(1, 1 << 20), log_probs=one.expand(1, 1 << 20))
    with pytest.raises(InputError, match="2,147,483,648"):
        Plain(1 << 20, ()).encode(labels, np.asarray([0, 2048]))


@given(
    st.integers(1, 1 << 32),
    st.lists(st.floats(0.01, 100, allow_nan=False), unique=True).map(tuple),
)
@example(65_536, (1.0, 2.0, 4.0))
def test_a_codec_comes_back_from_its_json(classes: int, temperatures: tuple[float, ...]) -> None:
    codec = Plain(classes, temperatures)
    assert codecs.from_json(json.loads(json.dumps(codec.to_json()))) == codec


def test_the_json_of_a_codec_is_written_down() -> None:
    assert Plain(512, (1.0, 4.0)).to_json() == {
        "name": "plain",
        "classes": 512,
        "temperatures": [1.0, 4.0],
        "id_type": "uint16",
        "value_type": "float32",
    }


def test_an_unknown_codec_is_refused_by_name_with_control_characters_escaped() -> None:
    with pytest.raises(UnsupportedFormatError, match=r'"zip\\u001b\[2J"'):
        codecs.from_json({"name": "zip\x1b[2J"})
    with pytest.raises(InputError, match=r'"zip".*plain'):
        codecs.preset("zip")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"classes": 3},
        {"classes": None, "temperatures": []},
        {"classes": "many", "temperatures": []},
        {"classes": 3, "temperatures": 1.0},
        {"classes": 3, "temperatures": [None]},
    ],
)
def test_settings_that_no_codec_wrote_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFormatError, match="plain"):
        codecs.from_json({"name": "plain", **settings})


def table_with(**changed: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "positions": pa.array([2], pa.int32()),
        "ids": pa.array([[1, 2, 3, 4]], pa.list_(pa.uint16())),
        "log_probs": pa.array([[0.0, 0.0, 0.0, 0.0]], pa.list_(pa.float32())),
        "logsumexp": pa.array([[0.0, 0.0]], pa.list_(pa.float32())),
        "log_tails": pa.array([[0.0, 0.0]], pa.list_(pa.float32())),
        "hard_log_probs": pa.array([[0.0, None]], pa.list_(pa.float32())),
    }
    types = {name: column.type for name, column in columns.items()}
    return pa.table(columns | {n: pa.array(v, types[n]) for n, v in changed.items()})


def test_a_table_of_lists_that_fit_is_decoded() -> None:
    labels, _ = Plain(10, (1.0,)).decode(table_with())
    assert labels.ids.tolist() == [[1, 2], [3, 4]]
    assert labels.hard_log_probs is not None
    assert torch.isnan(labels.hard_log_probs).tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", [[1, 2, 3]]),
        ("ids", [[1, 2, 3, 4, 5, 6]]),
        ("ids", [[1, 2, 3, None]]),
        ("log_probs", [[0.0] * 6]),
        ("log_probs", [[0.0, 0.0, 0.0, None]]),
        ("positions", [3]),
        ("positions", [4]),
        ("logsumexp", [[0.0]]),
        ("logsumexp", [[0.0, None]]),
        ("log_tails", [[0.0, 0.0, 0.0]]),
        ("hard_log_probs", [[0.0] * 3]),
    ],
)
def test_lists_that_contradict_each_other_are_corrupt(name: str, value: Any) -> None:
    with pytest.raises(CorruptShardError, match=name):
        Plain(10, (1.0,)).decode(table_with(**{name: value}))
