"""A result document as JUnit XML, the one report format that every CI server shows.

A broken promise is a failure. What could not be decided or believed (an inconclusive rule, an alarm) is an error, so
that no server paints it green; what was not run is skipped, and so is an alarm that the gate knows of: seen by whoever
looks, and no failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from hardbit_deploy.known_alarms import alarm_in_words

__all__ = ["junit_xml"]

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # production 2 of XML 1.0


@dataclass(frozen=True)
class _Case:
    group: str
    name: str
    outcome: str  # "passed", "failure", "error" or "skipped"
    message: str
    seconds: float = 0.0


def junit_xml(document: Mapping[str, Any]) -> str:
    """One test suite: a case for the executed precision, each agreement, alarm and gate rule, and the verdict."""
    cases = list(_cases(document))
    attributes = {
        "name": f"hardbit {document['bundle']['name']}",
        "tests": str(len(cases)),
        "failures": str(sum(case.outcome == "failure" for case in cases)),
        "errors": str(sum(case.outcome == "error" for case in cases)),
        "skipped": str(sum(case.outcome == "skipped" for case in cases)),
        "time": f"{document.get('duration_s') or 0.0:.3f}",
    }
    root = ElementTree.Element("testsuites", _clean(attributes))
    suite = ElementTree.SubElement(root, "testsuite", _clean({**attributes, "timestamp": document["created"]}))
    for case in cases:
        fields = {"classname": f"hardbit.{case.group}", "name": case.name, "time": f"{case.seconds:.3f}"}
        element = ElementTree.SubElement(suite, "testcase", _clean(fields))
        if case.outcome == "passed":
            ElementTree.SubElement(element, "system-out").text = _NOT_XML.sub("?", case.message)
        else:
            detail = ElementTree.SubElement(element, case.outcome, _clean({"message": case.message}))
            detail.text = _NOT_XML.sub("?", case.message)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cases(document: Mapping[str, Any]) -> Iterator[_Case]:
    precision = document["precision"]
    outcome = {"integer": "passed", "float": "passed", "wrong": "failure"}.get(precision["status"], "skipped")
    problems = "; ".join(precision["problems"])
    found = (
        "declared float, as a whole" if precision["status"] == "float" else f"{len(precision['nodes'])} integer nodes"
    )
    yield _Case("precision", "executed precision", outcome, problems or found)
    for entry in document["agreement"]:
        message = f"{entry['label_flips']} of {entry['images']} labels differ"
        yield _Case("agreement", entry["name"], "passed", message)  # the parity alarm judges it
    for attack in document["attacks"]:
        message = f"{attack['survivors']} of {attack['images']} images survive"
        yield _Case("attacks", attack["name"], "passed", message, attack.get("seconds") or 0.0)
    for alarm in document["alarms"]:
        outcome = {"pass": "passed", "alarm": "error"}.get(alarm["status"], "skipped")
        yield _Case("alarms", alarm["name"], outcome, alarm_in_words(alarm))
    for rule in document["gate"]:
        outcome = {"pass": "passed", "fail": "failure"}.get(rule["status"], "error")
        yield _Case("gate", rule["name"], outcome, rule["reason"])
    verdict = document["verdict"]
    outcome = {"PASS": "passed", "FAIL": "failure", "WRONG_ENGINE": "failure"}.get(verdict["name"], "error")
    yield _Case("verdict", "verdict", outcome, f"{verdict['name']}: {'; '.join(verdict['reasons'])}")


def _clean(attributes: Mapping[str, str]) -> dict[str, str]:
    """ElementTree escapes markup but lets characters through that no XML document may hold."""
    return {key: _NOT_XML.sub("?", value) for key, value in attributes.items()}
