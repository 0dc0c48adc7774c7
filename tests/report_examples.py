"""Results for the tests of the report: plausible documents and arrays for each of the five verdicts.

The numbers are drawn, not measured; counts, rates, intervals and arrays of one document agree with each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hardbit_deploy.gate import KnownAlarm
from hardbit_deploy.known_alarms import accept_known
from hardbit_deploy.statistics import clopper_pearson_upper, wilson_interval
from hardbit_deploy.verdict import judge, parse_gate

CLASS_NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
EPS_255 = 25
GATE = {
    "clean": {"reference": 0.84},
    "robust": {"reference": 0.66},
    "latency": {"max_p50_ms": 5.0},
    "environment": {"machine": "x86_64"},
}
CURVE = {6.25: 0.814, 12.5: 0.768, 25.0: 0.671, 50.0: 0.402, 100.0: 0.061, 128.0: 0.012}
VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE", "WRONG_ENGINE", "ENV_MISMATCH")

# Outlines in a square of 28: enough to tell a bag from a boot.
OUTLINES = {
    0: [(8, 4), (11, 6), (16, 6), (19, 4), (26, 8), (24, 13), (20, 11), (20, 25), (7, 25), (7, 11), (3, 13), (1, 8)],
    1: [(9, 2), (18, 2), (20, 26), (15, 26), (14, 9), (13, 26), (7, 26)],
    3: [(10, 2), (17, 2), (18, 11), (22, 26), (5, 26), (9, 11)],
    6: [(9, 3), (18, 3), (22, 6), (25, 24), (21, 25), (19, 12), (19, 26), (8, 26), (8, 12), (6, 25), (2, 24), (5, 6)],
    7: [(2, 14), (8, 12), (14, 17), (25, 18), (26, 22), (2, 22)],
    8: [(10, 4), (17, 4), (19, 10), (26, 11), (27, 25), (1, 25), (2, 11), (8, 10)],
    9: [(6, 3), (15, 3), (15, 14), (26, 18), (26, 24), (5, 24)],
}


def document(verdict: str = "PASS", name: str = "example-w4a4", seed: int = 0) -> dict[str, Any]:
    """A result document that hardbit's own judge gives the `verdict` asked for."""
    result = _measured(name, seed)
    CHANGES[verdict](result)
    return judged(result)


def document_with_an_accepted_alarm() -> dict[str, Any]:
    """A PASS whose gate knows of an alarm that went off."""
    result = _measured("masked", 0)
    alarm = next(alarm for alarm in result["alarms"] if alarm["name"] == "converged")
    alarm |= {"status": "alarm", "value": 0.02, "reason": "twice the steps gain 2 points"}
    result["alarms"] = accept_known(result["alarms"], [KnownAlarm("converged", "the net is slow")])
    return judged(result)


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """The same document with the rules and the verdict that its numbers deserve."""
    rules, verdict = judge(result, {}, parse_gate(GATE))
    gate = [{key: value for key, value in asdict(rule).items() if key != "details"} for rule in rules]
    return result | {"gate": gate, "verdict": asdict(verdict) | {"reasons": list(verdict.reasons)}}


def write_artifacts(result: dict[str, Any], folder: Path, channels: int = 1, seed: int = 0) -> Path:
    """The npz files that `result` names, in `folder`; returns the folder."""
    rates = {attack["name"]: attack["rate"] for attack in result["attacks"]}
    if rates:
        np.savez(folder / "records.npz", **_records(rates["clean"], rates["worst_case"], 2000, seed))
        np.savez(folder / "examples.npz", **_examples(channels, seed))
    if result["latency"]:
        np.savez(folder / "latency.npz", query_ms=query_times(seed))
    return folder


def query_times(seed: int = 0) -> NDArray[np.float32]:
    """Five processes of 662 queries, each with its own luck, and now and then a slow query."""
    rng = np.random.default_rng(seed)
    base = 0.212 + rng.normal(0, 0.006, (5, 1))
    times = base + rng.gamma(2.0, 0.006, (5, 662)) + (rng.random((5, 662)) < 0.02) * rng.gamma(2.0, 0.05, (5, 662))
    return times.astype(np.float32)


