"""A manifest has no digest to be held to: what comes cut short is asked for again."""

from __future__ import annotations

from pathlib import Path

import pytest
from file_server import FileServer, serving

import softlabels as sl
from softlabels.errors import LabelSetError
from softlabels.format import layout
from softlabels.stores import store


class Cutting(FileServer):
    """Sends a part of the manifest, as one that is being replaced.

    Attributes:
        cuts: so many times.
    """

    def __init__(self, root: Path, part: Path, *, cuts: int) -> None:
        super().__init__(root)
        manifest = (root / layout.MANIFEST).read_bytes()
        part.write_bytes(manifest[: len(manifest) // 2])
        self.part, self.cuts = part, cuts

    def find(self, path: str) -> tuple[Path, dict[str, str]] | None:
        if path.endswith(layout.MANIFEST) and self.cuts:
            self.cuts -= 1
            return self.part, {}
        return super().find(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SOFTLABELS_OFFLINE", raising=False)
    return tmp_path / "cache"


def test_one_that_came_cut_short_is_asked_for_again(pristine: Path, tmp_path: Path) -> None:
    with serving(Cutting(pristine, tmp_path / "part", cuts=1)) as server:
        assert len(sl.LabelSet.open(server.url)) == len(sl.LabelSet.open(pristine))
        assert not server.cuts


def test_one_that_stays_cut_says_what_to_do_and_leaves_nothing_behind(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Cutting(pristine, tmp_path / "part", cuts=0)) as server:
        sl.LabelSet.open(server.url)
        server.cuts = 2
        with pytest.raises(
            LabelSetError, match=r"/set/manifest.json: .*came cut short.*open the set again"
        ):
            sl.LabelSet.open(server.url)
        assert not server.cuts
        monkeypatch.setenv("SOFTLABELS_OFFLINE", "1")
        assert len(sl.LabelSet.open(server.url)) == len(sl.LabelSet.open(pristine))


def test_a_small_file_that_is_dropped_before_it_was_looked_at_is_fetched_again(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, dropped = store.file_sha256, []

    def late(path: Path) -> str:
        if path.name == layout.PLAN and not dropped:
            dropped.append(path)
            path.unlink()
        return look(path)

    monkeypatch.setattr(store, "file_sha256", late)
    with serving(Cutting(pristine, tmp_path / "part", cuts=0)) as server:
        assert sl.LabelSet.open(server.url).plan == sl.LabelSet.open(pristine).plan
    assert dropped
