"""How others lay labels out on disk, for bench_storage.py: from what they publish, in our code.

None of them stores tails, logsumexps or hard-label log-probs.

- `Lists` and `Raw`: uint16 ids and float16 log-probs, as flat Parquet lists, and as bytes.
- `NestedLists`: a list of k numbers in a list of positions, the way of most `datasets` on the Hub.
- `MegatronLM`: megatron/training/distillation of 2026: an iteration's microbatches are saved as
  float16 log-probs, uint16 lower id bits and a bool 17th bit, and compressed with zstd-3, in a tar.
- `DistillKit`: its README's two recommended settings of distillkit/compression. The first log-probs
  of the descending ones in bfloat16, the others a least-squares fit of terms of their place t = 0,
  1, …, not normalised, in float32; ids packed to ⌈log₂ V⌉ bits; lists of bytes, one a position.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard
from torch import Tensor

from softlabels import SoftLabels

# Records of a Parquet row group, and microbatches of an iteration: 16k positions, as in a shard.
GROUP = 32

Bounds = Sequence[int]


class Entries(NamedTuple):
    """What is stored: ids, int64 (n, k), and log-probs, float32 (n, k)."""

    ids: Tensor
    log_probs: Tensor


class Peer(Protocol):
    """A layout.

    Attributes:
        name: with the setting.
        share: of the records, in timings: one over this many.
    """

    name: str
    share: int

    def write(self, labels: SoftLabels, bounds: Bounds) -> bytes:
        """A file of records; record i owns positions bounds[i]:bounds[i + 1]."""

    def read(self, data: bytes) -> Iterator[Entries]:
        """All of it as tensors, some records at a time."""


@dataclass(frozen=True)
class Lists:
    """Flat lists, zstd-3; BYTE_STREAM_SPLIT and no dictionary, a fifth less than by default."""

    name: str = "u16 + f16 lists, zstd-3"
    share: int = 1

    def write(self, labels: SoftLabels, bounds: Bounds) -> bytes:
        offsets = pa.array(np.asarray(bounds, np.int32) * labels.k)
        columns = {
            name: pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
            for name, values in halves(labels).items()
        }
        columns["positions"] = pa.array(np.diff(bounds))
        return parquet(
            pa.table(columns),
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            use_byte_stream_split=[f"{name}.list.element" for name in ("ids", "log_probs")],
        )

    def read(self, data: bytes) -> Iterator[Entries]:
        return (self._entries(table) for table in groups(data))

    def _entries(self, table: pa.Table) -> Entries:
        ids, log_probs = (
            table.column(name).combine_chunks().flatten().to_numpy()
            for name in ("ids", "log_probs")
        )
        return widened(ids, log_probs, k=len(ids) // table.column("positions").to_numpy().sum())


@dataclass(frozen=True)
class Raw:
    """Two binary cells a record, not compressed: the least that reading can cost."""

    name: str = "u16 + f16 raw bytes"
    share: int = 1

    def write(self, labels: SoftLabels, bounds: Bounds) -> bytes:
        columns: dict[str, Any] = {
            name: pa.array([values[a:b].tobytes() for a, b in records(bounds)], pa.binary())
            for name, values in halves(labels).items()
        }
        columns["positions"] = pa.array(np.diff(bounds))
        return parquet(pa.table(columns), compression="none", use_dictionary=False)

    def read(self, data: bytes) -> Iterator[Entries]:
        return (self._entries(table) for table in groups(data))

    def _entries(self, table: pa.Table) -> Entries:
        ids, log_probs = (
            np.frombuffer(table.column(name).combine_chunks().buffers()[2], kind)
            for name, kind in (("ids", np.uint16), ("log_probs", np.float16))
        )
        return widened(ids, log_probs, k=len(ids) // table.column("positions").to_numpy().sum())


@dataclass(frozen=True)
class NestedLists:
    """Python lists in, Parquet with the library's own settings, tensors out by `with_format`.

    Row by row, which is the fastest: `iter(batch_size=…)`, a DataLoader and whole columns take
    longer.

    Attributes:
        form: "torch", as documentation has it, or "numpy", whose arrays become tensors for nothing.
    """

    name: str = "datasets, nested lists"
    share: int = 16
    form: str = "torch"

    def write(self, labels: SoftLabels, bounds: Bounds) -> bytes:
        kinds = {"ids": "int64", "log_probs": "float32"}
        features = datasets.Features(
            {name: [[datasets.Value(kind)]] for name, kind in kinds.items()}
        )
        rows = {
            name: [getattr(labels, name)[a:b].tolist() for a, b in records(bounds)]
            for name in kinds
        }
        sink = io.BytesIO()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(sink)
        return sink.getvalue()

    def read(self, data: bytes) -> Iterator[Entries]:
        rows = datasets.Dataset(pq.read_table(pa.BufferReader(data))).with_format(self.form)
        return (
            Entries(torch.as_tensor(row["ids"]), torch.as_tensor(row["log_probs"])) for row in rows
        )


@dataclass(frozen=True)
class MegatronLM:
    """A microbatch is a record here; an iteration is as many as a row group."""

    name: str = "Megatron-LM"
    share: int = 1

    def write(self, labels: SoftLabels, bounds: Bounds) -> bytes:
        compressor, sink = zstandard.ZstdCompressor(level=3), io.BytesIO()
        cut = list(records(bounds))
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for start in range(0, len(cut), GROUP):
                data = compressor.compress(self._iteration(labels, cut[start : start + GROUP]))
                member = tarfile.TarInfo(f"{start // GROUP}.pt.zst")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return sink.getvalue()

    def _iteration(self, labels: SoftLabels, cut: list[tuple[int, int]]) -> bytes:
        # Sequence first, then a batch of one.
        ids = [labels.ids[a:b, None] for a, b in cut]
        saved = {
            "values": [labels.log_probs[a:b, None].half() for a, b in cut],
            "indices_low": [(i & 0xFFFF).to(torch.uint16) for i in ids],
            "bit_17": [(i >> 16).bool() for i in ids],
        }
        sink = io.BytesIO()
        torch.save(saved, sink)
        return sink.getvalue()

    def read(self, data: bytes) -> Iterator[Entries]:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                plain = zstandard.ZstdDecompressor().decompress(file.read())
                saved = torch.load(io.BytesIO(plain), weights_only=True)
                for low, high, values in zip(
                    saved["indices_low"], saved["bit_17"], saved["values"], strict=True
                ):
                    ids = (high.long() << 16) | low.long()
                    yield Entries(ids[:, 0], values[:, 0].float())


@dataclass(frozen=True)
class DistillKit:
    """A record at a time, in torch; read row by row as Python lists, as its collator does."""

    name: str
    k: int
    exact: int
    powers: tuple[float, ...]
    classes: int
    share: int = 16
    # Singular values below are taken for zero.
    tolerance: ClassVar[float] = 1e-5

    @property
    def _id_bits(self) -> int:
        return (self.classes - 1).bit_length()

    def write(self, labels: SoftLabels, bounds: Bounds) -> bytes:
        columns: dict[str, list[Any]] = {"compressed_logprobs": [], "bytepacked_indices": []}
        for a, b in records(bounds):
            log_probs, order = labels.log_probs[a:b].sort(descending=True)
            ids = labels.ids[a:b].gather(-1, order)
            columns["compressed_logprobs"].append(self._compressed(log_probs[None])[0].tolist())
            columns["bytepacked_indices"].append(self._packed(ids[None])[0].tolist())
        kind = pa.list_(pa.list_(pa.uint8()))
        return parquet(pa.table({name: pa.array(c, kind) for name, c in columns.items()}))

    def read(self, data: bytes) -> Iterator[Entries]:
        for row in datasets.Dataset(pq.read_table(pa.BufferReader(data))):
            log_probs, ids = (
                torch.tensor([row[name]]).to(torch.uint8)
                for name in ("compressed_logprobs", "bytepacked_indices")
            )
            yield Entries(self._unpacked(ids)[0], self._expanded(log_probs)[0])

    def _terms(self) -> Tensor:
        """(k − exact, terms): powers of the place."""
        places = torch.arange(self.k - self.exact, dtype=torch.float32)
        return torch.stack([places**power for power in self.powers], -1)

    def _compressed(self, log_probs: Tensor) -> Tensor:
        """(1, n, k) to bytes, (1, n, …)."""
        terms, wanted = self._terms()[None], log_probs[..., self.exact :, None]
        left, sizes, right = torch.linalg.svd(terms, full_matrices=False)
        inverse = torch.where(sizes > self.tolerance, 1 / sizes, 0)
        weighted = inverse[..., None] * (left.mT @ wanted)
        coefficients = (right.mT @ weighted)[..., 0].contiguous()
        # Upstream computes residuals though these settings store none of them.
        _ = wanted[..., 0] - (terms * coefficients[..., None, :]).sum(-1)
        first = log_probs[..., : self.exact].to(torch.bfloat16).contiguous()
        return torch.cat([first.view(torch.uint8), coefficients.view(torch.uint8)], -1)

    def _expanded(self, data: Tensor) -> Tensor:
        cut = 2 * self.exact
        first = data[..., :cut].contiguous().view(torch.bfloat16)
        coefficients = (
            data[..., cut:].clone(memory_format=torch.contiguous_format).view(torch.float32)
        )
        fitted = (self._terms() * coefficients[..., None, :]).sum(-1)
        return torch.cat([first.float(), fitted], -1)

    def _packed(self, ids: Tensor) -> Tensor:
        """Bits, highest first, one id after another."""
        shifts = torch.arange(self._id_bits - 1, -1, -1)
        bits = ((ids[..., None] >> shifts) & 1).to(torch.uint8).flatten(-2)
        bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8))
        weights = 1 << torch.arange(7, -1, -1, dtype=torch.uint8)
        return (bits.unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)

    def _unpacked(self, data: Tensor) -> Tensor:
        bits = ((data[..., None] >> torch.arange(7, -1, -1)) & 1).to(torch.uint8).flatten(-2)
        bits = bits[..., : self.k * self._id_bits].unflatten(-1, (self.k, self._id_bits))
        return (bits * (1 << torch.arange(self._id_bits - 1, -1, -1))).sum(-1)


def peers(k: int, classes: int) -> list[Peer]:
    """Those that are of interest at this k."""
    if k == 50:
        return [DistillKit("DistillKit budget", k, 1, (0, 1, 0.5), classes)]
    if k == 128:
        return [DistillKit("DistillKit recommended", k, 16, (0, 1, 2, 3, 4, 0.5), classes)]
    halved: list[Peer] = [Lists(), Raw()] if classes <= 1 << 16 else []
    return [*halved, MegatronLM(), NestedLists()]


def halves(labels: SoftLabels) -> dict[str, np.ndarray]:
    return {
        "ids": labels.ids.numpy().astype(np.uint16),
        "log_probs": labels.log_probs.numpy().astype(np.float16),
    }


def widened(ids: np.ndarray, log_probs: np.ndarray, *, k: int) -> Entries:
    return Entries(
        torch.from_numpy(ids.astype(np.int64)).view(-1, k),
        torch.from_numpy(log_probs.astype(np.float32)).view(-1, k),
    )


def records(bounds: Bounds) -> Iterator[tuple[int, int]]:
    return pairwise(bounds)


def parquet(table: pa.Table, **settings: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=GROUP, **settings)
    return sink.getvalue().to_pybytes()


def groups(data: bytes) -> Iterator[pa.Table]:
    file = pq.ParquetFile(pa.BufferReader(data))
    return (file.read_row_group(i, use_threads=False) for i in range(file.num_row_groups))