def comparison() -> list[dict[str, Any]]:
    """Results of several widths: faster as a rule with fewer bits, and less robust with few of the activations."""
    table = [
        ("fashion-cnn-w8a8", (8, 8), 0.851, 0.682, 0.246),
        ("fashion-cnn-w4a4", (4, 4), 0.850, 0.669, 0.214),
        ("fashion-cnn-w2a4", (2, 4), 0.835, 0.617, 0.209),
        ("fashion-resnet20-w4a4", (4, 4), 0.872, 0.701, 1.84),
        ("fashion-cnn-w2a2", (2, 2), 0.832, 0.158, 0.205),
    ]
    results = [document("WRONG_ENGINE", "fashion-cnn-float-conv2")]
    for name, (weights, activations), clean, robust, p50 in table:
        result = _measured(name, 0)
        result["bundle"]["network"]["bits"] |= {"weights": weights, "activations": activations}
        result["attacks"] = [_attack("clean", clean), _attack("worst_case", robust)]
        result["latency"] |= _quantiles(p50, p50 * 1.2, p50 * 1.5)
        results.append(judged(result))
    return results


def _measured(name: str, seed: int) -> dict[str, Any]:
    times = query_times(seed)
    p50, p90, p99 = (float(v) for v in np.quantile(times, [0.5, 0.9, 0.99]))
    return {
        "format": "hardbit-result",
        "schema_version": 1,
        "bundle": {
            "name": name,
            "target": "onnxruntime",
            "profile": "onnxruntime",
            "manifest_sha256": "9f2b6c1de0a84f7395c2f0a6b1d47e8890ab34cd56ef78129034ab56cd78ef90",
            "network": {
                "architecture": "lenet",
                "classes": 10,
                "class_names": list(CLASS_NAMES),
                "input_shape": [1, 28, 28],
                "bits": {"weights": 4, "activations": 4, "first_layer": 8, "last_layer": 8},
            },
        },
        "created": "2025-03-14T09:26:53+00:00",
        "duration_s": 74.2,
        "versions": {"hardbit_deploy": "0.1.0", "onnxruntime": "1.32.0", "numpy": "2.4.6", "python": "3.11.9"},
        "environment": {
            "machine": "x86_64",
            "cpu": "Example CPU at 2.40 GHz",
            "cores": 2,
            "governor": None,
            "load": [0.21, 0.18, 0.09],
            "python": "3.11.9",
            "onnxruntime": "1.32.0",
        },
        "threat_model": {"norm": "linf", "eps_255": float(EPS_255)},
        "suite": {
            "name": "custom",
            "steps": 20,
            "restarts": 3,
            "losses": ["cross_entropy", "margin"],
            "seed": 0,
            "images": 2000,
        },
        "precision": {"status": "integer", "nodes": _nodes(), "problems": []},
        "agreement": [
            _agreement("twin_clean", 0, 0.0),
            _agreement("twin_adversarial", 1, 0.0625),
            _agreement("attack_graph_clean", 0, 9.5e-7),
            _agreement("attack_graph_adversarial", 0, 9.5e-7),
        ],
        "attacks": [
            _attack("clean", 0.8515, 0.4),
            _attack("fgsm", 0.7105, 1.2),
            _attack("pgd-20 cross_entropy", 0.6745, 31.0, steps=20, restarts=3),
            _attack("pgd-20 margin", 0.6720, 30.6, steps=20, restarts=3),
            _attack("worst_case", 0.6690),
        ],
        "eps_curve": [{"eps_255": eps, **_counts(rate, 1000)} for eps, rate in CURVE.items()],
        "alarms": [
            _alarm("parity", 1.0, 0.99, "engine and attack graph agree on 100.00 % of labels, clean and adversarial"),
            _alarm("determinism", 0, 0, "three passes and batches of 1 and 64 give the same labels on 256 images"),
            _alarm(
                "gradients", 0.004, 0.05, "0.4 % of images have an all-zero or non-finite gradient under either loss"
            ),
            _alarm("iterative_beats_one_step", -0.0385, 0.005, "PGD leaves 3.9 points fewer survivors than FGSM"),
            _alarm("eps_curve", 0.012, 0.1, "accuracy falls at every step and ends at 1.2 %, not above chance"),
            _alarm("feasible", 0, 0, "every adversarial image is within 25 grey levels and in [0, 255]"),
            _alarm("converged", 0.0015, 0.005, "twice the steps gain 0.15 points"),
        ],
        "latency": {
            "protocol": "latency-v1",
            "metric": "query_ms",
            "grade": "B",
            "grade_reasons": ["clocks are not locked: no cpufreq governor is visible"],
            "processes": 5,
            "queries": int(times.size),
            **_quantiles(p50, p90, p99),
            "min_ms": float(times.min()),
            "cv": float(times.std() / times.mean()),
            "settings": {"threads": 1, "warm_up_s": 2.0, "batch": 1},
        },
        "gate": [],
        "verdict": {},
        "files": {"records": "records.npz", "examples": "examples.npz", "latency": "latency.npz"},
    }


