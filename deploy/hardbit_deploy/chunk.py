"""Everything that is measured on one chunk of images, as plain arrays: what is stored, resumed from, and added up.

FGSM, PGD, Square and transfer are made on all images of the chunk that the engine gets right, independently of what
the others found, so that each row of the result stands for itself; further attacks of the suite are made one after
another on what still stands. The worst case is the AND of them. Alarms that cost extra attacks are measured on the
first images of the data set only (see `Suite`).

Boundary: measures, never judges, and knows nothing of files or of other chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy import chunk_counts
from hardbit_deploy.attacks import ThreatModel, keeps_label
from hardbit_deploy.chunk_attacks import STANDING, Attacks, WorstCase
from hardbit_deploy.chunk_counts import curve_radii_255
from hardbit_deploy.engines.base import Target
from hardbit_deploy.further_attacks import steps_and_queries
from hardbit_deploy.suite import Suite
from hardbit_deploy.victims import Victims

__all__ = ["MAX_EXAMPLES", "Chunk", "Measurements", "measure_chunk", "work_in_queries"]

MAX_EXAMPLES = 12
EXAMPLE_IMAGES = 512  # pictures to look at come from the first so many, so that their number does not grow
QUERIES_A_STEP = (
    5  # a step of PGD takes about as long as so many queries of the engine: 4 for a ResNet-20, 6 for a LeNet
)
Measurements = dict[str, NDArray[Any]]
Report = Callable[[int, str], None]  # work done since the last call, in queries, and what is being done


@dataclass(frozen=True)
class Chunk:
    """Images `first` to `first + n - 1` of the data set, and what was prepared for them elsewhere.

    `twin_...` is what the training framework's twin said of them; `transfers` holds, by the names of other networks,
    adversarial images that were made there, uint8 (n, candidates, channels, height, width).
    """

    first: int
    images: NDArray[np.uint8]  # (n, channels, height, width)
    labels: NDArray[np.int64]  # (n,)
    twin_clean_logits: NDArray[np.float32] | None = None
    twin_adversarial_images: NDArray[np.uint8] | None = None
    twin_adversarial_logits: NDArray[np.float32] | None = None
    transfers: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def indices(self) -> NDArray[np.int64]:
        return np.arange(self.first, self.first + len(self.images), dtype=np.int64)

    @property
    def victims(self) -> Victims:
        """All of its images."""
        return Victims(self.images, self.labels, self.indices)

    def among_first(self, count: int) -> int:
        """How many of this chunk's images, from its start, are among the first `count` of the data set."""
        return min(max(count - self.first, 0), len(self.images))


def work_in_queries(chunk_images: int, first: int, suite: Suite, radii: int, candidates: int, classes: int) -> int:
    """A rough count of the engine queries that a chunk is worth, for progress: as if no image ever fell.

    `radii` are those of the eps curve, `candidates` the transfer images of one image, over all sources.
    """
    climbs = len(suite.climbs)
    curve = min(max(suite.curve_images - first, 0), chunk_images) * radii * len(suite.surrogates)
    convergence = min(max(suite.convergence_images - first, 0), chunk_images) * 3 * climbs
    more_queries = min(max(suite.query_convergence_images - first, 0), chunk_images) * 2 * suite.square_queries
    losses = min(max(suite.loss_images - first, 0), chunk_images) * len(suite.surrogates)
    noise = min(max(suite.noise_images - first, 0), chunk_images) * steps_and_queries(chunk_counts.NOISE, classes, 1)[1]
    corrupted = min(max(suite.corruption_images - first, 0), chunk_images) * len(chunk_counts.CORRUPTIONS)
    steps = (chunk_images * suite.restarts * climbs + curve + convergence + losses) * suite.steps
    queries = chunk_images * (1 + suite.square_queries + candidates) + more_queries + noise + corrupted
    for spec in suite.further:
        more_steps, more = steps_and_queries(spec, classes, len(suite.surrogates))
        steps += round(STANDING * chunk_images * more_steps)
        queries += round(STANDING * chunk_images * more)
    return steps * QUERIES_A_STEP + queries


