"""The pages as a browser shows them: figures, images, labels that are whole and apart, and a quiet console."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import report_examples as examples
from hardbit.report import html_report
from hardbit.report.screenshot import find_chromium, main, open_page, screenshot

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed: the report cannot be opened")

WIDTHS = {"wide": 1160, "tablet": 800, "phone": 375}
CHARTS = ("eps-curve", "latency-histogram", "gate-rule-0", "gate-rule-1", "gate-rule-2")
TABLES = ("attack-table", "class-table", "precision-table", "agreement-table", "alarm-table")

# Runs in a page of our own that holds every report in a frame as wide as the screen it stands for.
PROBE = """
const seen = element => { const box = element.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
const beside = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1;
const apart = (a, b) => beside(a, b) || a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
const cut = (a, box) =>
  a.left < box.left - 1 || a.right > box.right + 1 || a.top < box.top - 3 || a.bottom > box.bottom + 3;
function probe(page) {
  const root = page.documentElement, images = [...page.images], labels = [], met = [];
  for (const chart of page.querySelectorAll("svg")) {
    const box = chart.getBoundingClientRect(), texts = [...chart.querySelectorAll("text")].filter(seen);
    texts.forEach((text, index) => {
      const place = text.getBoundingClientRect();
      if (cut(place, box)) labels.push(text.textContent);
      for (const other of texts.slice(index + 1))
        if (!apart(place, other.getBoundingClientRect())) met.push(text.textContent + " | " + other.textContent);
    });
  }
  return {
    title: page.title,
    charts: [...page.querySelectorAll("svg.chart")].filter(seen).map(chart => chart.id),
    tables: [...page.querySelectorAll("table[id]")].filter(seen).map(table => table.id),
    images: images.length,
    loaded: images.filter(image => image.complete && image.naturalWidth > 0).length,
    scripts: page.scripts.length,
    overflow: root.scrollWidth - root.clientWidth,
    outside: [...page.querySelectorAll("main *")].filter(seen).filter(e => !e.closest(".scroll") && !e.closest("svg"))
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName + "." + e.className),
    clipped: labels,
    met: met,
    unnamed: [...page.querySelectorAll("svg[role=img]")]
      .filter(e => !e.getAttribute("aria-label") && !page.getElementById(e.getAttribute("aria-labelledby"))).length,
    headless: [...page.querySelectorAll("thead th")].filter(e => !e.getAttribute("scope")).length,
    duplicates: [...page.querySelectorAll("[id]")].map(e => e.id).filter((id, at, all) => all.indexOf(id) !== at),
  };
}
addEventListener("load", async () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    await frame.contentDocument.fonts.ready;  // before it, boxes may be those of another font
    frame.contentDocument.documentElement.getBoundingClientRect();
  }
  for (const frame of document.querySelectorAll("iframe")) found[frame.name] = probe(frame.contentDocument);
  document.getElementById("found").textContent = JSON.stringify(found);
});
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """HTML of every kind of report by name."""
    made = {}
    for verdict in examples.VERDICTS:
        document = examples.document(verdict)
        made[verdict] = html_report(document, examples.write_artifacts(document, tmp_path_factory.mktemp(verdict)))
    hostile = examples.hostile()
    folder = examples.write_artifacts(hostile, tmp_path_factory.mktemp("hostile"), channels=3)
    made["hostile"] = html_report(hostile, folder)
    made["long"] = html_report(examples.hostile("a-name-" + "without-any-end" * 12), folder)
    made["bare"] = html_report(examples.document())
    made["comparison"] = html_report(examples.comparison())
    return made


