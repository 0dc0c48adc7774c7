"""A result document with its per-image records, as the harness writes them: the start of many tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.statistics import wilson_interval


def rate_entry(name: str, survived: NDArray[np.bool_], seconds: float = 1.5) -> dict[str, Any]:
    images, survivors = len(survived), int(np.count_nonzero(survived))
    return {
        "name": name,
        "images": images,
        "survivors": survivors,
        "rate": survivors / images,
        "interval": list(wilson_interval(survivors, images)),
        "seconds": seconds,
        "settings": {},
    }


def outcome(images: int, survivors: int) -> NDArray[np.bool_]:
    survived = np.zeros(images, bool)
    survived[:survivors] = True
    return survived


def example_latency(p50_ms: float = 1.0, spread_ms: float = 0.02) -> dict[str, Any]:
    return {
        "protocol": "latency-v1",
        "metric": "query_ms",
        "grade": "B",
        "grade_reasons": ["the clocks cannot be read"],
        "processes": 5,
        "queries": 3310,
        "p50_ms": p50_ms,
        "p90_ms": p50_ms * 1.2,
        "p99_ms": p50_ms * 1.5,
        "min_ms": p50_ms * 0.9,
        "cv": 0.05,
        "p50_interval_ms": [p50_ms - spread_ms, p50_ms + spread_ms],
        "p90_interval_ms": [p50_ms * 1.2 - spread_ms, p50_ms * 1.2 + spread_ms],
        "p99_interval_ms": [p50_ms * 1.5 - spread_ms, p50_ms * 1.5 + spread_ms],
        "settings": {"threads": 1},
    }


def example_run(
    images: int = 2000, clean: int = 1700, robust: int = 1338
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A sound run on `images` images of which `clean` are right and `robust` survive every attack."""
    records = {
        "index": np.arange(images, dtype=np.int64),
        "label": np.arange(images, dtype=np.int64) % 10,
        "clean": outcome(images, clean),
        "survived/pgd-20_cross_entropy": outcome(images, robust + 10),
        "worst_case": outcome(images, robust),
    }
    document = {
        "format": "hardbit-result",
        "schema_version": 1,
        "bundle": {
            "name": "fashion-cnn-w4a4",
            "target": "onnxruntime",
            "profile": "onnxruntime",
            "manifest_sha256": "ab" * 32,
            "network": {"architecture": "lenet", "classes": 10, "input_shape": [1, 28, 28]},
        },
        "created": "2025-01-02T03:04:05+00:00",
        "duration_s": 12.3,
        "versions": {"hardbit_deploy": "0.1.0", "numpy": "2.0.0", "onnxruntime": "1.22.0"},
        "environment": {
            "machine": "x86_64",
            "cpu": "AMD EPYC",
            "cores": 2,
            "affinity": [0, 1],
            "governor": None,
            "foreign_load": 0.01,
            "os": "Linux",
            "python": "3.11.7",
            "onnxruntime": "1.22.0",
            "grade": "B",
            "grade_reasons": ["the clocks cannot be read"],
        },
        "evaluation": {"data_set": "fashion-mnist", "split": "test"},
        "threat_model": {"norm": "linf", "eps_255": 25.0},
        "suite": {
            "name": "standard",
            "steps": 20,
            "restarts": 3,
            "losses": ["cross_entropy", "margin"],
            "seed": 0,
            "images": images,
        },
        "precision": {
            "status": "integer",
            "nodes": [
                {
                    "name": "conv1",
                    "op": "Conv",
                    "executed": "QLinearConv",
                    "operand_types": ["uint8", "int8"],
                    "provider": "CPUExecutionProvider",
                    "integer": True,
                }
            ],
            "problems": [],
        },
        "agreement": [
            {
                "name": "twin_clean",
                "images": images,
                "label_flips": 0,
                "flips_upper_bound": 0.0015,
                "max_logit_difference": 0.0,
            }
        ],
        "attacks": [
            rate_entry("clean", records["clean"]),
            rate_entry("pgd-20 cross_entropy", records["survived/pgd-20_cross_entropy"]),
            rate_entry("worst_case", records["worst_case"]),
        ],
        "eps_curve": [
            {"eps_255": 12.5, "images": images, "survivors": clean, "rate": clean / images, "interval": [0.8, 0.9]}
        ],
        "alarms": [
            {"name": "parity", "status": "pass", "value": 1.0, "threshold": 0.99, "reason": "all labels agree"},
            {"name": "converged", "status": "not_run", "value": None, "threshold": None, "reason": "quick suite"},
        ],
        "latency": example_latency(),
        "gate": [],
        "verdict": {"name": "PASS", "exit_code": 0, "reasons": ["no rules"]},
        "files": {},
    }
    return document, records
