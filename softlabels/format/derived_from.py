"""Where a derived set came from: its sources, and what was taken of them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class SetIdentity(BaseModel):
    """A label set that another one was derived from.

    Attributes:
        plan_sha256, shards_sha256: of its plan.json and shards.parquet.
        codec, k: how its entries were written, and how many.
        writer: the library and version that wrote it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    plan_sha256: str
    shards_sha256: str
    codec: str
    k: int
    writer: str

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        return {name: value for name, value in made.items() if value not in (None, [], ())}


class Merged(SetIdentity):
    """A set whose records were appended; `derived_from` is its own."""

    derived_from: tuple[Origin, ...] = ()


class Origin(SetIdentity):
    """The first source of a derivation, and what was taken of all of them.

    Attributes:
        merged: the other sources, in order.
        keys, keys_digest: how many samples were chosen by key, and the digest of these keys.
        where: the condition on a record's statistics.
        fraction, seed: share of the samples that were chosen by the hash of their keys.
        shard_records: records in a shard, at most; None where each unit of a source is one.
    """

    merged: tuple[Merged, ...] = ()
    keys: int | None = None
    keys_digest: str | None = None
    where: str | None = None
    fraction: float | None = None
    seed: int | None = None
    shard_records: int | None = None

    def words(self) -> str:
        """What was taken, for people; empty where everything was."""
        parts = {
            "keys": None if self.keys is None else f"{self.keys:,} keys",
            "where": self.where and f"where {self.where}",
            "fraction": self.fraction and f"{self.fraction:g} of the samples, seed {self.seed}",
            "merged": self.merged and f"{len(self.merged) + 1} sets merged",
            "shards": self.shard_records and f"{self.shard_records:,} records a shard",
        }
        return ", ".join(str(part) for part in parts.values() if part)
