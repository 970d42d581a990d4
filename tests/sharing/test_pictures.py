"""Pictures on the card: whole in their files, the same for the same set, never in the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hub_server import Hub

import softlabels as sl
from softlabels.format import manifest
from softlabels.looking.pages import picture
from softlabels.sharing import statistics as measuring
from softlabels.sharing.pull import pull
from softlabels.sharing.push import push
from softlabels.sharing.statistics import statistics
from softlabels.verifying.verify import verify

NAME = "me/labels"
Precompute = Callable[..., sl.LabelSet]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def labels(tiny: Path) -> sl.LabelSet:
    return sl.LabelSet.open(tiny)


def named(card: bytes) -> list[str]:
    """Pictures that a card shows."""
    return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card.decode())


def test_every_picture_of_the_card_is_in_the_commit_and_in_the_manifest(
    server: Hub, labels: sl.LabelSet
) -> None:
    push(labels, NAME)
    files = server.files(NAME)
    shown = named(files["README.md"])
    assert shown == ["figures/entropy.svg", "figures/kept-mass.svg", "figures/calibration.svg"]
    assert set(shown) <= set(manifest.parse(files["manifest.json"], where="").files)
    assert len(server.repositories[NAME].history) == 2, "the first, and that of the push"


def test_a_picture_is_whole_in_its_file_runs_nothing_and_says_what_is_to_be_seen(
    labels: sl.LabelSet,
) -> None:
    for chart in statistics(labels).charts:
        text = picture(chart)
        root = ElementTree.fromstring(text)
        space = "{http://www.w3.org/2000/svg}"
        assert {element.tag.removeprefix(space) for element in root.iter()} <= {
            "svg", "title", "desc", "style", "rect", "line", "text", "circle", "polyline",
        }  # fmt: skip
        assert root.findtext(f"{space}desc") == chart.words
        assert not re.search(r"href|url\(|@import|\bon\w+=", text)
        assert "prefers-color-scheme: dark" in text
        # A page may be dark where the system is light: it has a ground of its own.
        ground = next(e for e in root.iter(f"{space}rect") if e.get("class") == "ground")
        assert (ground.get("width"), ground.get("height")) == (
            root.get("width"),
            root.get("height"),
        )


def test_the_same_set_has_the_same_pictures_to_the_byte(labels: sl.LabelSet) -> None:
    one, other = (list(map(picture, statistics(labels).charts)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"selection": sl.Dense(16)}, ["entropy", "calibration"]),
        ({"selection": sl.Sampled(4), "codec": "sampled", "temperatures": ()}, []),
        ({"temperatures": (2.0,)}, ["kept-mass", "calibration"]),
        ({"rows": [{"id": "a", "ids": [99]}], "on_error": "skip"}, []),
    ],
)
def test_a_card_has_no_picture_of_what_the_set_does_not_tell(
    server: Hub,
    tmp_path: Path,
    precompute: Precompute,
    options: dict[str, object],
    shown: list[str],
) -> None:
    push(precompute(tmp_path / "set", **options), NAME)
    expected = [f"figures/{name}.svg" for name in shown]
    assert named(server.files(NAME)["README.md"]) == expected
    assert sorted(p for p in server.files(NAME) if p.startswith("figures/")) == sorted(expected)


def test_pictures_come_along_with_a_pull_and_are_held_to_their_digests(
    server: Hub, labels: sl.LabelSet, tmp_path: Path
) -> None:
    push(labels, NAME)
    root = pull(NAME, tmp_path / "pulled").labels.root
    assert not verify(root).findings
    (root / "figures" / "entropy.svg").write_text("<svg/>")
    assert [finding.file for finding in verify(root).findings] == ["figures/entropy.svg"]


def test_pictures_of_an_earlier_set_go_and_those_of_people_stay(
    server: Hub, labels: sl.LabelSet, tmp_path: Path, precompute: Precompute
) -> None:
    push(labels, NAME)
    mine = {"figures/mine.png": server.keep(b"mine")}
    repository = server.repositories[NAME]
    repository.commit("main", repository.commits[repository.branches["main"]] | mine)
    pulled = pull(NAME, tmp_path / "pulled").labels
    assert push(pulled, NAME).removed == 0
    other = precompute(tmp_path / "other", selection=sl.Dense(16))
    assert push(other, NAME).removed == 1
    assert sorted(p for p in server.files(NAME) if p.startswith("figures/")) == [
        "figures/calibration.svg", "figures/entropy.svg", "figures/mine.png",
    ]  # fmt: skip


def test_a_pulled_set_takes_no_picture_along_that_is_made_no_more(
    server: Hub, labels: sl.LabelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(labels, NAME)
    pulled = pull(NAME, tmp_path / "pulled").labels
    monkeypatch.setattr(measuring, "CHARTS", ("entropy",))
    assert push(pulled, NAME).removed == 2
    assert not verify(pull(NAME, tmp_path / "again").labels.root).findings
    assert (tmp_path / "again/figures/entropy.svg").is_file()
    assert not (tmp_path / "again/figures/calibration.svg").exists()
