"""Records: spans, slices and joins, held to loops over lists."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels import SoftLabels
from softlabels.codecs import Plain
from softlabels.errors import CorruptShardError
from softlabels.format.encoded import from_table
from softlabels.format.records import Records, join, scatter, schema, to_table
from softlabels.inputs.digests import DIGEST_TYPE, prepared_digest

CLASSES, K = 1000, 2
CODEC = Plain(CLASSES, (1.0,))
Masks = list[list[bool]]


def records_of(masks: Masks, *, inputs: bool = True) -> Records:
    """Records with these labelled tokens; every value in them is another."""
    wanted = np.asarray([one for mask in masks for one in mask], bool)
    tokens = np.arange(len(wanted)) % CLASSES
    positions = int(wanted.sum())
    offsets = np.cumsum([0, *map(len, masks)], dtype=np.int64)
    count = torch.arange(positions)
    return Records(
        identity=pa.table(
            {
                "key": pa.array([f"k{i}" for i in range(len(masks))], pa.string()),
                "part": pa.array([0] * len(masks), pa.int32()),
                "view": pa.array([0] * len(masks), pa.int32()),
                "source_start": pa.array([0] * len(masks), pa.int32()),
                "source_length": pa.array(map(len, masks), pa.int32()),
                "input_digest": pa.array([b"12345678"] * len(masks), DIGEST_TYPE),
                "prepared_digest": pa.array(
                    [prepared_digest(tokens[a:b]) for a, b in pairwise(offsets)],
                    DIGEST_TYPE,
                ),
            }
        ),
        token_offsets=offsets,
        token_ids=tokens if inputs else None,
        next_ids=np.arange(len(masks), dtype=np.int64) - 1 if inputs else None,
        wanted=wanted,
        labels=SoftLabels(
            ids=torch.stack([count % CLASSES, (count + 7) % CLASSES], -1),
            log_probs=-torch.stack([count, count + 0.5], -1).float(),
            logsumexp=count.float() / 3,
            log_tails=-count.float().unsqueeze(-1) / 7,
            temperatures=(1.0,),
            hard_log_probs=-count.float(),
        ),
        label_offsets=np.cumsum([0, *map(sum, masks)], dtype=np.int64),
    )


def table_of(records: Records) -> pa.Table:
    wanted = schema("string", CODEC, token_type=pa.uint16())
    return to_table(records, CODEC.encode(records.labels, records.label_offsets), wanted)


def spans_of(mask: list[bool]) -> list[dict[str, int]] | None:
    """The slow oracle: runs of True, or None where everything is."""
    if all(mask):
        return None
    spans, start = [], 0
    for value, run in groupby(mask):
        length = len(list(run))
        if value:
            spans.append({"start": start, "length": length})
        start += length
    return spans


def contents(records: Records) -> list[dict[str, Any]]:
    """Everything that records hold, one dict a record, tensor by tensor as lists."""
    found = []
    for i in range(len(records)):
        tokens = slice(*records.token_offsets[i : i + 2].tolist())
        positions = slice(*records.label_offsets[i : i + 2].tolist())
        labels = records.labels[positions]
        found.append(
            {
                **records.identity.slice(i, 1).to_pylist()[0],
                "tokens": None if records.token_ids is None else records.token_ids[tokens].tolist(),
                "next": None if records.next_ids is None else int(records.next_ids[i]),
                "wanted": records.wanted[tokens].tolist(),
                "ids": labels.ids.tolist(),
                **{
                    name: getattr(labels, name).tolist()
                    for name in ("log_probs", "logsumexp", "log_tails", "hard_log_probs")
                },
            }
        )
    return found


masks = st.lists(st.lists(st.booleans(), max_size=7), min_size=1, max_size=6)


@given(masks)
@example([[True, False, True], [True], [False, True, True]])
@example([[True], [True]])
@example([[False], [True, False]])
@example([[], [True], []])
@settings(deadline=None, max_examples=150)
def test_label_spans_are_the_runs_of_labelled_tokens(masks: Masks) -> None:
    table = table_of(records_of(masks))
    assert table["label_spans"].to_pylist() == [spans_of(mask) for mask in masks]
    assert table["length"].to_pylist() == [len(mask) for mask in masks]
    assert table["positions"].to_pylist() == [sum(mask) for mask in masks]


@given(masks, st.booleans())
@settings(deadline=None, max_examples=100)
def test_records_come_back_from_their_table(masks: Masks, inputs: bool) -> None:
    records = records_of(masks, inputs=inputs)
    assert contents(from_table(table_of(records), CODEC)) == contents(records)


@given(masks, st.data())
@settings(deadline=None, max_examples=100)
def test_a_slice_holds_those_records_in_memory_and_in_a_table(
    masks: Masks, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(masks)))
    stop = data.draw(st.integers(start, len(masks)))
    records = records_of(masks)
    expected = contents(records)[start:stop]
    assert contents(records.slice(start, stop)) == expected
    table = table_of(records).slice(start, stop - start)
    assert contents(from_table(table, CODEC)) == expected


@given(masks, st.data())
@settings(deadline=None, max_examples=100)
def test_slices_joined_are_the_whole(masks: Masks, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(masks)), max_size=3)))
    records = records_of(masks)
    bounds = [0, *cuts, len(masks)]
    parts = [records.slice(a, b) for a, b in pairwise(bounds)]
    whole = join(parts)
    assert contents(whole) == contents(records)
    assert whole.token_offsets.tolist() == records.token_offsets.tolist()
    assert whole.label_offsets.tolist() == records.label_offsets.tolist()


@given(masks)
@settings(deadline=None, max_examples=60)
def test_labels_of_a_record_stand_at_their_tokens_and_are_masked_elsewhere(masks: Masks) -> None:
    records = records_of(masks)
    flat = iter(zip(records.labels.ids.tolist(), records.labels.log_probs.tolist(), strict=True))
    for index, mask in enumerate(masks):
        labels = records.record_labels(index)
        assert labels.mask is not None
        assert labels.mask.tolist() == mask
        for t, labelled in enumerate(mask):
            ids, log_probs = next(flat) if labelled else ([0] * K, [0.0] * K)
            assert labels.ids[t].tolist() == ids
            assert labels.log_probs[t].tolist() == log_probs
            if not labelled:
                assert labels.log_tails is not None
                assert labels.log_tails[t].tolist() == [-torch.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("runs", [1, 3, 200])
def test_labels_spread_over_a_batch_stand_in_order_with_nothing_between(
    runs: int, dtype: torch.dtype
) -> None:
    mask = torch.zeros(4, 250, dtype=torch.bool)
    edges = np.sort(np.random.default_rng(runs).choice(1001, 2 * runs, replace=False))
    for start, stop in edges.reshape(-1, 2).tolist():
        mask.view(-1)[start:stop] = True
    count = torch.arange(1, int(mask.sum()) + 1)
    given = SoftLabels(
        ids=count[:, None] * torch.tensor([1, 2]),
        log_probs=-count[:, None] * torch.tensor([0.1, 0.2]),
        logsumexp=count.float(),
        log_tails=-count[:, None].float(),
        temperatures=(1.0,),
        hard_log_probs=-count.float(),
        logits=(count[:, None] * torch.tensor([1.0, 2.0])).to(dtype),
    )
    spread = scatter(given, mask)
    assert torch.equal(spread.mask, mask)
    fills = {"log_tails": -torch.inf, "hard_log_probs": torch.nan}
    for name in ("ids", "log_probs", "logsumexp", "log_tails", "hard_log_probs", "logits"):
        found, value = getattr(spread, name), getattr(given, name)
        assert found.dtype == value.dtype
        assert torch.equal(found[mask], value)
        others = found[~mask].double().numpy()
        assert np.array_equal(others, np.full(others.shape, fills.get(name, 0)), equal_nan=True)


def test_no_records_make_an_empty_table_and_come_back() -> None:
    none = records_of([[True]]).slice(0, 0)
    table = table_of(none)
    assert len(table) == 0
    assert len(from_table(table, CODEC)) == 0


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(name)
    index = table.schema.get_field_index(name)
    return table.set_column(index, field, pa.array(values, field.type))


@pytest.mark.parametrize(
    "spans",
    [
        [{"start": -1, "length": 2}],
        [{"start": 2, "length": 2}],
        [{"start": 0, "length": 4}],
        [{"start": 1, "length": -1}],
        [{"start": 2**31 - 1, "length": 2**31 - 1}],
    ],
)
def test_a_span_outside_its_record_is_corrupt(spans: list[dict[str, int]]) -> None:
    table = table_of(records_of([[True, True, False], [True, False, True]]))
    with pytest.raises(CorruptShardError, match="outside"):
        from_table(with_column(table, "label_spans", [spans, spans]), CODEC)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("label_spans", [[{"start": 0, "length": 1}], None]),
        ("label_spans", [None, None]),
        ("length", [2, 4]),
        ("length", [3, -3]),
        ("input_ids", [[1, 2], [3, 4, 5, 6]]),
        ("input_ids", [[1, 2, 3], None]),
        ("input_ids", [[1, 2, 3], [4, None, 6]]),
    ],
)
def test_columns_that_contradict_each_other_are_corrupt(name: str, values: list[Any]) -> None:
    table = table_of(records_of([[True, True, False], [True, True, True]]))
    with pytest.raises(CorruptShardError, match=r"length|label_spans|input_ids"):
        from_table(with_column(table, name, values), CODEC)
