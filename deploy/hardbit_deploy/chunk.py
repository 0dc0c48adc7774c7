"""Everything that is measured on one chunk of images, as plain arrays: what is stored, resumed from, and added up.

Every attack of the suite is made on all images of the chunk that the engine gets right, independently of what other
attacks found, so that each row of the result stands for itself; the worst case is the AND of them. Alarms that cost
extra attacks are measured on the first images of the data set only (see `Suite`).

Boundary: measures, never judges, and knows nothing of files or of other chunks.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks import AttackOutcome, ThreatModel, fgsm, keeps_label, pgd, random_start
from hardbit_deploy.attacks.pgd import start_stream
from hardbit_deploy.engines.base import Target
from hardbit_deploy.suite import Suite

__all__ = ["MAX_EXAMPLES", "Chunk", "Measurements", "curve_radii_255", "measure_chunk", "work_in_image_steps"]

MAX_EXAMPLES = 12
EXAMPLE_IMAGES = 512  # pictures to look at come from the first so many, so that their number does not grow
Measurements = dict[str, NDArray[Any]]
_Climb = Callable[..., AttackOutcome]  # pgd through one target
Report = Callable[[int, str], None]  # image-steps done since the last call, and what is being done


@dataclass(frozen=True)
class Chunk:
    """Images `first` to `first + n - 1` of the data set, and what the training framework's twin said of them."""

    first: int
    images: NDArray[np.uint8]  # (n, channels, height, width)
    labels: NDArray[np.int64]  # (n,)
    twin_clean_logits: NDArray[np.float32] | None
    twin_adversarial_images: NDArray[np.uint8] | None
    twin_adversarial_logits: NDArray[np.float32] | None

    @property
    def indices(self) -> NDArray[np.int64]:
        return np.arange(self.first, self.first + len(self.images), dtype=np.int64)

    def among_first(self, count: int) -> int:
        """How many of this chunk's images, from its start, are among the first `count` of the data set."""
        return min(max(count - self.first, 0), len(self.images))


def curve_radii_255(suite: Suite, threat_model: ThreatModel, values_per_image: int) -> tuple[float, ...]:
    """The eps curve's radii, rising: multiples of eps up to the one at which an image can be made uniform grey."""
    grey = threat_model.grey_radius(values_per_image)
    multiples = {factor * threat_model.eps_255 for factor in suite.eps_factors}
    return (*sorted(radius for radius in multiples if 0 < radius < grey), grey)


def work_in_image_steps(chunk_images: int, first: int, suite: Suite, radii: int) -> int:
    """A rough count of attack steps in a chunk, for progress: as if no image ever fell."""
    curve = min(max(suite.curve_images - first, 0), chunk_images) * radii
    convergence = min(max(suite.convergence_images - first, 0), chunk_images) * 3 * len(suite.losses)
    return (chunk_images * suite.restarts * len(suite.losses) + curve + convergence) * suite.steps + chunk_images


