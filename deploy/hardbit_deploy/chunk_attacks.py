"""The attacks of a suite on one chunk of images, each for itself, and the worst that they did to every image.

Boundary: runs attacks and keeps what they found; what that says of the engine is counted elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks import AttackOutcome, ThreatModel, fgsm, keeps_label, margins, pgd, square
from hardbit_deploy.engines.base import Gradient, Target
from hardbit_deploy.further_attacks import Surface, run_attack
from hardbit_deploy.suite import SMOOTH, STRAIGHT_THROUGH, Suite
from hardbit_deploy.victims import Victims, outside

__all__ = ["STANDING", "Attacks", "Report", "WorstCase", "transfer_name"]

Report = Callable[[int, int, str], None]  # steps and queries made since the last call, and what is being done
STANDING = 0.5  # of a chunk's images, on which further attacks are expected to be made
_LONGEST_NAME = 80  # of an attack, as an array keeps it


def transfer_name(source: str) -> str:
    """The row of the images that were made on the network `source`."""
    return f"transfer {source}"


@dataclass
class WorstCase:
    """Per image, the adversarial image that did most harm, and the attack that made it."""

    adversarial: NDArray[np.uint8]
    survived: NDArray[np.bool_]
    margin: NDArray[np.float32]
    prediction: NDArray[np.int64]
    attack: NDArray[np.str_]

    @classmethod
    def before(cls, victims: Victims, clean_logits: NDArray[np.float32]) -> WorstCase:
        """Before any attack."""
        clean = keeps_label(clean_logits, victims.labels)
        return cls(
            victims.images.copy(),
            clean,
            np.full(len(clean), np.inf, np.float32),
            clean_logits.argmax(axis=1),
            np.full(len(clean), "clean", dtype=f"<U{_LONGEST_NAME}"),
        )

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

    def of(self, rows: NDArray[np.bool_]) -> WorstCase:
        """Some of the images."""
        return WorstCase(
            self.adversarial[rows], self.survived[rows], self.margin[rows], self.prediction[rows], self.attack[rows]
        )


class Attacks:
    """The attacks of `suite` on one target.

    `same_bits` says that the attack graph was seen to give the engine's very bits; what is found depends on it only
    where that is not true. `infeasible` counts images for which the bundle holds transfer images outside of the ball:
    those are not judged.
    """

    def __init__(
        self, target: Target, threat_model: ThreatModel, suite: Suite, report: Report = lambda *_: None
    ) -> None:
        self.target, self.threat_model, self.suite, self.report = target, threat_model, suite, report
        self.same_bits = False
        self.infeasible = 0
        self._found: dict[str, _Found] = {}

    def gradient(self, surrogate: str) -> Gradient:
        """The attack graph through `surrogate`."""
        if surrogate == STRAIGHT_THROUGH:
            return self.target.gradient
        if self.target.smooth is None:
            raise ValueError("the target was opened without a smooth attack graph")
        return self.target.smooth

    def climb(
        self,
        victims: Victims,
        surrogate: str,
        loss: str,
        *,
        steps: int | None = None,
        restarts: int = 1,
        first_restart: int = 0,
        eps_255: float | None = None,
    ) -> AttackOutcome:
        """PGD with the suite's steps and in the threat model's ball, unless others are given."""
        model = self.threat_model if eps_255 is None else self.threat_model.at(eps_255)
        return pgd(
            self.target.engine,
            self.gradient(surrogate),
            victims.images,
            victims.labels,
            model,
            steps=self.suite.steps if steps is None else steps,
            restarts=restarts,
            first_restart=first_restart,
            loss=loss,
            surrogate=surrogate,
            seed=self.suite.seed,
            indices=victims.indices,
            same_bits=self.same_bits and surrogate == STRAIGHT_THROUGH,
        )

    def square(self, victims: Victims, queries: int, what: str) -> AttackOutcome:
        """Square with so many queries; `what` is said of it while it runs."""
        return square(
            self.target.engine,
            victims.images,
            victims.labels,
            self.threat_model,
            queries=queries,
            seed=self.suite.seed,
            indices=victims.indices,
            report=lambda done: self.report(0, done, what),
        )

    def run(
        self, chunk: Victims, clean_logits: NDArray[np.float32], transfers: Mapping[str, NDArray[np.uint8]]
    ) -> WorstCase:
        """All attacks on the images that the engine gets right; `transfers` as in `Chunk`.

        Run again after `same_bits` was withdrawn, it repeats the attacks which that concerns and no others.
        """
        if not self.same_bits:
            self._found = {name: found for name, found in self._found.items() if not found.by_shortcut}
        best = WorstCase.before(chunk, clean_logits)
        rows = np.flatnonzero(best.survived)
        victims = chunk.of(rows)
        for name, attack in self._attacks(victims, clean_logits[rows], transfers, rows).items():
            if name not in self._found:
                started = time.perf_counter()
                outcome = attack()
                by_shortcut = self.same_bits and name.startswith("pgd") and not name.endswith(SMOOTH)
                self._found[name] = _Found(rows, outcome, time.perf_counter() - started, by_shortcut)
            best.take(name, rows, self._found[name].outcome)
        return best

    def run_further(self, chunk: Victims, best: WorstCase) -> None:
        """The suite's further attacks, in order, each on what still stands; `best` is of `run` and is updated."""
        for spec in self.suite.further:
            rows = np.flatnonzero(best.survived)
            started = time.perf_counter()
            share = STANDING * len(chunk) / max(len(rows), 1)  # what was planned for it, whatever it is given
            outcome = run_attack(spec, self.surface, chunk.of(rows), self.report_as(spec.name, share))
            self._found[spec.name] = _Found(rows, outcome, time.perf_counter() - started, by_shortcut=False)
            best.take(spec.name, rows, outcome)

    def report_as(self, what: str, share: float = 1.0) -> Callable[[int, int], None]:
        """Progress of one attack, of which `what` is said; `share` of what it tells is counted."""
        return lambda steps, queries: self.report(round(share * steps), round(share * queries), what)

    @property
    def surface(self) -> Surface:
        """What further attacks meet."""
        gradients = {surrogate: self.gradient(surrogate) for surrogate in self.suite.surrogates}
        return Surface(self.target.engine, gradients, self.threat_model, self.suite.seed)

    def withstood_gradients(self, clean: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which images of the chunk FGSM and PGD left standing in the last run, bool (n,)."""
        standing = clean.copy()
        for name in self.suite.white_box_names:
            found = self._found[name]
            standing[found.rows] &= found.outcome.survived
        return standing

    def records(self, clean: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """What the last run found, per image of the chunk: the keys of `measure_chunk`."""
        records: dict[str, NDArray[Any]] = {}
        for name, found in self._found.items():
            survived = np.zeros(len(clean), np.bool_)
            survived[found.rows] = found.outcome.survived
            records[f"survived/{name}"] = survived
            records[f"seconds/{name}"] = np.asarray(found.seconds)
            if found.outcome.queries is not None:
                queries = np.zeros(len(clean), np.int64)
                queries[found.rows] = found.outcome.queries
                records[f"queries/{name}"] = queries
        return records

    def _attacks(
        self,
        victims: Victims,
        clean_logits: NDArray[np.float32],
        transfers: Mapping[str, NDArray[np.uint8]],
        rows: NDArray[np.int64],
    ) -> dict[str, Callable[[], AttackOutcome]]:
        """The attacks by name, in the order in which they are made and reported."""
        suite = self.suite
        attacks: dict[str, Callable[[], AttackOutcome]] = {"fgsm": partial(self._fgsm, victims, clean_logits)}
        for surrogate, loss in suite.climbs:
            attacks[suite.pgd_name(loss, surrogate)] = partial(self._pgd, victims, surrogate, loss)
        if suite.square_name is not None:
            attacks[suite.square_name] = partial(self.square, victims, suite.square_queries, suite.square_name)
        for source, candidates in transfers.items():
            attacks[transfer_name(source)] = partial(self._transfer, victims, candidates[rows])
        return attacks

    def _fgsm(self, victims: Victims, clean_logits: NDArray[np.float32]) -> AttackOutcome:
        return fgsm(
            self.target.engine,
            self.target.gradient,
            victims.images,
            victims.labels,
            self.threat_model,
            loss=self.suite.losses[0],
            clean_logits=clean_logits,
        )

    def _pgd(self, victims: Victims, surrogate: str, loss: str) -> AttackOutcome:
        outcome = self.climb(victims, surrogate, loss, restarts=self.suite.restarts)
        self.report(len(victims) * self.suite.restarts * self.suite.steps, 0, self.suite.pgd_name(loss, surrogate))
        return outcome

    def _transfer(self, victims: Victims, made: NDArray[np.uint8]) -> AttackOutcome:
        """Judge those candidates uint8 (n, candidates, ...) that lie in the ball."""
        engine, count = self.target.engine, len(victims)
        best = AttackOutcome(
            victims.images.copy(),
            np.ones(count, np.bool_),
            np.zeros((count, engine.classes), np.float32),
            np.full(count, np.inf, np.float32),
        )
        infeasible = np.zeros(count, np.bool_)
        for candidate in range(made.shape[1]):
            images = np.ascontiguousarray(made[:, candidate])
            leaves = outside(images, victims.images, self.threat_model)
            infeasible |= leaves
            logits = engine.infer(images)
            margin = margins(logits, victims.labels)
            kept = keeps_label(logits, victims.labels, margin)
            better = ~leaves & best.survived & (~kept | (margin < best.margin))
            best.adversarial[better], best.logits[better] = images[better], logits[better]
            best.margin[better] = margin[better]
            best.survived[better & ~kept] = False
        self.infeasible += int(np.count_nonzero(infeasible))
        self.report(0, count * made.shape[1], "transfer")
        return best


@dataclass(frozen=True)
class _Found:
    """What an attack did to the images `rows` of a chunk, and whether the shortcut of `same_bits` was taken for it."""

    rows: NDArray[np.int64]
    outcome: AttackOutcome
    seconds: float
    by_shortcut: bool
