"""The lines that end a run."""

from __future__ import annotations

import pytest

import report_examples as examples
from hardbit.report import summary


@pytest.mark.parametrize("verdict", examples.VERDICTS)
def test_the_verdict_is_last_with_its_reasons(verdict: str) -> None:
    document = examples.document(verdict)
    text = summary(document, width=300, colour=False)
    end = text[text.index(f"{verdict} (exit code {document['verdict']['exit_code']})") :]
    for reason in document["verdict"]["reasons"]:
        assert reason in end
    assert "What to do: " in end.splitlines()[-1]


def test_every_attack_has_its_count_and_interval() -> None:
    document = examples.document()
    text = summary(document, width=200, colour=False)
    for attack in document["attacks"]:
        assert f"{attack['survivors']:,} of {attack['images']:,}" in text
        assert f"{100 * attack['interval'][0]:.1f}\u00a0–" in text


def test_what_did_not_run_says_why() -> None:
    text = summary(examples.document("WRONG_ENGINE"), width=300, colour=False)
    for part in ("Attacks", "alarms", "latency"):
        (line,) = [line for line in text.splitlines() if line.startswith(part)]
        assert "not run: the engine executes something else than declared" in line
    assert "3 of 4 layers run on integer kernels" in text


def test_a_rule_that_the_reasons_do_not_tell_is_listed() -> None:
    text = summary(examples.document("INCONCLUSIVE"), width=300, colour=False)
    assert "gate: robust" in text
    assert "gate:" not in summary(examples.document("PASS"), width=300, colour=False)


def test_an_accepted_alarm_is_told_with_the_verdict() -> None:
    text = summary(examples.document_with_an_accepted_alarm(), width=300, colour=False)
    (line,) = [line for line in text.splitlines() if line.startswith("alarms")]
    assert line.split() == ["alarms", "accepted:", "converged"]
    end = text[text.index("PASS (exit code 0)") :]
    assert "no alarm went off" not in end
    assert "alarms went off that the gate knows of: converged" in end
    assert "accepted because the net is slow" in end
    assert "Say with the number which alarms were accepted" in end


def test_a_float_network_says_so() -> None:
    document = examples.document()
    document["precision"] = {"status": "float", "nodes": [], "problems": [], "declared_float": ["fc runs as Gemm"]}
    (line,) = [line for line in summary(document, width=200, colour=False).splitlines() if line.startswith("precision")]
    assert line.endswith("none: declared float, as a whole")


def test_colour_is_for_terminals() -> None:
    assert "\x1b[" not in summary(examples.document(), colour=False)
    assert "\x1b[" in summary(examples.document(), colour=True)


def test_no_colour_where_the_user_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in summary(examples.document())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in summary(examples.document())


@pytest.mark.parametrize(("columns", "widest"), [("60", 60), ("300", 100)])
def test_the_width_is_the_terminals_as_far_as_lines_are_easy_to_read(
    monkeypatch: pytest.MonkeyPatch, columns: str, widest: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lengths = [len(line) for line in summary(examples.document("INCONCLUSIVE"), colour=False).splitlines()]
    assert widest - 15 < max(lengths) <= widest


def test_a_reason_that_is_wrapped_stays_indented() -> None:
    document = examples.document("INCONCLUSIVE")
    lines = summary(document, width=60, colour=False).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("INCONCLUSIVE"))
    end = next(i for i, line in enumerate(lines) if line.startswith("What to do"))
    reasons = [line for line in lines[start:end] if line.startswith("  ")]
    assert " ".join(line.strip() for line in reasons) == " ".join(document["verdict"]["reasons"])


def test_names_are_not_taken_for_mark_up() -> None:
    document = examples.document(name="[red]bold[/red] :smile:")
    document["attacks"][1]["name"] = "[bold]x[/bold]"
    text = summary(document, width=200, colour=False)
    assert "[red]bold[/red] :smile:" in text
    assert "[bold]x[/bold]" in text


def test_no_line_is_longer_than_the_terminal() -> None:
    assert max(map(len, summary(examples.document("INCONCLUSIVE"), width=80, colour=False).splitlines())) <= 80