def measure_chunk(
    target: Target, chunk: Chunk, threat_model: ThreatModel, suite: Suite, report: Report = lambda *_: None
) -> Measurements:
    """Clean pass, agreement, attacks, alarms. The keys are:

    `index`, `label` int64 (n,), `clean`, `survived/<attack>`, `worst_case` bool (n,); `seconds/<attack>` float64 ();
    `same_bits` bool (n,), whether the attack graph's logits stood for the engine's within PGD;
    `agreement/<name>` float64 (images, label flips, largest difference); `logits`, `feasible`, `determinism`,
    `gradients/<case>`, `converged` int64 counts; `curve` bool (radii, m); `examples/...` for up to 12 images.
    """
    measured: Measurements = {"index": chunk.indices, "label": chunk.labels}
    started = time.perf_counter()
    clean_logits = target.engine.infer(chunk.images)
    clean = keeps_label(clean_logits, chunk.labels)
    measured["clean"] = clean
    measured["seconds/clean"] = np.asarray(time.perf_counter() - started)
    measured["logits"] = _count_bad_logits(clean_logits)
    _measure_determinism(target, chunk, suite, measured)
    report(len(chunk.images), "clean")

    same_bits = _measure_agreement(target, chunk, clean_logits, measured)
    climb = functools.partial(pgd, target.engine, target.gradient, same_bits=same_bits)
    best = _attack(target, climb, chunk, clean_logits, threat_model, suite, measured, report)
    if not _compare_attacked(target, best.adversarial[clean], measured) and same_bits:
        # Equal before the attack, unequal on what it found: the shortcut was not allowed, so it is made again without.
        same_bits = False
        climb = functools.partial(pgd, target.engine, target.gradient)
        best = _attack(target, climb, chunk, clean_logits, threat_model, suite, measured, report)
        _compare_attacked(target, best.adversarial[clean], measured)
    measured["same_bits"] = np.full(len(clean), same_bits)
    measured["worst_case"] = best.survived
    _measure_feasibility(target, chunk, threat_model, best, clean, measured)
    _measure_gradients(target, chunk, threat_model, suite, clean_logits, clean, measured)
    _measure_curve(climb, chunk, threat_model, suite, clean, measured, report)
    _measure_convergence(climb, chunk, threat_model, suite, best.survived, measured, report)
    _pick_examples(chunk, clean_logits, clean, best, measured)
    return {name: np.asarray(value) for name, value in measured.items()}


@dataclass
class _WorstCase:
    """Per image, the adversarial image that did most harm, and the attack that made it."""

    adversarial: NDArray[np.uint8]
    survived: NDArray[np.bool_]
    margin: NDArray[np.float32]
    prediction: NDArray[np.int64]
    attack: NDArray[np.str_]

    def take(self, name: str, rows: NDArray[np.int64], outcome: AttackOutcome) -> None:
        """The first attack that fools an image has it; among those that do not, the one with the lowest margin."""
        fools = ~outcome.survived & self.survived[rows]
        closer = outcome.survived & self.survived[rows] & (outcome.margin < self.margin[rows])
        chosen = fools | closer
        places = rows[chosen]
        self.adversarial[places] = outcome.adversarial[chosen]
        self.margin[places] = outcome.margin[chosen]
        self.prediction[places] = outcome.logits[chosen].argmax(axis=1)
        self.attack[places] = name
        self.survived[rows] &= outcome.survived


def _attack(
    target: Target,
    climb: _Climb,
    chunk: Chunk,
    clean_logits: NDArray[np.float32],
    threat_model: ThreatModel,
    suite: Suite,
    measured: Measurements,
    report: Report,
) -> _WorstCase:
    clean = measured["clean"]
    rows = np.flatnonzero(clean)
    images, labels, indices = chunk.images[rows], chunk.labels[rows], chunk.indices[rows]
    best = _WorstCase(
        chunk.images.copy(),
        clean.copy(),
        np.full(len(clean), np.inf, np.float32),
        clean_logits.argmax(axis=1),
        np.full(len(clean), "clean", dtype="<U32"),
    )

    def record(name: str, attack: Callable[[], AttackOutcome]) -> None:
        started = time.perf_counter()
        outcome = attack()
        survived = np.zeros(len(clean), np.bool_)
        survived[rows] = outcome.survived
        measured[f"survived/{name}"] = survived
        measured[f"seconds/{name}"] = np.asarray(time.perf_counter() - started)
        best.take(name, rows, outcome)

    engine, gradient = target.engine, target.gradient
    first_loss = suite.losses[0]
    record(
        "fgsm",
        lambda: fgsm(engine, gradient, images, labels, threat_model, loss=first_loss, clean_logits=clean_logits[rows]),
    )
    for loss in suite.losses:

        def attack(loss: str = loss) -> AttackOutcome:
            return climb(
                images,
                labels,
                threat_model,
                steps=suite.steps,
                restarts=suite.restarts,
                loss=loss,
                seed=suite.seed,
                indices=indices,
            )

        record(suite.pgd_name(loss), attack)
        report(len(clean) * suite.restarts * suite.steps, suite.pgd_name(loss))
    return best


