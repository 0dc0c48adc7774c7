"""Alarms that a gate knows of: which may be accepted, and up to what."""

from __future__ import annotations

from typing import Any

import pytest

from hardbit_deploy.alarm import ACCEPTABLE
from hardbit_deploy.gate import KnownAlarm, parse_gate
from hardbit_deploy.known_alarms import accept_known, accepted_alarms, alarm_in_words


def alarm(name: str = "white_box_beats_black_box", status: str = "alarm", value: float | None = 0.2) -> dict[str, Any]:
    return {"name": name, "status": status, "value": value, "threshold": 0.01, "reason": "40 of 200 images"}


@pytest.mark.parametrize(
    ("most", "value", "status"),
    [(None, 0.2, "accepted"), (0.2, 0.2, "accepted"), (0.19, 0.2, "alarm"), (0.19, None, "accepted")],
)
def test_an_alarm_is_accepted_up_to_what_the_gate_says(most: float | None, value: float | None, status: str) -> None:
    rule = KnownAlarm("white_box_beats_black_box", "known to mask", most)
    (judged,) = accept_known([alarm(value=value)], [rule])
    assert judged["status"] == status
    if status == "alarm":
        assert judged["reason"] == "40 of 200 images; that is more than the 19 % that the gate accepts"
    else:
        assert (judged["accepted_because"], judged["accepted_up_to"]) == ("known to mask", most)
        assert alarm_in_words(judged) == "40 of 200 images; accepted because known to mask"


def test_only_alarms_that_went_off_are_touched() -> None:
    alarms = [alarm(status="pass"), alarm("converged"), alarm("surrogates", "not_run", None)]
    judged = accept_known(alarms, [KnownAlarm("white_box_beats_black_box", "known"), KnownAlarm("surrogates", "known")])
    assert judged == alarms
    assert accepted_alarms({"alarms": judged}) == []


@pytest.mark.parametrize("name", ["parity", "determinism", "logits", "feasible"])
def test_a_broken_measurement_cannot_be_accepted(name: str) -> None:
    assert name not in ACCEPTABLE
    with pytest.raises(Exception, match="the others are defects to mend"):
        parse_gate({"known_alarms": [{"name": name, "reason": "never mind"}]})
