"""How pictures are drawn."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree as ET

import pytest

from tests.reporting.made import HOSTILE
from trimtab.reporting.figure import INK, PAPER, SERIES, Drawing, escaped, figure, finished, looks, shown


def svg_of(drawing: Drawing) -> str:
    start = "data:image/svg+xml;base64,"
    assert drawing.uri.startswith(start)
    return base64.b64decode(drawing.uri[len(start) :]).decode()


def drawn(names: tuple[str, ...] = ("a",)) -> Drawing:
    with looks():
        made, axes = figure(2.0)
        for colour, name in zip(SERIES * 2, names, strict=False):
            axes.plot([0, 1], [0, 1], color=colour, markerfacecolor=PAPER, label=shown(name))
        made.legend()
        return finished(made, "alt")


def test_colours_follow_light_and_dark() -> None:
    svg = svg_of(drawn())
    assert "prefers-color-scheme:dark" in svg
    assert "var(--ink)" in svg
    assert "var(--s0)" in svg
    for mark in (INK, PAPER, *SERIES):
        assert mark not in svg


def test_the_same_numbers_give_the_same_file() -> None:
    assert drawn() == drawn()
    assert "date" not in svg_of(drawn()).lower()


def test_sizes_are_told_in_css_pixels() -> None:
    drawing = drawn()
    root = ET.fromstring(svg_of(drawing))
    assert root.attrib["width"].endswith("pt")
    assert drawing.width == round(float(root.attrib["width"][:-2]) * 4 / 3)
    assert not drawing.wide


def test_names_of_users_stay_text() -> None:
    svg = svg_of(drawn(HOSTILE))
    root = ET.fromstring(svg)
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {shown(name) for name in HOSTILE} <= texts
    assert not root.findall(".//{http://www.w3.org/2000/svg}script")
    # Nothing is fetched: references lead into the picture itself.
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', svg))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ß 日本", "plain ß 日本"),
        ("bell\x07", "bell\\x07"),
        ("new\nline\t", "new\\nline\\t"),
        ("right\u202eleft", "right\\u202eleft"),
        ("half\udc80", "half\\udc80"),
        (12, "12"),
    ],
)
def test_what_cannot_be_seen_is_spelt_out(text: object, expected: str) -> None:
    assert shown(text) == expected


def test_long_names_keep_both_ends() -> None:
    assert shown("abcdefghijklmnopqrstuvwxyz", 10) == "abcdef…xyz"
    assert shown("abcdefghij", 10) == "abcdefghij"
    assert len(shown("x" * 99, 24)) == 24


def test_a_letter_that_python_prints_is_given_by_its_number() -> None:
    assert escaped("\ufffe") == "\\ufffe"
