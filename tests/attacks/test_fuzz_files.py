"""Random damage to shard tables and to the footers of shards: errors have names."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from test_fuzz import flipped, named, quick

from softlabels.format import plan as plans
from softlabels.format.receipts import Receipts
from softlabels.format.shard import Shard


@quick
@given(data=st.data())
def test_shard_tables(packed_set: Path, data: st.DataObject) -> None:
    changed = flipped((packed_set / "shards.parquet").read_bytes(), data)
    named(lambda: list(Receipts.parse(changed, where="shards.parquet")))


@quick
@given(data=st.data())
def test_shard_footers(packed_set: Path, tmp_path: Path, data: st.DataObject) -> None:
    good = (packed_set / "data" / "train-00000.parquet").read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    path = tmp_path / "shard.parquet"
    path.write_bytes(flipped(good, data, start=footer))
    codec = plans.parse((packed_set / "plan.json").read_bytes(), where="").make_codec()

    def read() -> None:
        shard = Shard(path, receipt=None, name="shard")
        shard.summary()
        for group in range(shard.metadata.num_row_groups):
            shard.records(group, codec)

    named(read)