def _break(result: dict[str, Any]) -> None:
    """What a network shows that was trained without an adversary."""
    rates = (0.9035, 0.148, 0.0085, 0.006, 0.005)
    result["attacks"] = [attack | _counts(rate, 2000) for attack, rate in zip(result["attacks"], rates, strict=True)]
    curve = (0.41, 0.11, 0.005, 0.0, 0.0, 0.0)
    result["eps_curve"] = [point | _counts(rate, 1000) for point, rate in zip(result["eps_curve"], curve, strict=True)]


def _doubt(result: dict[str, Any]) -> None:
    """Too few images for the margin, and one alarm."""
    result["suite"]["images"] = 200
    result["attacks"] = [attack | _counts(attack["rate"], 200) for attack in result["attacks"]]
    reason = "twice the steps gain 1.5 points: the attack has not converged"
    result["alarms"][-1] = _alarm("converged", 0.015, 0.005, reason, "alarm")


def _fall_back_to_float(result: dict[str, Any]) -> None:
    result["precision"]["nodes"][1] |= {"executed": "Conv", "operand_types": ["float32", "float32"], "integer": False}
    problem = "conv2: declared integer, but the runtime executes Conv on float32"
    result["precision"] |= {"status": "wrong", "problems": [problem]}
    result |= {"attacks": [], "agreement": [], "eps_curve": [], "alarms": [], "latency": None, "files": {}}


def _move_elsewhere(result: dict[str, Any]) -> None:
    result["environment"]["machine"] = "aarch64"
    result |= {"attacks": [], "agreement": [], "eps_curve": [], "alarms": [], "latency": None, "files": {}}


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "PASS": lambda result: None,
    "FAIL": _break,
    "INCONCLUSIVE": _doubt,
    "WRONG_ENGINE": _fall_back_to_float,
    "ENV_MISMATCH": _move_elsewhere,
}


def _nodes() -> list[dict[str, Any]]:
    kinds = {"conv1": "Conv", "conv2": "Conv", "fc1": "Gemm", "fc2": "Gemm"}
    return [
        {
            "name": name,
            "op": op,
            "executed": "QLinearConv" if op == "Conv" else "QGemm",
            "operand_types": ["uint8", "int8"],
            "provider": "CPUExecutionProvider",
            "integer": True,
        }
        for name, op in kinds.items()
    ]


def _counts(rate: float, images: int) -> dict[str, Any]:
    survivors = round(rate * images)
    interval = list(wilson_interval(survivors, images))
    return {"images": images, "survivors": survivors, "rate": survivors / images, "interval": interval}


def _attack(name: str, rate: float, seconds: float | None = None, **settings: Any) -> dict[str, Any]:
    return {"name": name, **_counts(rate, 2000), "seconds": seconds, "settings": settings}


def _quantiles(p50: float, p90: float, p99: float) -> dict[str, Any]:
    times = {"p50": p50, "p90": p90, "p99": p99}
    ends = {f"{name}_interval_ms": [ms * 0.982, ms * 1.021] for name, ms in times.items()}
    return {f"{name}_ms": ms for name, ms in times.items()} | ends


