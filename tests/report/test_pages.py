"""What a page of one result says, without a browser: verdict, numbers, evidence, and what is missing."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import report_examples as examples
from hardbit.report import bench_picture, html_report
from hardbit.report.wording import VERDICTS
from hardbit_deploy.results import load_schema
from hardbit_deploy.summary import result_summary
from hardbit_deploy.verdict import EXIT_CODES


def page_of(document: dict[str, Any], folder: Path) -> str:
    return html_report(document, examples.write_artifacts(document, folder))


class Elements(HTMLParser):
    """Every element of a page as a parser of its own sees it: (tag, attributes)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def tags(self) -> Counter[str]:
        return Counter(tag for tag, _ in self.found)


def text_of(page: str) -> str:
    """The page without its markup, white space collapsed."""
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.mark.parametrize("verdict", examples.VERDICTS)
def test_the_examples_are_results_of_the_published_schema(verdict: str) -> None:
    document = examples.document(verdict)
    jsonschema.validate(json.loads(json.dumps(document)), load_schema("result-v1"))
    assert document["verdict"]["name"] == verdict


@pytest.mark.parametrize("verdict", examples.VERDICTS)
def test_the_verdict_comes_first_with_its_reasons_and_what_to_do(verdict: str, tmp_path: Path) -> None:
    document = examples.document(verdict)
    text = text_of(page_of(document, tmp_path))
    top = text[: text.index("Threat model")]
    assert f"{verdict} exit code {EXIT_CODES[verdict]}" in top
    assert VERDICTS[verdict].headline in top
    assert "What to do" in top
    for reason in document["verdict"]["reasons"]:
        assert reason in top


def test_every_verdict_has_words_and_the_exit_code_of_the_harness() -> None:
    assert {name: words.exit_code for name, words in VERDICTS.items()} == EXIT_CODES


def test_the_threat_model_is_said_out_loud(tmp_path: Path) -> None:
    text = text_of(page_of(examples.document(), tmp_path))
    assert "every pixel may change by at most 25 of 255 grey levels (L∞)" in text
    assert "the whole bundle: architecture, weights, scales" in text
    assert "bytes" in text
    assert "the deployed engine alone" in text


def test_every_attack_is_a_row_with_count_rate_interval_and_bar(tmp_path: Path) -> None:
    document = examples.document()
    page = page_of(document, tmp_path)
    rows = re.findall(r"<tr[^>]*>.*?</tr>", page[page.index('id="attack-table"') : page.index('id="eps"')], flags=re.S)[
        1:
    ]
    assert len(rows) == len(document["attacks"])
    for row, attack in zip(rows, document["attacks"], strict=True):
        low, high = (100 * end for end in attack["interval"])
        assert f"{attack['survivors']:,}" in row
        assert f"{100 * attack['rate']:.1f}\u00a0%" in row
        assert f"{low:.1f}\u00a0–\u00a0{high:.1f}\u00a0%" in row
        assert f'width="{100 * attack["rate"]:.2f}%"' in row


def test_a_page_asks_for_nothing_from_anywhere(tmp_path: Path) -> None:
    page = page_of(examples.document(), tmp_path)
    assert "http://" not in page
    assert "https://" not in page
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"url\(|@import", page)
    assert "default-src 'none'" in html.unescape(page)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    document = examples.hostile("<script>document.title='owned'</script>")
    page = page_of(document, tmp_path)
    assert page.count("<script>") == 1  # the one of the page itself
    assert page.count("&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;") > 20
    several = html_report([document, examples.document()])
    assert several.count("<script>") == 1
    assert "<script" not in bench_picture([document])


@pytest.mark.parametrize("text", ['"><img src=x onerror=alert(1)>', "]]><svg/onload=alert(1)>", "' onload='x"])
def test_no_name_becomes_an_element_or_an_attribute(text: str, tmp_path: Path) -> None:
    hostile = Elements(page_of(examples.hostile(text), tmp_path))
    harmless = Elements(page_of(examples.hostile("harmless"), tmp_path))
    assert hostile.tags() == harmless.tags()
    assert not [attributes for _, attributes in hostile.found if any(name.startswith("on") for name in attributes)]