def _count_bad_logits(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows that look like probabilities, rows that are not finite, all rows."""
    finite = np.isfinite(logits).all(axis=1)
    probabilities = finite & (logits >= 0).all(axis=1) & (np.abs(logits.sum(axis=1, dtype=np.float64) - 1) < 1e-3)
    return np.array([probabilities.sum(), (~finite).sum(), len(logits)], np.int64)


def _measure_determinism(target: Target, chunk: Chunk, suite: Suite, measured: Measurements) -> None:
    images = chunk.images[: chunk.among_first(suite.determinism_images)]
    runs = [target.engine.infer(images).argmax(axis=1) for _ in range(3)]
    runs.append(
        np.array([int(target.engine.infer(images[row : row + 1]).argmax()) for row in range(len(images))], np.int64)
    )
    changed = np.zeros(len(images), np.bool_)
    for run in runs[1:]:
        changed |= run != runs[0]
    measured["determinism"] = np.array([changed.sum(), len(images)], np.int64)


def _measure_agreement(target: Target, chunk: Chunk, clean_logits: NDArray[np.float32], measured: Measurements) -> bool:
    """The engine against its twins, before any attack. True if the attack graph gave its very bits on every image:
    the clean ones, and those that were made adversarial for the twin."""
    own = target.gradient.logits(chunk.images)
    measured["agreement/attack_graph_clean"] = _difference(clean_logits, own)
    same_bits = np.array_equal(clean_logits, own)
    if chunk.twin_clean_logits is not None:
        measured["agreement/twin_clean"] = _difference(clean_logits, chunk.twin_clean_logits)
    if chunk.twin_adversarial_images is not None and chunk.twin_adversarial_logits is not None:
        logits = target.engine.infer(chunk.twin_adversarial_images)
        measured["agreement/twin_adversarial"] = _difference(logits, chunk.twin_adversarial_logits)
        same_bits = same_bits and np.array_equal(logits, target.gradient.logits(chunk.twin_adversarial_images))
    return same_bits


def _compare_attacked(target: Target, adversarial: NDArray[np.uint8], measured: Measurements) -> bool:
    """On what the attacks found for images that were right: only these have been attacked. True for the same bits."""
    logits, own = target.engine.infer(adversarial), target.gradient.logits(adversarial)
    measured["agreement/attack_graph_adversarial"] = _difference(logits, own)
    return np.array_equal(logits, own)


def _difference(engine: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Images, label flips, largest |logit difference|."""
    flips = np.count_nonzero(engine.argmax(axis=1) != other.argmax(axis=1))
    # Where both overflow alike, inf - inf is NaN: an unknown difference must not pass for a small one.
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(engine - other).max(initial=0)
    largest = float(difference) if np.isfinite(difference) else float(np.finfo(np.float32).max)
    return np.array([len(engine), flips, largest], np.float64)


def _measure_feasibility(
    target: Target,
    chunk: Chunk,
    threat_model: ThreatModel,
    best: _WorstCase,
    clean: NDArray[np.bool_],
    measured: Measurements,
) -> None:
    """From the bytes alone, in plain arithmetic that shares nothing with the attacks. Bytes cannot leave [0, 255]."""
    delta = best.adversarial[clean].astype(np.int64) - chunk.images[clean].astype(np.int64)
    flat = delta.reshape(len(delta), math.prod(delta.shape[1:]))
    if threat_model.norm == "linf":
        outside = np.abs(flat).max(axis=1, initial=0) > threat_model.eps_255
    else:
        outside = (flat * flat).sum(axis=1) > threat_model.eps_255**2
    logits = target.engine.infer(best.adversarial[clean])
    prediction, survived = logits.argmax(axis=1), keeps_label(logits, chunk.labels[clean])
    otherwise = (survived != best.survived[clean]) | (prediction != best.prediction[clean])
    measured["feasible"] = np.array([outside.sum(), otherwise.sum(), len(flat)], np.int64)


def _measure_gradients(
    target: Target,
    chunk: Chunk,
    threat_model: ThreatModel,
    suite: Suite,
    clean_logits: NDArray[np.float32],
    clean: NDArray[np.bool_],
    measured: Measurements,
) -> None:
    rows = np.flatnonzero(clean[: chunk.among_first(suite.gradient_images)])
    images, labels = chunk.images[rows], chunk.labels[rows]
    for loss in suite.losses:
        start = random_start(
            images, threat_model, seed=suite.seed, stream=start_stream(0, loss), indices=chunk.indices[rows]
        )
        places = [("the image", images, clean_logits[rows]), ("a random start", start, target.engine.infer(start))]
        for place, points, logits in places:
            gradient = target.gradient.gradient(points, labels, logits, loss)
            flat = gradient.reshape(len(points), math.prod(points.shape[1:]))
            useless = ~np.isfinite(flat).all(axis=1) | ~flat.any(axis=1)
            measured[f"gradients/{loss} at {place}"] = np.array([len(points), useless.sum()], np.int64)


def _measure_curve(
    climb: _Climb,
    chunk: Chunk,
    threat_model: ThreatModel,
    suite: Suite,
    clean: NDArray[np.bool_],
    measured: Measurements,
    report: Report,
) -> None:
    """PGD with the first loss and one restart, at every radius."""
    count = chunk.among_first(suite.curve_images)
    rows = np.flatnonzero(clean[:count])
    radii = curve_radii_255(suite, threat_model, math.prod(chunk.images.shape[1:]))
    survived = np.zeros((len(radii), count), np.bool_)
    for row, radius in enumerate(radii):
        outcome = climb(
            chunk.images[rows],
            chunk.labels[rows],
            threat_model.at(radius),
            steps=suite.steps,
            loss=suite.losses[0],
            seed=suite.seed,
            indices=chunk.indices[rows],
        )
        survived[row, rows] = outcome.survived
        report(count * suite.steps, f"eps curve at {radius:g}/255")
    measured["curve"] = survived


def _measure_convergence(
    climb: _Climb,
    chunk: Chunk,
    threat_model: ThreatModel,
    suite: Suite,
    survived: NDArray[np.bool_],
    measured: Measurements,
    report: Report,
) -> None:
    """Attack the survivors of the whole suite: with twice the steps from the same first starts, and from one more."""
    count = chunk.among_first(suite.convergence_images)
    rows = np.flatnonzero(survived[:count])
    fell = {"steps": np.zeros(len(rows), np.bool_), "restart": np.zeros(len(rows), np.bool_)}
    for loss in suite.losses:
        for what, steps, restart in (("steps", 2 * suite.steps, 0), ("restart", suite.steps, suite.restarts)):
            outcome = climb(
                chunk.images[rows],
                chunk.labels[rows],
                threat_model,
                steps=steps,
                first_restart=restart,
                loss=loss,
                seed=suite.seed,
                indices=chunk.indices[rows],
            )
            fell[what] |= ~outcome.survived
            report(count * steps, "convergence")
    measured["converged"] = np.array([fell["steps"].sum(), fell["restart"].sum(), count], np.int64)


def _pick_examples(
    chunk: Chunk,
    clean_logits: NDArray[np.float32],
    clean: NDArray[np.bool_],
    best: _WorstCase,
    measured: Measurements,
) -> None:
    """Up to twelve images to look at: fooled ones first, then survivors; never those that were wrong before.

    Either kind starts with one of every class.
    """
    count = chunk.among_first(EXAMPLE_IMAGES)
    fooled = np.flatnonzero(clean[:count] & ~best.survived[:count])
    standing = np.flatnonzero(best.survived[:count])
    order = np.concatenate([_by_turns(rows, chunk.labels[rows]) for rows in (fooled, standing)])[:MAX_EXAMPLES]
    measured["examples/clean"] = chunk.images[order]
    measured["examples/adversarial"] = best.adversarial[order]
    measured["examples/label"] = chunk.labels[order]
    measured["examples/clean_prediction"] = clean_logits[order].argmax(axis=1)
    measured["examples/adversarial_prediction"] = best.prediction[order]
    measured["examples/attack"] = best.attack[order]


def _by_turns(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reorder `rows` so that all classes come once before one comes twice."""
    turn = np.array([np.count_nonzero(labels[:place] == label) for place, label in enumerate(labels)], np.int64)
    return rows[np.argsort(turn, kind="stable")]
