"""What bench_loader.py compares: how others would store soft labels and feed them to a student.

A file is a system or a family. Each is run in processes of its own (`python -m loader_peers`), by
an interpreter that needs NumPy, torch and that system's own library; only stock.py and ours.py
import softlabels.

- `contents`: what everyone is given, and the tensors that everyone delivers.
- `stock`: real labels, cut and repeated; written as a label set and as what the peers are given.
- `ours`: softlabels, and its files read by hand.
- The peers: `raw` (a memory map), `parquet` (by hand), `lists` (datasets), `mosaic`, `lit`, `web`,
  `lance_binary`, `grain_records`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """A system to compare.

    Attributes:
        label: for people.
        module: of this package, with a class `System`.
        needs: what must be importable.
        options: of its `System`.
        folder: whose files it reads; systems of one folder are written once.
        share: of the records, where delivering all would take minutes: one over this many.
        elsewhere: runs in the interpreter that `--peers` names.
    """

    label: str
    module: str
    needs: tuple[str, ...]
    options: dict[str, int | str] = field(default_factory=dict)
    folder: str | None = None
    share: int = 1
    elsewhere: bool = True


# No softlabels import here: this file is read by the peers' interpreter too.
OURS = "softlabels"
BY_HAND = "pyarrow-ours"
RAW = "raw"
SYSTEMS = {
    OURS: Entry("softlabels", "ours", (), {"threads": 0}, folder="ours", elsewhere=False),
    "softlabels-1": Entry(
        "softlabels, 1 thread", "ours", (), {"threads": 1}, folder="ours", elsewhere=False
    ),
    "softlabels-2": Entry(
        "softlabels, 2 threads", "ours", (), {"threads": 2}, folder="ours", elsewhere=False
    ),
    BY_HAND: Entry("PyArrow by hand, our files", "byhand", (), folder="ours", elsewhere=False),
    RAW: Entry("raw memory map", "raw", (), elsewhere=False),
    "parquet": Entry("PyArrow by hand, binary cells", "parquet", ("pyarrow",), elsewhere=False),
    "flat": Entry(
        "datasets, flat lists as Arrow",
        "lists",
        ("datasets",),
        {"kind": "flat"},
        elsewhere=False,
    ),
    "nested": Entry(
        "datasets, nested lists", "lists", ("datasets",), {"kind": "nested"}, share=8,
        elsewhere=False,
    ),
    "mosaic": Entry("MosaicML Streaming", "mosaic", ("streaming",)),
    "lit": Entry("LitData", "lit", ("litdata",)),
    "web": Entry("WebDataset, npy", "web", ("webdataset",)),
    "lance": Entry("Lance, binary", "lance_binary", ("lance",)),
    "grain": Entry("Grain + ArrayRecord", "grain_records", ("grain", "array_record")),
}  # fmt: skip
