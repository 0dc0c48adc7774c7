"""Strings become tags here and nowhere else."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardbit.report.charts.svg import drawing, shorten, tag, text

# What XML cannot carry at all is not asked of it.
WRITABLE = st.text(
    st.characters(min_codepoint=32, blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff")
)


@given(WRITABLE, WRITABLE)
def test_any_text_and_any_attribute_come_back_as_they_were(content: str, attribute: str) -> None:
    element = ElementTree.fromstring(tag("text", content, class_=attribute, x=1.0))
    assert (element.text or "") == content
    assert element.get("class") == attribute
    assert element.get("x") == "1"


def test_attributes_without_value_are_left_out() -> None:
    assert tag("g", a=None, b=False, c=0) == '<g c="0"></g>'


def test_underscores_become_hyphens_and_children_are_kept() -> None:
    assert tag("g", text(1, 2, "<b>"), stroke_width=2.5) == (
        '<g stroke-width="2.5"><text x="1" y="2" class="tick" text-anchor="start">&lt;b&gt;</text></g>'
    )


def test_a_drawing_says_what_it_shows() -> None:
    root = ElementTree.fromstring(drawing(100.0, 50.0, "chart", "Heading", "Description"))
    named = {element.get("id"): element.text for element in root}
    assert named[root.get("aria-labelledby")] == "Heading"
    assert named[root.get("aria-describedby")] == "Description"
    assert root.get("viewBox") == "0 0 100 50"


@pytest.mark.parametrize(
    ("content", "short"), [("short", "short"), ("exactly10c", "exactly10c"), ("longer than it", "longer th…")]
)
def test_a_cut_is_visible(content: str, short: str) -> None:
    assert shorten(content, 10) == short
