"""Pages stand alone, run nothing, and can be read by everyone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import softlabels as sl
from softlabels.looking.audit import audit
from softlabels.looking.pages import audit_page, level, level_words, record_page
from softlabels.looking.record import Window, shown
from softlabels.looking.text import class_decoder, decoder

HOSTILE = "</code><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e\x00\x9b{{7*7}}"


class Elements(HTMLParser):
    """Every start tag with its attributes, and what was left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr", "line", "rect", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def pages(labels: sl.LabelSet) -> list[str]:
    decode = decoder(labels)
    classes = class_decoder(labels, decode)
    record = shown(labels, 0, Window(top=4))
    return [
        audit_page(labels, audit(labels), decode=decode, classes=classes),
        record_page(labels, record, decode, classes),
    ]


@pytest.fixture
def hostile(tmp_path: Path, precompute: Any) -> sl.LabelSet:
    teacher = sl.teachers.from_callable(
        lambda ids: torch.zeros(*ids.shape, 16), name=HOSTILE, version=HOSTILE, classes=16
    )
    rows = [{"id": HOSTILE, "ids": [1, 2, 3, 4]}, {"id": "bad" + HOSTILE, "ids": [99]}]
    made: sl.LabelSet = precompute(tmp_path / "set", rows, teacher=teacher, on_error="skip")
    return made


def test_text_of_a_set_is_text_on_a_page(hostile: sl.LabelSet) -> None:
    for page in pages(hostile):
        elements = Elements(page)
        assert not elements.open
        assert {"script", "img"}.isdisjoint(tag for tag, _ in elements.found)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "{{7*7}}" in page
        assert r"\u001b[2J\u202e\u0000\u009b" in page
        assert all(c.isprintable() or c == "\n" for c in page)


@pytest.mark.parametrize("kind", ["counted", "sampled", "bare", "empty"])
def test_a_page_needs_no_network_runs_nothing_and_every_id_is_there_once(
    counted: sl.LabelSet, knowing: Any, precompute: Any, tmp_path: Path, kind: str
) -> None:
    labels = counted
    if kind == "sampled":
        labels = knowing(tmp_path / "set", selection=sl.Sampled(6), codec=None, temperatures=None)
    if kind == "bare":
        labels = knowing(tmp_path / "set", store_inputs=False, temperatures=())
    if kind == "empty":
        labels = precompute(tmp_path / "set", [{"id": "a", "ids": [99]}], on_error="skip")
        made = [audit_page(labels, audit(labels), decode=str, classes=str)]
    else:
        made = pages(labels)
    for page in made:
        elements = Elements(page)
        assert not elements.open
        for _, attributes in elements.found:
            assert attributes.keys().isdisjoint({"src", "srcset", "onclick", "onload", "onerror"})
            assert str(attributes.get("href", "#")).startswith("#")
        assert "url(" not in page
        assert "@import" not in page
        ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes in elements.found:
            named = str(attributes.get("aria-labelledby") or "").split()
            named += [str(attributes["href"])[1:]] if "href" in attributes else []
            assert set(named) <= set(ids)


def test_charts_have_words_and_tables_have_headers(counted: sl.LabelSet) -> None:
    elements = Elements(pages(counted)[0])
    assert len(elements.of("svg")) == len(elements.of("figure")) == 8
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in elements.of("svg"))
    assert all(a.get("scope") in ("row", "col") for a in elements.of("th"))
    assert elements.of("html") == [{"lang": "en"}]
    assert {a.get("name") for a in elements.of("meta")} >= {"viewport", "color-scheme"}


def contrast(one: str, other: str) -> float:
    """Of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        wide = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        parts = [int(wide[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_every_ground_in_light_and_in_dark(counted: sl.LabelSet) -> None:
    page = pages(counted)[0]
    schemes = [dict(re.findall(r"--(\w+): (#\w+)", block))
               for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)]  # fmt: skip
    assert len(schemes) == 2
    for scheme in schemes:
        for ground in ("paper", "panel", "s1", "s2", "s3", "s4"):
            assert contrast(scheme["ink"], scheme[ground]) >= 4.5, ground
        for words in ("soft", "good", "bad"):
            assert contrast(scheme[words], scheme["paper"]) >= 4.5, words
        assert contrast(scheme["bar"], scheme["paper"]) >= 3


def test_levels_of_surprise_are_named_one_by_one() -> None:
    assert [level(s) for s in (None, 0.0, 0.99, 1.0, 3.0, 7.9, 8.0, 1e9)] == [
        0,
        0,
        0,
        1,
        2,
        3,
        4,
        4,
    ]
    assert level_words() == ["below 1", "1 to 2", "2 to 4", "4 to 8", "from 8"]
