"""What a gate may say, and how it is refused: by line, by key, with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gate import BaselineRule, Gate, KnownAlarm, RateRule, Settings, load_gate, parse_gate
from hardbit_deploy.results import load_schema
from hardbit_deploy.versions import version_satisfies

FULL = """\
# the promise
[clean]
reference = 0.84

[robust]
reference = 0.66
margin = 0.02

[baseline]
result = "earlier/result.json"

[latency]
max_p50_ms = 5

[environment]
machine = "x86_64"
onnxruntime = ">=1.20,<2"
min_grade = "B"

[settings]
confidence = 0.9

[[known_alarms]]
name = "white_box_beats_black_box"
reason = "2-bit activations"
most = 0.3

[[known_alarms]]
name = "eps_curve"
reason = "the same"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "gate.toml"
    path.write_text(text)
    return path


def test_a_full_gate_is_read_with_its_defaults(tmp_path: Path) -> None:
    gate = load_gate(write(tmp_path, FULL))
    assert gate.clean == RateRule(0.84, margin=0.01)
    assert gate.robust == RateRule(0.66, margin=0.02)
    assert gate.baseline == BaselineRule(tmp_path / "earlier/result.json", margin=0.01)
    assert gate.latency is not None
    assert gate.latency.max_p50_ms == 5.0
    assert gate.environment is not None
    assert gate.environment.min_grade == "B"
    assert gate.settings == Settings(confidence=0.9, power=0.8)
    assert gate.known_alarms == (
        KnownAlarm("white_box_beats_black_box", "2-bit activations", 0.3),
        KnownAlarm("eps_curve", "the same"),
    )


def test_an_empty_gate_promises_nothing(tmp_path: Path) -> None:
    assert load_gate(write(tmp_path, "")) == parse_gate({}) == Gate()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[robust]\nreferense = 0.66\n", r"gate\.toml:2: robust\.referense: unknown key; did you mean reference\?"),
        ("[robust]\nreference = 0.66\n\n[speed]\nx = 1\n", r"gate\.toml:4: speed: unknown key; known here: clean, "),
        ("[robust]\nreference = '66 %'\n", r"gate\.toml:2: robust\.reference: must be a rate .* found '66 %'"),
        ("[robust]\nreference = 66\n", r"gate\.toml:2: robust\.reference: must be a rate above 0, such as 0\.66"),
        ("[robust]\nreference = true\n", r"robust\.reference: must be a rate"),
        ("[clean]\nreference = 0.8\nmargin = 0\n", r"gate\.toml:3: clean\.margin: .* no number of images can see"),
        ("[clean]\nreference = 0.84\nmargin = 1e-17\n", r"margin: must be a rate such as 0\.01 for one point"),
        ("[clean]\nreference = 0.1\nmargin = 0.2\n", r"clean\.margin: a margin of 0\.2 leaves nothing"),
        ("[clean]\nmargin = 0.01\n", r"gate\.toml:1: clean: lacks the key reference"),
        ("clean = 0.8\n", r"gate\.toml:1: clean: must be a table; write it as \[clean\]"),
        ("[baseline]\nresult = 3\n", r"baseline\.result: must be a text"),
        ("[latency]\n", r"latency: limits nothing"),
        ("[latency]\nmax_p50_ms = -1\n", r"latency\.max_p50_ms: must be a number of milliseconds above 0"),
        (f"[latency]\nmax_p50_ms = 1{'0' * 400}\n", r"latency\.max_p50_ms: must be a number of milliseconds"),
        ("[environment]\nmin_grade = 'D'\n", r"min_grade: must be \"A\", \"B\" or \"C\""),
        ("[environment]\nonnxruntime = 'latest'\n", r"onnxruntime: must be versions such as"),
        ("[settings]\nconfidence = 95\n", r"settings\.confidence: must be a probability"),
        (
            "[attack]\nsurrogates = ['smoth']\n",
            r"gate\.toml:2: attack\.surrogates: must be a list of some of straight-",
        ),
        ("[attack]\nmin_square_queries = 0\n", r"attack\.min_square_queries: must be a whole number of at least 1"),
        ("[known_alarms]\nname = 'x'\n", r"known_alarms: must be a list of tables; write each as \[\[known_alarms\]\]"),
        ("[[known_alarms]]\nname = 'converged'\n", r"gate\.toml:1: known_alarms: lacks the key reason"),
        (
            "[[known_alarms]]\nname = 'x'\nreason = 'y'\n",
            r"gate\.toml:2: known_alarms\.name: must be one of gradients,",
        ),
        (
            "[[known_alarms]]\nname = 'converged'\nreason = 'y'\n" * 2,
            r"known_alarms\.name: converged is accepted twice",
        ),
        ("[robust\n", r"gate\.toml: not valid TOML: .*line 1"),
    ],
)
def test_a_wrong_gate_is_refused_by_place_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HardbitError, match=message) as caught:
        load_gate(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_gate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match="cannot be read"):
        load_gate(tmp_path / "none.toml")


