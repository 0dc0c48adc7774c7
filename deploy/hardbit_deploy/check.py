"""The one harness: load a bundle, prove what its engine executes, attack it, time it, judge it, write it all down.

`hardbit check`, `hardbit run` and `hardbit-deploy check` all end here, so host and board cannot disagree about what a
verdict means. An engine that executes something else than declared is neither attacked nor timed: its numbers would be
those of another program. Nor is one on a machine that the gate does not speak of.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import hardbit_deploy
from hardbit_deploy.agreement_search import agreement_row
from hardbit_deploy.baseline import Baseline, load_baseline
from hardbit_deploy.bundle import Bundle, load_bundle
from hardbit_deploy.chunk_store import forget_chunks
from hardbit_deploy.clock_lock import refuse_unlockable_clocks
from hardbit_deploy.energy import EnergySettings
from hardbit_deploy.engines import executed_precision
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.evaluate import Evaluation, evaluate, runnable
from hardbit_deploy.gate import AttackRule, Gate, load_gate, parse_gate
from hardbit_deploy.known_alarms import accept_known
from hardbit_deploy.latency import LatencyReport, LatencySettings
from hardbit_deploy.manifest import MANIFEST_NAME
from hardbit_deploy.preflight import describe_machine, grade
from hardbit_deploy.results import FORMAT, SCHEMA_VERSION, write_result
from hardbit_deploy.storage import refused_by_system
from hardbit_deploy.suite import Suite, named_suite
from hardbit_deploy.taps import compare_bundle_layers
from hardbit_deploy.timing import Timing, TimingOptions, measure_timing
from hardbit_deploy.transfer_bundles import open_sources, with_transfers
from hardbit_deploy.verdict import environment_problems, judge

__all__ = ["CheckOptions", "Progress", "check", "describe_environment", "work_folder"]


class Progress(Protocol):
    """Told of every step: what is being done, how much of it is done, and of how much."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class CheckOptions:
    """What a user may change. None leaves the setting that the bundle declares.

    `latency` holds settings to measure with, a report that was measured already, or None for no timing. `energy` is
    measured where the board has sensors for it, beside timings only.
    """

    suite: str | None = None
    steps: int | None = None
    restarts: int | None = None
    square_queries: int | None = None
    seed: int | None = None
    images: int | None = None  # the first so many of the bundle's
    workers: int | None = None  # threads of the attacks; None for one a core
    transfer: tuple[Path, ...] = ()  # bundles of other networks, whose adversarial images are made here and tried
    taps: bool = False  # compare engine and canonical graph layer by layer
    latency: LatencySettings | LatencyReport | None = field(default_factory=LatencySettings)
    energy: EnergySettings | None = field(default_factory=EnergySettings)
    lock_clocks: bool = False  # a Jetson's, while it is timed, and put back afterwards
    power_mode: int | None = None  # of nvpmodel, with locked clocks