@pytest.fixture(scope="module")
def opened(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the probe found in every page at every width, and what the pages wrote to the console."""
    frames = "".join(
        f'<iframe name="{name}/{screen}" width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for screen, width in WIDTHS.items()
    )
    holder = tmp_path_factory.mktemp("probe") / "holder.html"
    icon = '<link rel="icon" href="data:,">'
    holder.write_text(f"<!DOCTYPE html>{icon}<script>{PROBE}</script>{frames}<pre id=found></pre>", encoding="utf-8")
    done = open_page(holder, ["--dump-dom"])
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


@pytest.fixture(scope="module")
def probed(opened: tuple[dict[str, Any], str]) -> dict[str, Any]:
    return opened[0]


def every(probed: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    return ((name, found[key]) for name, found in probed.items())


@pytest.mark.parametrize("screen", WIDTHS)
@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_a_measured_result_shows_its_charts_tables_and_images(
    verdict: str, screen: str, probed: dict[str, Any]
) -> None:
    found = probed[f"{verdict}/{screen}"]
    suffix = "-narrow" if screen == "phone" else ""
    assert sorted(found["charts"]) == sorted(f"{name}{suffix}" for name in CHARTS)
    assert sorted(found["tables"]) == sorted(TABLES)
    assert (found["images"], found["loaded"]) == (36, 36)


def test_results_without_measurements_show_what_there_is(probed: dict[str, Any]) -> None:
    for verdict in ("WRONG_ENGINE", "ENV_MISMATCH"):
        assert probed[f"{verdict}/wide"]["charts"] == []
        assert probed[f"{verdict}/wide"]["tables"] == ["precision-table"]


def test_a_comparison_shows_its_picture_and_table(probed: dict[str, Any]) -> None:
    assert probed["comparison/wide"]["charts"] == ["bench-scatter"]
    assert probed["comparison/phone"]["charts"] == ["bench-scatter-narrow"]
    assert probed["comparison/wide"]["tables"] == ["comparison-table"]


def test_no_page_is_wider_than_its_screen(probed: dict[str, Any]) -> None:
    assert {name: value for name, value in every(probed, "overflow") if value} == {}
    assert {name: value for name, value in every(probed, "outside") if value} == {}


def test_no_label_of_a_chart_is_cut_off_or_meets_another(probed: dict[str, Any]) -> None:
    assert {name: value for name, value in every(probed, "clipped") if value} == {}
    assert {name: value for name, value in every(probed, "met") if value} == {}


def test_every_figure_has_a_name_and_every_column_a_scope(probed: dict[str, Any]) -> None:
    assert {name: value for name, value in every(probed, "unnamed") if value} == {}
    assert {name: value for name, value in every(probed, "headless") if value} == {}
    assert {name: value for name, value in every(probed, "duplicates") if value} == {}


def test_hostile_names_run_nothing(probed: dict[str, Any]) -> None:
    assert "owned" in probed["hostile/wide"]["title"]  # as text, with its brackets
    assert probed["hostile/wide"]["title"].startswith("INCONCLUSIVE: <script>")
    assert {name: value for name, value in every(probed, "scripts") if value != 1} == {}


def test_the_console_stays_quiet(opened: tuple[dict[str, Any], str]) -> None:
    assert [line for line in opened[1].splitlines() if "CONSOLE" in line] == []


def test_a_page_that_complains_would_be_heard(tmp_path: Path) -> None:
    page = tmp_path / "complains.html"
    page.write_text("<!DOCTYPE html><script>undefined_name()</script>", encoding="utf-8")
    assert "CONSOLE" in open_page(page, ["--dump-dom"]).stderr


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_screenshot_is_small_and_follows_the_desktop(dark: bool, pages: dict[str, str], tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(pages["PASS"], encoding="utf-8")
    screenshot(page, picture, 1160, 1500, dark=dark)
    assert picture.stat().st_size < 300_000
    with Image.open(picture) as image:
        assert image.size == (1160, 1500)
        paper = image.convert("RGB").getpixel((4, 4))
    assert paper == ((0x14, 0x16, 0x1A) if dark else (0xFB, 0xFA, 0xF7))


def test_the_command_names_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main([str(page), str(tmp_path / "x.png")]) == 64
    page.write_text("<!DOCTYPE html><title>x</title>", encoding="utf-8")
    assert main([str(page), str(tmp_path / "nowhere" / "x.png")]) == 64
    assert capsys.readouterr().err.splitlines() == [
        f"{page}: there is no such page",
        f"{tmp_path}/nowhere: there is no such folder; make it first",
    ]