def test_braces_in_names_are_no_template(tmp_path: Path) -> None:
    assert "{{ 7 * 7 }}" in page_of(examples.hostile("{{ 7 * 7 }}"), tmp_path)


def test_parts_of_a_wrong_engine_say_why_they_did_not_run(tmp_path: Path) -> None:
    page = page_of(examples.document("WRONG_ENGINE"), tmp_path)
    sections = dict(re.findall(r'<section id="([\w-]+)">(.*?)</section>', page, flags=re.S))
    for name in ("gate", "attacks", "eps", "classes", "examples", "latency", "agreement", "alarms"):
        assert "not run: the engine executes something else than declared" in sections[name], name
    assert "not integer" in sections["precision"]
    assert "conv2: declared integer, but the runtime executes Conv on float32" in sections["precision"]


def test_attacks_that_are_listed_but_did_not_run_say_so(tmp_path: Path) -> None:
    document = examples.document()
    document["attacks"].insert(1, {"name": "square", "rate": None, "reason": "stopped by hand"})
    assert "not run: stopped by hand" in page_of(document, tmp_path)


def test_a_result_without_latency_says_so(tmp_path: Path) -> None:
    document = examples.document() | {"latency": None}
    page = page_of(document, tmp_path)
    assert "not run: this check did not ask for it" in page
    assert 'id="latency-histogram"' not in page


def test_a_result_without_its_arrays_is_still_a_page() -> None:
    page = html_report(examples.document())
    assert "the report was made from the result document alone" in page
    assert "<img" not in page
    assert 'id="eps-curve"' in page


def test_an_accepted_alarm_is_on_the_page_with_its_number_and_why(tmp_path: Path) -> None:
    document = examples.document_with_an_accepted_alarm()
    jsonschema.validate(json.loads(json.dumps(document)), load_schema("result-v1"))
    page = page_of(document, tmp_path)
    text = text_of(page)
    top = text[: text.index("Threat model")]
    assert "alarms went off that the gate knows of: converged" in top
    assert "no alarm went off" not in text
    assert "accepted because the net is slow" in top
    assert 'class="status status-accepted"' in page
    row = text[text.rindex("converged △ accepted") :]
    assert row.startswith("converged △ accepted 0.02")
    assert "accepted because the net is slow" in row[:120]
    assert "accepted alarm: converged" in text_of(html_report([document, document]))


def test_layers_that_run_in_float_are_listed_and_a_float_network_is_called_so(tmp_path: Path) -> None:
    document = examples.document()
    layer = "fc runs as Gemm on float and float: its input is a float"
    document["precision"]["declared_float"] = [layer]
    assert f"declared float: {layer}" in text_of(page_of(document, tmp_path))
    document["precision"] |= {"status": "float", "nodes": []}
    text = text_of(page_of(document, tmp_path))
    assert "the network is declared float" in text
    assert "no node is declared integer: the network runs in float" in text


def test_results_of_other_attacks_are_no_comparison() -> None:
    one, other = examples.document(name="one"), examples.document(name="other")
    other["attacks"].insert(-1, {**other["attacks"][2], "name": "square-500"})
    assert "different attacks: " in text_of(html_report([one, other]))
    assert "different attacks: " not in text_of(html_report([one, one]))


def test_a_parity_alarm_takes_the_word_white_box_away(tmp_path: Path) -> None:
    document = examples.document()
    assert "as transfer attacks" not in page_of(document, tmp_path)
    document["alarms"][0]["status"] = "alarm"
    assert "as transfer attacks" in page_of(document, tmp_path)


def test_examples_show_class_names_and_say_how_far_the_change_is_amplified(tmp_path: Path) -> None:
    document = examples.document()
    page = page_of(document, tmp_path)
    text = text_of(page)
    assert "amplified ×5" in text  # 127 // 25
    assert page.count('src="data:image/png;base64,') == 36
    assert page.count("✕ fooled") == 8
    assert page.count("✓ survived") == 3
    assert page.count("○ wrong before the attack") == 1
    assert "Ankle boot" in text