def check(
    bundle_path: str | Path,
    gate: str | Path | Gate | None = None,
    out_dir: str | Path | None = None,
    options: CheckOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the harness and return the result document; with `out_dir` it is written there with its arrays.

    `gate` is a gate.toml or a Gate; None takes the gate of the bundle. A run that is interrupted leaves what it has
    measured in `work_folder(out_dir)`, and the same call goes on from there. Raises HardbitError for every mistake of
    the user: a bundle that is refused, a gate that cannot be read, a baseline of other images or other attacks.
    """
    clock, created = time.monotonic(), datetime.now(timezone.utc)
    options = options or CheckOptions()
    report = progress or _say_nothing
    report("verify the bundle", 0, 1)
    if options.lock_clocks:
        refuse_unlockable_clocks(options.power_mode)
    bundle = load_bundle(bundle_path)
    promise, origin = _gate_of(bundle, gate)
    suite = _suite_of(bundle, options)
    sources = open_sources(bundle, options.transfer)
    document = _head(bundle, suite, options, sources) | {
        "created": created.isoformat(timespec="seconds"),
        "gate_source": origin,
    }
    _refuse_other_attacks(promise.attack, document)
    baseline = _baseline_of(promise, bundle, document)
    if out_dir is not None:
        _refuse_unusable_folder(Path(out_dir), bundle)
    report("prove executed precision", 0, 1)
    document["precision"] = executed_precision(bundle).to_document()
    document["environment"] = environment = describe_environment()
    named = dict.fromkeys(("python", "numpy", "onnxruntime", bundle.manifest.target))
    versions = {name: environment.get(name) or "missing" for name in named}
    document["versions"] = {"hardbit_deploy": hardbit_deploy.__version__, **versions}

    evaluation, timing = None, None
    if document["precision"]["status"] != "wrong" and not environment_problems(promise, environment):
        work_dir = None if out_dir is None else work_folder(out_dir)
        with with_transfers(bundle, sources, suite, options.images, report) as attacked:
            evaluation = evaluate(
                attacked,
                suite,
                progress=report,
                work_dir=work_dir,
                workers=options.workers,
                limit=options.images,
            )
        document |= evaluation.to_document()
        document["suite"] |= {"transfer": _source_names(bundle, sources)}
        document["alarms"] = accept_known(document["alarms"], promise.known_alarms)
        document["resumed_images"] = evaluation.resumed_images
        document["agreement"] = [*document["agreement"], agreement_row(bundle, options.images, suite.seed, report)]
        if options.taps:
            document["taps"] = compare_bundle_layers(bundle, options.images, evaluation.examples, report).to_document()
        timing = _timing(bundle, options, document, report)
        document |= timing.parts
    rules, verdict = judge(document, evaluation.records if evaluation else {}, promise, baseline)
    document["gate"] = [rule.to_document() for rule in rules]
    document["verdict"] = {"name": verdict.name, "exit_code": verdict.exit_code, "reasons": list(verdict.reasons)}
    document["duration_s"] = round(time.monotonic() - clock, 3)
    if out_dir is None:
        return document
    return _write(Path(out_dir), document, evaluation, timing.report if timing else None)


def work_folder(out_dir: str | Path) -> Path:
    """Where an unfinished run keeps what it has measured; removed when its result is written."""
    return Path(out_dir) / "unfinished"


def describe_environment() -> dict[str, Any]:
    """Preflight's description of this machine with its grade."""
    environment = describe_machine()
    found = grade(environment)
    return environment | {"grade": found.letter, "grade_reasons": list(found.reasons)}


def _gate_of(bundle: Bundle, gate: str | Path | Gate | None) -> tuple[Gate, str]:
    """The gate and where it comes from."""
    if isinstance(gate, Gate):
        return gate, "recipe"
    if gate is not None:
        return load_gate(gate), str(gate)
    return parse_gate(bundle.manifest.gate, f"{MANIFEST_NAME}: gate"), "bundle"


def _refuse_other_attacks(rule: AttackRule | None, document: Mapping[str, Any]) -> None:
    """A bundle says itself how it is attacked; a gate that says so too is not to be kept by a smaller ball."""
    if rule is None:
        return
    ball, suite = document["threat_model"], document["suite"]
    if rule.norm not in (None, ball["norm"]) or rule.eps_255 not in (None, ball["eps_255"]):
        promised = f"{rule.norm or ball['norm']} {rule.eps_255 or ball['eps_255']:g}/255"
        raise HardbitError(
            f"the bundle is attacked in {ball['norm']} {ball['eps_255']:g}/255, the gate speaks of {promised}",
            where="gate: attack",
            remedy="build the bundle for that threat model",
        )
    for name in ("steps", "restarts", "square_queries"):
        least = getattr(rule, f"min_{name}")
        if least is not None and suite[name] < least:
            raise HardbitError(
                f"the suite '{suite['name']}' has {suite[name]} {name.replace('_', ' ')}, the gate asks for {least}",
                where=f"gate: attack.min_{name}",
                remedy=f"give --{name.replace('_', '-')} {least}, or a stronger suite",
            )
    missing = set(rule.surrogates or ()) - set(suite["surrogates"])
    if missing:
        raise HardbitError(
            f"the suite '{suite['name']}' attacks without the {missing.pop()} surrogate, which the gate asks for",
            where="gate: attack.surrogates",
            remedy="leave the suite as the bundle declares it, or build the bundle with that surrogate",
        )


def _suite_of(bundle: Bundle, options: CheckOptions) -> Suite:
    """The suite that was asked for; one that is changed loses its name, for a name says how hard it was."""
    manifest = bundle.manifest
    declared = runnable(named_suite(options.suite, manifest.bits) if options.suite else manifest.suite, bundle)
    wanted = {
        "steps": options.steps,
        "restarts": options.restarts,
        "square_queries": options.square_queries,
        "seed": options.seed,
    }
    changes: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    suite = replace(declared, **changes)
    return suite if replace(suite, seed=declared.seed) == declared else replace(suite, name="custom")


def _baseline_of(gate: Gate, bundle: Bundle, document: dict[str, Any]) -> Baseline | None:
    """The baseline that the gate names, refused at once where no comparison will be possible."""
    if gate.baseline is None:
        return None
    baseline = load_baseline(gate.baseline.result)
    baseline.refuse_other_conditions(document)
    images = document["suite"]["images"]
    baseline.refuse_other_images(np.arange(images, dtype=np.int64), bundle.labels[:images])
    return baseline


def _refuse_unusable_folder(out_dir: Path, bundle: Bundle) -> None:
    """Before hours of work: results need a folder that can be written, and would spoil a bundle that they lie in."""
    home = bundle.path.resolve()
    if home in (out_dir.resolve(), *out_dir.resolve().parents):
        raise HardbitError(
            "lies in the bundle, which may hold nothing but its own files",
            where=str(out_dir),
            remedy="choose another folder for the results",
        )
    with refused_by_system("results cannot be written", out_dir, "choose another folder"):
        out_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(out_dir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _head(bundle: Bundle, suite: Suite, options: CheckOptions, sources: Sequence[Bundle]) -> dict[str, Any]:
    """A result document with everything that is known before anything runs."""
    manifest = bundle.manifest
    if options.images is not None and options.images < 1:
        raise HardbitError(f"{options.images} images are none", remedy="give at least one")
    described = manifest.document["evaluation"]
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "bundle": {
            "name": manifest.name,
            "target": manifest.target,
            "profile": manifest.profile,
            "manifest_sha256": bundle.manifest_sha256,
            "network": dict(manifest.document["network"]),
        },
        "evaluation": {
            "data_set": described["data_set"],
            "split": described["split"],
            "images_sha256": manifest.files[manifest.images_file].sha256,
            "labels_sha256": manifest.files[manifest.labels_file].sha256,
        },
        "provenance": dict(manifest.provenance),
        "threat_model": manifest.threat_model.to_document(),
        "suite": {
            **suite.to_document(),
            "images": min(options.images or manifest.image_count, manifest.image_count),
            "transfer": _source_names(bundle, sources),
        },
        "agreement": [],
        "attacks": [],
        "eps_curve": [],
        "alarms": [],
        "latency": None,
        "files": {},
    }


def _source_names(bundle: Bundle, sources: Sequence[Bundle]) -> list[str]:
    """The networks whose adversarial images are tried: those that the bundle carries, and those that are made here."""
    return [source.name for source in bundle.manifest.transfers] + [source.manifest.name for source in sources]


def _timing(bundle: Bundle, options: CheckOptions, document: Mapping[str, Any], report: Progress) -> Timing:
    """Timed after the attacks, whose threads are gone by then, on a machine that is described anew."""
    wanted = TimingOptions(options.latency, options.energy, options.lock_clocks, options.power_mode)
    robust = next((row["rate"] for row in document["attacks"] if row["name"] == "worst_case"), None)
    return measure_timing(bundle.path, wanted, robust, report)


def _write(
    out_dir: Path, document: dict[str, Any], evaluation: Evaluation | None, timings: LatencyReport | None
) -> dict[str, Any]:
    written = write_result(
        out_dir,
        document,
        records=evaluation.records if evaluation else None,
        examples=evaluation.examples if evaluation else None,
        latency=timings.arrays if timings else None,
    )
    forget_chunks(work_folder(out_dir))
    return written


def _say_nothing(stage: str, done: int, total: int) -> None:
    """Progress for callers that do not care."""