def test_the_gate_of_a_bundle_names_its_origin() -> None:
    with pytest.raises(HardbitError, match=r"^manifest\.json: gate\.robust\.margin: must be"):
        parse_gate({"robust": {"reference": 0.6, "margin": "1"}}, where="manifest.json: gate")


@pytest.mark.parametrize(
    "table",
    [
        {"robust": {"reference": 1}},
        {"robust": {"reference": 0.66, "margin": 0.02}, "settings": {"confidence": 0.99, "power": 0.9}},
        {"latency": {"max_p99_ms": 3}, "environment": {"machine": "aarch64", "onnxruntime": ">=1.20, <2"}},
        {"baseline": {"result": "earlier", "margin": 0.01}},
        {"robust": {}},
        {"robust": {"reference": 0}},
        {"robust": {"reference": "0.66"}},
        {"robust": {"reference": 0.66, "margin": 0}},
        {"robust": {"reference": 0.66, "margn": 0.1}},
        {"robust": 0.66},
        {"speed": {}},
        {"latency": {}},
        {"latency": {"max_p50_ms": 0}},
        {"environment": {"min_grade": "D"}},
        {"environment": {"onnxruntime": "1.20"}},
        {"baseline": {"result": ""}},
        {"settings": {"confidence": 0.5}},
        {"attack": {"norm": "l2", "min_square_queries": 500, "surrogates": ["straight-through", "smooth"]}},
        {"attack": {"surrogates": []}},
        {"attack": {"min_square_queries": 0}},
        {"known_alarms": []},
        {"known_alarms": [{"name": "eps_curve", "reason": "masked", "most": 0.4}]},
        {"known_alarms": [{"name": "eps_curve"}]},
        {"known_alarms": [{"name": "parity", "reason": "never mind"}]},
        {"known_alarms": [{"name": "eps_curve", "reason": "masked", "most": 1}]},
        {"known_alarms": {"name": "eps_curve", "reason": "masked"}},
    ],
)
def test_the_published_schema_and_the_reader_agree(table: dict[str, Any]) -> None:
    schema = load_schema("manifest-v1")["properties"]["gate"]
    is_valid = jsonschema.Draft202012Validator(schema).is_valid(table)
    try:
        parse_gate(table)
    except HardbitError:
        assert not is_valid
    else:
        assert is_valid


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("1.32.0", ">=1.20", True),
        ("1.9.1", ">=1.20", False),
        ("1.20", ">=1.20.0", True),
        ("2.0.0", ">=1.20,<2", False),
        ("1.22.0.dev1", "==1.22", True),
        ("1.22.1", "!=1.22.1", False),
        ("1.22.1", "<= 1.22.1 , > 1.0", True),
    ],
)
def test_versions_compare_by_number_not_by_letter(version: str, specifier: str, expected: Any) -> None:
    assert version_satisfies(version, specifier) is expected