def test_classes_are_counted_from_the_records(tmp_path: Path) -> None:
    document = examples.document()
    page = page_of(document, tmp_path)
    records = np.load(tmp_path / "records.npz")
    table = page[page.index('id="class-table"') : page.index('id="examples"')]
    for label, name in enumerate(examples.CLASS_NAMES):
        chosen = records["label"] == label
        row = table[table.index(f">{name}<") :].split("</tr>")[0]
        assert f"{100 * records['clean'][chosen].mean():.0f}\u00a0%" in row
        assert f"{100 * records['worst_case'][chosen].mean():.0f}\u00a0%" in row


def test_provenance_shows_digest_machine_and_recipe(tmp_path: Path) -> None:
    document = examples.document() | {"provenance": {"recipe": {"training": {"epochs": 12}}}}
    text = text_of(page_of(document, tmp_path))
    assert document["bundle"]["manifest_sha256"] in text
    assert "Example CPU at 2.40 GHz" in text
    assert "recipe training epochs 12" in text


def test_several_results_are_compared(tmp_path: Path) -> None:
    page = html_report(examples.comparison())
    text = text_of(page)
    assert 'id="bench-scatter"' in page
    for document in examples.comparison():
        assert document["bundle"]["name"] in text
    assert "Not drawn, for want of a latency or of a robust accuracy: fashion-cnn-float-conv2" in text
    assert "Compare with care" not in text


def test_results_that_were_not_taken_alike_are_compared_with_care() -> None:
    weaker = examples.document(name="weaker")
    weaker["threat_model"]["eps_255"] = 8.0
    weaker["environment"]["cpu"] = "Another CPU"
    text = text_of(html_report([examples.document(), weaker]))
    assert "Compare with care" in text
    assert "different threat models" in text
    assert "different machines: Example CPU at 2.40 GHz; Another CPU" in text


def test_a_bench_picture_stands_alone() -> None:
    from xml.etree import ElementTree

    picture = bench_picture(examples.comparison())
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "fashion-resnet20-w4a4" in "".join(root.itertext())
    assert "prefers-color-scheme: dark" in picture


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        bench_picture([examples.document("WRONG_ENGINE")])


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        html_report([])


def test_results_of_one_name_are_told_apart() -> None:
    results = [examples.document(name="same"), examples.document("FAIL", name="same"), examples.document(name="other")]
    for text in (html_report(results), bench_picture(results)):
        for name in ("same (1)", "same (2)", ">other<"):
            assert name in text
        assert ">same<" not in text
        assert "other (1)" not in text


def with_a_further_attack() -> dict[str, Any]:
    """A result with an attack that was made on what others left standing, and with corruptions."""
    document = examples.document()
    row = {**document["attacks"][-1], "name": "apgd-50 cross_entropy", "attacked": 1234, "fell": 17}
    document["attacks"].insert(-1, row)
    rate = {key: row[key] for key in ("images", "survivors", "interval")}
    document["corruptions"] = [
        {"kind": kind, "severity": severity, **rate, "rate": 0.9 - 0.1 * severity}
        for kind in ("noise", "jpeg")
        for severity in (1, 2)
    ]
    jsonschema.validate(json.loads(json.dumps(document)), load_schema("result-v1"))
    return document


def test_a_further_attack_says_how_many_images_it_was_given(tmp_path: Path) -> None:
    document = with_a_further_attack()
    assert "17 of the 1,234 images given fell" in text_of(page_of(document, tmp_path))
    assert "(17 of 1,234 given fell)" in result_summary(document)
    assert "given fell" not in text_of(html_report(examples.document()))
    assert "given fell" not in result_summary(examples.document())


def test_accuracy_under_corruptions_is_shown_where_it_was_seen(tmp_path: Path) -> None:
    page = page_of(with_a_further_attack(), tmp_path)
    rows = re.findall(r"<tr>.*?</tr>", page[page.index('id="corruption-table"') :].split("</table>")[0], flags=re.S)
    assert [text_of(row).split() for row in rows[1:]] == [
        ["noise", "80.0", "%", "70.0", "%"],
        ["jpeg", "80.0", "%", "70.0", "%"],
    ]
    assert "noise  80.0 %  70.0 %" in result_summary(with_a_further_attack())
    assert "corruption" not in html_report(examples.document())
