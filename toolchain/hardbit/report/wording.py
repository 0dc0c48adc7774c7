"""What the report says in words: verdicts, next steps, threat models, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hardbit_deploy.known_alarms import accepted_alarms

__all__ = [
    "VERDICTS",
    "agreement_label",
    "attack_label",
    "count",
    "headline",
    "interval",
    "milliseconds",
    "next_steps",
    "not_run_reason",
    "number",
    "percent",
    "perturbation",
    "points",
    "precision_in_words",
    "settings_line",
    "verdict_wording",
]

SPACE = "\u00a0"  # a number and its unit stay on one line
MISSING = "–"


@dataclass(frozen=True)
class VerdictWording:
    """One sentence for what was found; `exit_code` is what a CI job sees."""

    headline: str
    exit_code: int


VERDICTS: dict[str, VerdictWording] = {
    "PASS": VerdictWording("Every rule of the gate holds on the engine that ships, and no alarm went off.", 0),
    "FAIL": VerdictWording("The deployed engine breaks the gate, by more than chance explains.", 1),
    "INCONCLUSIVE": VerdictWording("The evidence does not decide: neither pass nor fail would be honest.", 75),
    "WRONG_ENGINE": VerdictWording(
        "The engine runs something else than the bundle declares, so nothing was judged.", 2
    ),
    "ENV_MISMATCH": VerdictWording("This machine is not the one that the gate speaks of.", 3),
}

ACRONYMS = ("fgsm", "pgd", "apgd", "fab", "spsa", "nes", "mifgsm")

_NAMES = {
    "square": "Square",
    "carlini_wagner": "Carlini-Wagner",
    "deepfool": "DeepFool",
    "hopskipjump": "HopSkipJump",
}

AGREEMENTS = {
    "twin_clean": "PyTorch twin, clean images",
    "twin_adversarial": "PyTorch twin, adversarial images",
    "attack_graph_clean": "attack graph, clean images",
    "attack_graph_adversarial": "attack graph, adversarial images",
    "disagreement": "attack graph, images searched for disagreement",
}


def verdict_wording(name: str) -> VerdictWording:
    """The wording of a verdict; one that this version does not know is shown by its name alone."""
    return VERDICTS.get(name, VerdictWording("This version of the report does not know this verdict.", 64))


def headline(document: Mapping[str, Any]) -> str:
    """One sentence for what was found; it does not keep quiet about alarms that the gate knows of."""
    accepted = accepted_alarms(document)
    if document["verdict"]["name"] == "PASS" and accepted:
        names = listing([alarm["name"] for alarm in accepted])
        return (
            f"Every rule of the gate holds on the engine that ships; alarms went off that the gate knows of: {names}."
        )
    return verdict_wording(document["verdict"]["name"]).headline


def next_steps(document: Mapping[str, Any]) -> list[str]:
    """What a person should do, from the verdict and from what caused it."""
    verdict = document["verdict"]["name"]
    if verdict == "PASS":
        steps = ["Ship the bundle. Keep this result as the baseline that the next one is paired with."]
        if accepted_alarms(document):
            steps.append("Say with the number which alarms were accepted: true robust accuracy may be lower still.")
        return steps
    if verdict == "FAIL":
        failed = [rule["name"] for rule in document["gate"] if rule["status"] == "fail"]
        broken = f"Rules broken: {listing(failed)}. " if failed else ""
        only_slow = failed and all(name.startswith("latency") for name in failed)
        cure = "Make the engine faster, or raise the limit" if only_slow else "Retrain, or promise less"
        return [f"Do not ship. {broken}{cure}, knowingly."]
    if verdict == "WRONG_ENGINE":
        wrong = [node["name"] for node in document["precision"]["nodes"] if not node["integer"]]
        which = f"Nodes that do not run as integer kernels: {listing(wrong)}. " if wrong else ""
        return [f"{which}Lower the graph for the runtime installed here, or install the one that it was made for."]
    if verdict == "ENV_MISMATCH":
        return ["Check on a machine that fulfils [environment] of the gate, or correct the gate."]
    return _ways_to_a_decision(document)


def _ways_to_a_decision(document: Mapping[str, Any]) -> list[str]:
    steps = []
    alarms = [alarm["name"] for alarm in document["alarms"] if alarm["status"] == "alarm"]
    if alarms:
        steps.append(f"Resolve the alarms first ({listing(alarms)}): until then robust accuracy may be overstated.")
    undecided = [rule for rule in document["gate"] if rule["status"] == "inconclusive"]
    needed = max((rule.get("images_needed") or 0 for rule in undecided), default=0)
    if needed:
        used = count(document["suite"].get("images"))
        steps.append(f"Repeat with {count(needed)} images, or widen the margin: {used} cannot see it.")
    return steps or ["Read the reasons, remove their cause and repeat the check."]


def precision_in_words(precision: Mapping[str, Any], of_what: str) -> str:
    """`4 of 4 layers`, by what was executed; a float network has no such count."""
    if precision["status"] == "float":
        return "none: declared float, as a whole"
    nodes = precision["nodes"]
    integer = sum(bool(node["integer"]) for node in nodes)
    return f"{integer} of {len(nodes)} {of_what}".strip() if nodes else "not proved"


def not_run_reason(document: Mapping[str, Any], recorded: str | None = None) -> str:
    """Why a part of the check has no numbers."""
    if recorded:
        return recorded
    if document["precision"]["status"] == "wrong":
        return "the engine executes something else than declared, and numbers would describe another program"
    if document["verdict"]["name"] == "ENV_MISMATCH":
        return "this machine is not the one that the gate speaks of"
    return "this check did not ask for it"


def perturbation(threat_model: Mapping[str, Any]) -> str:
    """The ball that the attacker moves in, in grey levels of an 8-bit image."""
    eps = number(threat_model["eps_255"])
    if threat_model["norm"] == "linf":
        return f"every pixel may change by at most {eps} of 255 grey levels (L∞)"
    if threat_model["norm"] == "l2":
        return f"all pixels together may move by a Euclidean distance of at most {eps} grey levels (L2)"
    return f"at most {eps} grey levels in the norm {threat_model['norm']}"


def attack_label(name: str) -> str:
    """`pgd-20 cross_entropy smooth` as people write it: `PGD-20 cross-entropy, smooth surrogate`."""
    if name == "worst_case":
        return "worst case of all attacks"
    first, _, rest = name.partition(" ")
    if first == "transfer":
        return f"transfer from {rest}"
    stem, dash, steps = first.partition("-")
    shown = stem.upper() if stem.lower() in ACRONYMS else _NAMES.get(stem, stem)
    first = f"{shown}{dash}{steps}"
    rest = f"{rest.removesuffix(' smooth')}, smooth surrogate" if rest.endswith(" smooth") else rest
    return f"{first} {rest}".strip().replace("_", "-")


def agreement_label(name: str) -> str:
    return AGREEMENTS.get(name, name.replace("_", " "))


def settings_line(settings: Mapping[str, Any] | None) -> str:
    """`steps 20 · step 3.125/255 · restarts 3`: what the name of an attack and the threat model do not say already."""
    told = ("norm", "eps_255", "loss", "seed", "surrogate", "queries")
    return " · ".join(_setting(key, value) for key, value in (settings or {}).items() if key not in told)


def _setting(key: str, value: Any) -> str:
    words = key.removesuffix("_255").replace("_", " ")
    if isinstance(value, list):
        return f"{words} {', '.join(str(part) for part in value)}"
    return f"{words} {number(value)}/255" if key.endswith("_255") else f"{words} {number(value)}"


def percent(share: float | None, digits: int = 1) -> str:
    return MISSING if share is None else f"{100 * share:.{digits}f}{SPACE}%"


def points(difference: float) -> str:
    """A difference of two rates: `-1.2 points`."""
    return f"{100 * difference:+.1f}{SPACE}points"


def interval(ends: Sequence[float] | None, digits: int = 1) -> str:
    """Two shares as per cent with the unit once."""
    if ends is None:
        return MISSING
    low, high = ends
    return f"{100 * low:.{digits}f}{SPACE}–{SPACE}{100 * high:.{digits}f}{SPACE}%"


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    return MISSING if value is None else f"{number(value, 3)}{SPACE}ms"


def count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def number(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits and no exponent where it can be avoided; other values as they are."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        written = f"{value:,.{decimals}f}"
        return written.rstrip("0").rstrip(".") if "." in written and digits > 3 else written
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def listing(names: Sequence[str], shown: int = 4) -> str:
    """`a, b, c and 3 more`."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
