"""Cards for the tests of the zoo: plausible, not measured; counts, rates and intervals agree with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hardbit.zoo.card import Attack, Card, card_text
from hardbit_deploy.statistics import wilson_interval

RATES = {
    "clean": 0.86,
    "fgsm": 0.75,
    "pgd-20 cross_entropy": 0.69,
    "pgd-20 margin": 0.68,
    "pgd-20 margin smooth": 0.67,
    "square-1500": 0.70,
    "transfer fashion-cnn-float": 0.78,
    "worst_case": 0.66,
}


def attack(name: str, rate: float, images: int = 2000) -> Attack:
    survivors = round(rate * images)
    return Attack(
        name=name,
        images=images,
        survivors=survivors,
        rate=survivors / images,
        interval=wilson_interval(survivors, images),
    )


def document(name: str = "example-w4a4", weights: int = 4, activations: int = 4, **changes: Any) -> dict[str, Any]:
    """A card as plain data; `changes` replace top-level keys."""
    ends = 32 if (weights, activations) == (32, 32) else 8
    attacks = [attack(*row).model_dump(mode="json") for row in RATES.items()]
    return {
        "format": "hardbit-card",
        "schema_version": 1,
        "name": name,
        "notes": ["One seed."],
        "network": {"architecture": "lenet", "parameters": 436_202, "classes": 10, "input_shape": [1, 28, 28]},
        "bits": {"weights": weights, "activations": activations, "first_layer": ends, "last_layer": ends},
        "data": {"set": "fashion-mnist", "provenance": "Fashion-MNIST train", "images": 60_000, "sha256": "ab" * 32},
        "evaluation": {"set": "fashion-mnist", "split": "test", "images": 2000, "published": 10_000},
        "threat_model": {"norm": "linf", "eps_255": 25.0},
        "suite": {"name": "custom", "steps": 20, "restarts": 3, "square_queries": 1500},
        "verdict": "PASS",
        "attacks": attacks,
        "worst_attack": "pgd-20 margin smooth",
        "agreement": [{"name": "twin_clean", "images": 2000, "label_flips": 0, "max_logit_difference": 0.0}],
        "alarms": [{"name": "parity", "status": "pass", "reason": "0 of 2000 labels differ"}],
        "engine": {
            "target": "onnxruntime",
            "runtime": "onnxruntime 1.32.0",
            "bytes": 444_384,
            "integer_layers": 0 if ends == 32 else 4,
            "float_layers": [{"name": "conv1", "reason": "the recipe says so"}] if ends == 32 else [],
        },
        "latency": {
            "protocol": "latency-v1",
            "metric": "query_ms",
            "grade": "B",
            "p50_ms": 0.0214,
            "p90_ms": 0.0227,
            "p99_ms": 0.0286,
            "processor": "AMD EPYC",
        },
        "training": {
            "seed": 0,
            "threads": 1,
            "batch_size": 128,
            "epochs": 14,
            "seconds": 780.0,
            "phases": [
                {
                    "epochs": 14,
                    "adversary": "pgd-7",
                    "loss": "cross_entropy",
                    "eps_255": 25.0,
                    "learning_rate": 0.003,
                    "schedule": "one-cycle",
                    "frozen": False,
                    "weights": weights,
                    "activations": activations,
                    "adversarial_accuracy": 0.73,
                }
            ],
        },
        "files": {"weights.safetensors": 1_752_256, "bundle/engine.onnx": 444_384},
        "provenance": {
            "measured": "2025-01-02T03:04:05+00:00",
            "command": f"hardbit run models/{name}/recipe.toml --retrain --publish",
            "manifest_sha256": "cd" * 32,
            "weights_sha256": "ef" * 32,
            "versions": {"onnxruntime": "1.32.0"},
        },
        **changes,
    }


def card(*args: Any, **changes: Any) -> Card:
    return Card.model_validate(document(*args, **changes))


def write_model(folder: Path, name: str, made: Card | None) -> Path:
    """A folder of a model below `folder`, with a card or without."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "recipe.toml").write_text("")
    if made is not None:
        (place / "card.json").write_text(card_text(made))
    return place
