"""From evidence to a verdict: PASS, FAIL, INCONCLUSIVE, WRONG_ENGINE or ENV_MISMATCH, each with its reasons.

Order of judgement: an engine that runs something else than declared; a machine for which nothing was promised; rules
that fail outright; alarms, which make every other number doubtful, unless the gate knows of them; rules that cannot
decide.

A rate rule is one-sided non-inferiority. It passes when the lower bound lies above reference - margin, fails when the
upper bound lies below it, and is inconclusive between, naming the number of images that would decide. The bounds widen
as images get fewer, so with few images a large distance from the line still decides, and only that. They are score
bounds (Wilson, Tango): close to the gate's confidence from some hundreds of images on, nominal below that. Several
rules need no correction for multiplicity: all of them must pass (intersection-union).

Boundary: judges a result document; runs nothing, reads no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from hardbit_deploy.baseline import Baseline
from hardbit_deploy.gate import Gate, LatencyRule, RateRule, load_gate, parse_gate
from hardbit_deploy.known_alarms import accepted_alarms, alarm_in_words
from hardbit_deploy.statistics import NoninferiorityResult, noninferiority_paired, noninferiority_rate
from hardbit_deploy.versions import version_satisfies

__all__ = ["EXIT_CODES", "GateRule", "Verdict", "environment_problems", "judge", "load_gate", "parse_gate"]

EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 75, "WRONG_ENGINE": 2, "ENV_MISMATCH": 3}
FULL_PROTOCOL = "latency-v1"
NO_RULES = "the gate has no rules: the engine is what it says it is, and no alarm was raised"
NO_RULES_BUT_ALARMS = "the gate has no rules: the engine is what it says it is"

_RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
_OUTCOMES = {"clean": ("clean", "clean accuracy"), "robust": ("worst_case", "robust accuracy")}


@dataclass(frozen=True)
class GateRule:
    """One judged rule.

    `bound` is the one-sided bound that must clear the line for a pass (lower for a rate, upper for a latency),
    `opposite_bound` the one that must miss it for a fail; both at the gate's confidence, None where nothing was seen.
    """

    name: str
    status: str  # "pass", "fail" or "inconclusive"
    reason: str
    estimate: float | None = None
    bound: float | None = None
    opposite_bound: float | None = None
    reference: float | None = None
    margin: float | None = None
    images: int | None = None
    images_needed: int | None = None
    details: Mapping[str, float | int] | None = None

    def to_document(self) -> dict[str, Any]:
        """As it stands in result.json."""
        fields = asdict(self)
        if self.details is None:
            del fields["details"]
        return fields


@dataclass(frozen=True)
class Verdict:
    """What a CI job acts on."""

    name: str
    exit_code: int
    reasons: tuple[str, ...]


def judge(
    document: Mapping[str, Any], records: Mapping[str, NDArray[Any]], gate: Gate, baseline: Baseline | None = None
) -> tuple[list[GateRule], Verdict]:
    """Judge a result document (without its own `gate` and `verdict`) and its per-image records by a gate.

    Raises HardbitError when the gate's baseline holds other images or other attacks.
    """
    precision = document["precision"]
    if precision["status"] == "wrong":
        return [], _verdict("WRONG_ENGINE", precision["problems"])
    mismatches = environment_problems(gate, document["environment"])
    mismatches += _timing_problems(gate, document)
    if not document["attacks"]:
        return [], _verdict("ENV_MISMATCH", mismatches) if mismatches else _verdict("INCONCLUSIVE", ["nothing was run"])
    rules = list(_judge_rules(document, records, gate, baseline))
    if mismatches:
        return rules, _verdict("ENV_MISMATCH", mismatches)
    if failed := _reasons(rules, "fail"):
        return rules, _verdict("FAIL", failed)
    doubts = [f"alarm {alarm['name']}: {alarm['reason']}" for alarm in document["alarms"] if alarm["status"] == "alarm"]
    if precision["status"] == "not_run":
        doubts.insert(0, "executed precision was not proved")
    if doubts or (open_rules := _reasons(rules, "inconclusive")):
        return rules, _verdict("INCONCLUSIVE", doubts or open_rules)
    accepted = [f"accepted alarm {alarm['name']}: {alarm_in_words(alarm)}" for alarm in accepted_alarms(document)]
    kept = _reasons(rules, "pass") or [NO_RULES_BUT_ALARMS if accepted else NO_RULES]
    return rules, _verdict("PASS", kept + accepted)


def environment_problems(gate: Gate, environment: Mapping[str, Any]) -> list[str]:
    """What makes this machine another one than the gate speaks of, in words; known before anything is run."""
    rule = gate.environment
    problems = []
    if rule and rule.machine and environment["machine"] != rule.machine:
        problems.append(f"this machine is {environment['machine']}, the gate speaks of {rule.machine}")
    for key, name in _RUNTIMES.items():
        version, wanted = environment.get(key), getattr(rule, key, None)
        if wanted and (version is None or not version_satisfies(version, wanted)):
            problems.append(f"{name} is {version or 'missing'}, the gate speaks of {wanted}")
    return problems


def _timing_problems(gate: Gate, document: Mapping[str, Any]) -> list[str]:
    """Grade and power mode are asked of timings, so they are judged where there are some."""
    latency, rule = document["latency"], gate.environment
    if latency is None or rule is None:
        return []
    problems = []
    locked, machine = document.get("clock_lock") or {}, document["environment"]
    mode = locked.get("power_mode") or machine.get("power_mode")
    if rule.power_mode is not None and mode != rule.power_mode:
        problems.append(f"timings are of power mode {mode or 'unknown'}, the gate asks for {rule.power_mode}")
    if rule.min_grade is not None and latency["grade"] > rule.min_grade:
        reasons = "; ".join(latency["grade_reasons"])
        problems.append(f"timings are of grade {latency['grade']}, the gate asks for {rule.min_grade}: {reasons}")
    return problems


def _judge_rules(
    document: Mapping[str, Any], records: Mapping[str, NDArray[Any]], gate: Gate, baseline: Baseline | None
) -> Iterable[GateRule]:
    counts = {attack["name"]: attack for attack in document["attacks"]}
    for name in ("clean", "robust"):
        rule = getattr(gate, name)
        if rule is not None:
            yield _judge_rate(name, counts.get(_OUTCOMES[name][0]), rule, gate)
    if gate.baseline is not None and baseline is None:
        reason = f"the baseline {gate.baseline.result} was not loaded"
        yield GateRule("baseline", "inconclusive", reason, margin=gate.baseline.margin)
    elif gate.baseline is not None and baseline is not None:
        baseline.refuse_other_conditions(document)
        for name in ("clean", "robust"):
            yield _judge_baseline(name, records, gate.baseline.margin, gate, baseline)
    if gate.latency is not None:
        yield from _judge_latency(document["latency"], gate.latency)


def _judge_rate(name: str, attack: Mapping[str, Any] | None, rule: RateRule, gate: Gate) -> GateRule:
    noun = _OUTCOMES[name][1]
    if attack is None:
        reason = f"{noun} was not measured"
        return GateRule(name, "inconclusive", reason, reference=rule.reference, margin=rule.margin)
    settings = gate.settings
    seen = noninferiority_rate(
        attack["survivors"], attack["images"], rule.reference, rule.margin, settings.confidence, settings.power
    )
    promise = f"the promise of {_percent(rule.reference)} less {_points(rule.margin)}"
    return _rate_rule(name, f"{noun} {_percent(seen.estimate)}", promise, seen, rule.reference, rule.margin, gate)


def _judge_baseline(
    name: str, records: Mapping[str, NDArray[Any]], margin: float, gate: Gate, baseline: Baseline
) -> GateRule:
    outcome, noun = _OUTCOMES[name]
    comparison = baseline.compare(records, outcome)
    seen = noninferiority_paired(comparison, margin, gate.settings.confidence, gate.settings.power)
    subject = (
        f"{noun} {_signed_points(seen.estimate)} against the baseline "
        f"(lost {comparison.lost:,}, gained {comparison.gained:,} of {comparison.images:,} images)"
    )
    details = {
        "lost": comparison.lost,
        "gained": comparison.gained,
        "discordance": comparison.discordance,
        "mcnemar_p": comparison.p_value,
    }
    promise = f"the promise of the baseline less {_points(margin)}"
    return _rate_rule(f"baseline_{name}", subject, promise, seen, 0.0, margin, gate, details)


def _rate_rule(
    name: str,
    subject: str,
    promise: str,
    seen: NoninferiorityResult,
    reference: float,
    margin: float,
    gate: Gate,
    details: Mapping[str, float | int] | None = None,
) -> GateRule:
    """Word a non-inferiority result: the bound that decided, or how many images would."""
    show = _signed_points if reference == 0 else _percent
    confidence = f"{100 * gate.settings.confidence:g} %"
    if seen.status == "pass":
        reason = f"{subject} ({confidence} lower bound {show(seen.lower_bound)}) keeps {promise}"
    elif seen.status == "fail":
        reason = f"{subject} ({confidence} upper bound {show(seen.upper_bound)}) breaks {promise}"
    else:
        span = f"bounds {show(seen.lower_bound)} and {show(seen.upper_bound)} at {confidence}"
        needed = "no number of images" if seen.images_needed is None else f"{seen.images_needed:,} images"
        reason = f"{subject} ({span}) on {seen.images:,} images cannot decide {promise}: it takes {needed}"
    return GateRule(
        name=name,
        status=seen.status,
        reason=reason,
        estimate=seen.estimate,
        bound=seen.lower_bound,
        opposite_bound=seen.upper_bound,
        reference=reference,
        margin=margin,
        images=seen.images,
        images_needed=seen.images_needed,
        details=details,
    )


def _judge_latency(latency: Mapping[str, Any] | None, rule: LatencyRule) -> Iterable[GateRule]:
    """A limit is kept when the whole interval over processes lies below it, broken when it lies above."""
    for percentile in ("p50", "p90", "p99"):
        limit = getattr(rule, f"max_{percentile}_ms")
        if limit is not None:
            yield _judge_percentile(percentile, latency, limit)


def _judge_percentile(percentile: str, latency: Mapping[str, Any] | None, limit: float) -> GateRule:
    name = f"latency_{percentile}"
    if latency is None:
        return GateRule(name, "inconclusive", "latency was not measured", reference=limit)
    value, (low, high) = latency[f"{percentile}_ms"], latency[f"{percentile}_interval_ms"]
    subject = f"{percentile} latency {value:.3g} ms ({low:.3g} to {high:.3g} over processes)"
    if latency["protocol"] != FULL_PROTOCOL:
        status, reason = "inconclusive", f"{subject} was measured by {latency['protocol']}, not by {FULL_PROTOCOL}"
    elif high <= limit:
        status, reason = "pass", f"{subject} keeps the limit of {limit:g} ms"
    elif low <= limit:
        status, reason = "inconclusive", f"{subject} straddles the limit of {limit:g} ms"
    elif latency["grade"] == "C":  # others slow us down, never speed us up: only a pass can be believed
        status, reason = "inconclusive", f"{subject} exceeds the limit of {limit:g} ms, but under foreign load"
    else:
        status, reason = "fail", f"{subject} exceeds the limit of {limit:g} ms"
    return GateRule(name, status, reason, estimate=value, bound=high, opposite_bound=low, reference=limit)


def _reasons(rules: Iterable[GateRule], status: str) -> list[str]:
    return [rule.reason for rule in rules if rule.status == status]


def _verdict(name: str, reasons: Iterable[str]) -> Verdict:
    return Verdict(name, EXIT_CODES[name], tuple(reasons))


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _points(margin: float) -> str:
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def _signed_points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"