def measure_chunk(
    target: Target, chunk: Chunk, threat_model: ThreatModel, suite: Suite, report: Report = lambda *_: None
) -> Measurements:
    """Clean pass, agreement, attacks, alarms. The keys are:

    `index`, `label` int64 (n,), `clean`, `survived/<attack>`, `worst_case` bool (n,); `queries/<attack>` int64 (n,),
    what Square spent on each image, 0 where the engine was wrong before; `seconds/<attack>` float64 ();
    `same_bits` bool (n,), whether the attack graph's logits stood for the engine's within PGD;
    `agreement/<name>` float64 (images, label flips, largest difference); `logits`, `feasible`, `determinism`,
    `gradients/<case>`, `converged`, `converged_queries`, `noise`, `losses/<loss>` int64 counts; `curve` bool (radii,
    m); `corruptions` bool (kinds x severities, m); `examples/...` for up to 12 images.
    """
    measured: Measurements = {"index": chunk.indices, "label": chunk.labels}
    started = time.perf_counter()
    clean_logits = target.engine.infer(chunk.images)
    clean = keeps_label(clean_logits, chunk.labels)
    measured["clean"] = clean
    measured["seconds/clean"] = np.asarray(time.perf_counter() - started)
    measured["logits"] = chunk_counts.bad_logits(clean_logits)
    first = chunk.among_first(suite.determinism_images)
    measured["determinism"] = chunk_counts.determinism(target.engine, chunk.images[:first])
    report(len(clean), "clean")

    attacks = Attacks(target, threat_model, suite, _in_queries(report))
    attacks.same_bits = _measure_agreement(target, chunk, clean_logits, measured)
    best = attacks.run(chunk.victims, clean_logits, chunk.transfers)
    if not _compare_attacked(target, best.adversarial[clean], measured) and attacks.same_bits:
        # Equal before the attack, unequal on what it found: the shortcut was not allowed, so it is made again without.
        attacks.same_bits = False
        best = attacks.run(chunk.victims, clean_logits, chunk.transfers)
        _compare_attacked(target, best.adversarial[clean], measured)
    if suite.attacks:
        attacks.run_further(chunk.victims, best)
        _compare_attacked(target, best.adversarial[clean], measured)
    measured |= attacks.records(clean)
    measured["same_bits"] = np.full(len(clean), attacks.same_bits)
    measured["worst_case"] = best.survived
    measured["feasible"] = chunk_counts.feasible(target.engine, chunk.victims.of(clean), threat_model, best.of(clean))
    measured["feasible"][0] += attacks.infeasible
    _measure_alarms(attacks, chunk, clean_logits, best.survived, measured)
    _pick_examples(chunk, clean_logits, best, measured)
    return {name: np.asarray(value) for name, value in measured.items()}


def _in_queries(report: Report) -> Callable[[int, int, str], None]:
    """Steps and queries that were made, as work."""
    return lambda steps, queries, what: report(steps * QUERIES_A_STEP + queries, what)


def _measure_agreement(target: Target, chunk: Chunk, clean_logits: NDArray[np.float32], measured: Measurements) -> bool:
    """The engine against its twins, before any attack. True if the attack graph gave its very bits on every image:
    the clean ones, and those that were made adversarial for the twin."""
    own = target.gradient.logits(chunk.images)
    measured["agreement/attack_graph_clean"] = chunk_counts.difference(clean_logits, own)
    same_bits = np.array_equal(clean_logits, own)
    if chunk.twin_clean_logits is not None:
        measured["agreement/twin_clean"] = chunk_counts.difference(clean_logits, chunk.twin_clean_logits)
    if chunk.twin_adversarial_images is not None and chunk.twin_adversarial_logits is not None:
        logits = target.engine.infer(chunk.twin_adversarial_images)
        measured["agreement/twin_adversarial"] = chunk_counts.difference(logits, chunk.twin_adversarial_logits)
        same_bits = same_bits and np.array_equal(logits, target.gradient.logits(chunk.twin_adversarial_images))
    return same_bits


def _compare_attacked(target: Target, adversarial: NDArray[np.uint8], measured: Measurements) -> bool:
    """On what the attacks found for images that were right: only these have been attacked. True for the same bits."""
    logits, own = target.engine.infer(adversarial), target.gradient.logits(adversarial)
    measured["agreement/attack_graph_adversarial"] = chunk_counts.difference(logits, own)
    return np.array_equal(logits, own)


def _measure_alarms(
    attacks: Attacks,
    chunk: Chunk,
    clean_logits: NDArray[np.float32],
    survived: NDArray[np.bool_],
    measured: Measurements,
) -> None:
    """Those that cost attacks of their own, on the first images of the data set."""
    suite, clean = attacks.suite, measured["clean"]
    rows = np.flatnonzero(clean[: chunk.among_first(suite.gradient_images)])
    measured |= chunk_counts.useless_gradients(attacks, chunk.victims.of(rows), clean_logits[rows])
    count = chunk.among_first(suite.curve_images)
    radii = curve_radii_255(suite, attacks.threat_model, int(np.prod(chunk.images.shape[1:])))
    measured["curve"] = chunk_counts.curve(attacks, chunk.victims.of(slice(count)), clean[:count], radii)
    count = chunk.among_first(suite.convergence_images)
    measured["converged"] = chunk_counts.converged(attacks, chunk.victims.of(slice(count)), survived[:count])
    count = chunk.among_first(suite.query_convergence_images) if suite.square_queries else 0
    victims = chunk.victims.of(slice(count))
    measured["converged_queries"] = chunk_counts.converged_queries(attacks, victims, survived[:count])
    count = chunk.among_first(suite.noise_images)
    withstood = attacks.withstood_gradients(clean)
    measured["noise"] = chunk_counts.noise(attacks, chunk.victims.of(slice(count)), withstood[:count])
    count = chunk.among_first(suite.loss_images)
    measured |= chunk_counts.losses_left_out(attacks, chunk.victims.of(slice(count)), survived[:count])
    count = chunk.among_first(suite.corruption_images)
    if suite.corruption_images:
        measured["corruptions"] = chunk_counts.corruptions(attacks, chunk.victims.of(slice(count)))


def _pick_examples(chunk: Chunk, clean_logits: NDArray[np.float32], best: WorstCase, measured: Measurements) -> None:
    """Up to twelve images to look at: fooled ones first, then survivors; never those that were wrong before.

    Either kind starts with one of every class.
    """
    count = chunk.among_first(EXAMPLE_IMAGES)
    fooled = np.flatnonzero(measured["clean"][:count] & ~best.survived[:count])
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
