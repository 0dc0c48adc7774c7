"""Alarms that a gate knows of: still raised, still shown with their numbers, and no reason to be inconclusive.

Some networks mask their gradients by nature: with 2-bit activations a search by queries finds much that gradients do
not. Whoever ships such a network with its number under all attacks says so in the gate, with the reason and the most
that is accepted; beyond that the alarm is one again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hardbit_deploy.gate import KnownAlarm

__all__ = ["ACCEPTED", "accept_known", "accepted_alarms", "alarm_in_words"]

ACCEPTED = "accepted"  # the status of an alarm that went off and that the gate knows of


def accept_known(alarms: Iterable[Mapping[str, Any]], known: Iterable[KnownAlarm]) -> list[dict[str, Any]]:
    """The alarms of a result document; those that went off as the gate knows get the status `accepted`, and why."""
    rules = {rule.name: rule for rule in known}
    judged = []
    for alarm in alarms:
        rule = rules.get(alarm["name"]) if alarm["status"] == "alarm" else None
        if rule is None:
            judged.append(dict(alarm))
        elif rule.most is not None and alarm["value"] is not None and alarm["value"] > rule.most:
            beyond = f"{alarm['reason']}; that is more than the {100 * rule.most:g} % that the gate accepts"
            judged.append({**alarm, "reason": beyond})
        else:
            judged.append({**alarm, "status": ACCEPTED, "accepted_because": rule.reason, "accepted_up_to": rule.most})
    return judged


def accepted_alarms(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those alarms of a result that went off and that the gate knows of."""
    return [alarm for alarm in document["alarms"] if alarm["status"] == ACCEPTED]


def alarm_in_words(alarm: Mapping[str, Any]) -> str:
    """The reason of an alarm, and why the gate accepts it where it does."""
    why = alarm.get("accepted_because")
    return f"{alarm['reason']}; accepted because {why}" if why else str(alarm["reason"])