def _agreement(name: str, flips: int, difference: float) -> dict[str, Any]:
    return {
        "name": name,
        "images": 2000,
        "label_flips": flips,
        "flips_upper_bound": clopper_pearson_upper(flips, 2000),
        "max_logit_difference": difference,
    }


def _alarm(name: str, value: float, threshold: float, reason: str, status: str = "pass") -> dict[str, Any]:
    return {"name": name, "status": status, "value": value, "threshold": threshold, "reason": reason}


def _records(clean_rate: float, robust_rate: float, images: int, seed: int) -> dict[str, NDArray[Any]]:
    """Per-image outcomes whose totals are the rates, unevenly spread over the classes as on real clothes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(CLASS_NAMES), images)
    ease = np.array([0.1, 0.75, -0.2, 0.3, -0.1, 0.5, -1.0, 0.45, 0.6, 0.55])[label] + rng.normal(0, 0.55, images)
    order = np.argsort(-ease)
    clean, worst_case = np.zeros(images, bool), np.zeros(images, bool)
    clean[order[: round(clean_rate * images)]] = True
    worst_case[order[: round(robust_rate * images)]] = True
    return {"index": np.arange(images), "label": label, "clean": clean, "worst_case": worst_case}


def _examples(channels: int, seed: int) -> dict[str, NDArray[Any]]:
    """Twelve images: eight that the attack fools, three that survive, one that was wrong before."""
    rng = np.random.default_rng(seed)
    label = np.array([6, 0, 9, 3, 8, 7, 6, 9, 1, 8, 7, 6])
    fooled_as = np.array([0, 6, 7, 4, 0, 5, 2, 7, 1, 8, 7, 4])
    before = label.copy()
    before[11] = 4
    clean = np.stack([_garment(int(kind), channels, rng) for kind in label])
    blobs = rng.normal(size=(len(label), channels, 7, 7)).repeat(4, 2).repeat(4, 3) + rng.normal(0, 0.6, clean.shape)
    step = np.sign(blobs) * EPS_255 * (rng.random(clean.shape) < 0.85)
    adversarial = np.clip(clean + step, 0, 255).astype(np.uint8)
    attack = np.array(["pgd-20 margin", "pgd-20 cross_entropy"])[rng.integers(0, 2, len(label))]
    return {
        "clean": clean,
        "adversarial": adversarial,
        "label": label,
        "clean_prediction": before,
        "adversarial_prediction": fooled_as,
        "attack": attack,
    }


def _garment(kind: int, channels: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    canvas = Image.new("L", (112, 112), 0)
    shade = int(rng.integers(120, 215))
    ImageDraw.Draw(canvas).polygon([(4 * x, 4 * y) for x, y in OUTLINES[kind]], fill=shade)
    shape = np.asarray(canvas.resize((28, 28), Image.Resampling.BOX), dtype=np.float64)
    folds = (
        1
        + 0.18 * np.sin(np.arange(28) * rng.uniform(0.5, 1.1) + rng.uniform(0, 6))[None, :]
        + rng.normal(0, 0.06, (28, 28))
    )
    tint = rng.uniform(0.6, 1.0, (channels, 1, 1)) if channels > 1 else 1.0
    return np.clip(shape * folds * tint * np.ones((channels, 1, 1)), 0, 255).astype(np.uint8)


def hostile(text: str = "<script>document.title='owned'</script>") -> dict[str, Any]:
    """A document in which everything that a stranger may name carries `text`."""
    result = copy.deepcopy(document("INCONCLUSIVE"))
    result["bundle"] |= {"name": text, "target": text}
    result["bundle"]["network"]["class_names"] = [f"{text}{index}" for index in range(10)]
    result["precision"]["nodes"][0] |= {"name": text, "executed": text, "operand_types": [text]}
    result["verdict"]["reasons"] = [text]
    result["attacks"][1] |= {"name": f"fgsm {text}", "settings": {text: text}}
    result["alarms"][0] |= {"name": text, "reason": text}
    result["gate"][0] |= {"name": text, "reason": text}
    result["environment"][text] = text
    result["latency"]["grade_reasons"] = [text]
    return result
