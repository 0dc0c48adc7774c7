"""The evaluation of a bundle on this machine: agreement, attacks, eps curve and alarms, streamed in chunks.

Memory does not grow with the number of images beyond a few bytes for each; results depend neither on the number of
workers nor on the size of chunks; with a work folder a killed evaluation goes on where it was.

Boundary: no timing of queries, no gate, no verdict; `check` puts those together.
"""

from __future__ import annotations

import contextlib
import math
import platform
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy import engines
from hardbit_deploy.bundle import Bundle
from hardbit_deploy.chunk import Chunk, Measurements, measure_chunk, work_in_queries
from hardbit_deploy.chunk_counts import curve_radii_255, rolls_dice
from hardbit_deploy.chunk_store import ChunkStore
from hardbit_deploy.engines.averaged import DRAWS, averaged
from hardbit_deploy.engines.base import Target
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.evidence import Evidence, collect_evidence
from hardbit_deploy.preflight import cpu_model, usable_cores
from hardbit_deploy.suite import Suite

__all__ = ["Evaluation", "Progress", "evaluate", "runnable"]

# What was done, then done and total, in queries of one image; a gradient is several. It jumps where images fall early.
Progress = Callable[[str, int, int], None]

_CHUNK_BYTES = 128 << 20
_BYTES_PER_VALUE = 24  # what a running attack holds for every pixel value: bytes, shadow, bounds, gradient
_METHOD = 4  # raise when measurements of one chunk change their meaning, so that old ones are not resumed from


@dataclass(frozen=True)
class Evaluation:
    """What was seen; the lists are the parts of a result document by the same names, JSON-able as they are.

    `records` holds one entry per image: `index`, `label` int64, `clean`, `survived/<attack>` (spaces as `_`),
    `worst_case` bool, `queries/<attack>` int64. `examples` holds up to twelve images: `clean`, `adversarial` uint8,
    `label`, `clean_prediction`, `adversarial_prediction` int64, `attack` text.
    """

    threat_model: dict[str, Any]
    suite: dict[str, Any]
    agreement: list[dict[str, Any]]
    attacks: list[dict[str, Any]]
    eps_curve: list[dict[str, Any]]
    corruptions: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    records: dict[str, NDArray[Any]]
    examples: dict[str, NDArray[Any]]
    duration_s: float
    resumed_images: int  # taken from an earlier, interrupted evaluation

    def to_document(self) -> dict[str, Any]:
        """The parts of a result document that an evaluation fills."""
        return {
            "threat_model": self.threat_model,
            "suite": self.suite,
            "agreement": self.agreement,
            "attacks": self.attacks,
            "eps_curve": self.eps_curve,
            **({"corruptions": self.corruptions} if self.corruptions else {}),
            "alarms": self.alarms,
        }


def evaluate(
    bundle: Bundle,
    suite: Suite | None = None,
    progress: Progress | None = None,
    work_dir: str | Path | None = None,
    workers: int | None = None,
    limit: int | None = None,
    open_target: Callable[[Bundle], Target] = engines.open_target,
) -> Evaluation:
    """Attack the bundle's engine on its first `limit` images (default all) with `suite` (default the bundle's own).

    `workers` threads (default one for each core that this process may use) each run their own engine on one thread.
    `progress` is called from the calling thread. `work_dir` keeps measured chunks: call again after a kill, with the
    same settings, to go on. Where the engine gives the same images other labels again, gradients are averaged over
    `engines.averaged.DRAWS` draws.
    Raises HardbitError for settings that do not fit the bundle and for a runtime that cannot load it.
    """
    started = time.perf_counter()
    suite = runnable(bundle.manifest.suite if suite is None else suite, bundle)
    images = _image_count(bundle, suite, limit)
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise HardbitError(f"{workers} workers cannot work", "workers", "give at least one")
    plan = _Plan(bundle, suite, images)
    with contextlib.ExitStack() as stack:
        first_target = stack.enter_context(open_target(bundle))
        is_random = rolls_dice(first_target.engine, np.array(bundle.images[: min(images, suite.determinism_images)]))
        decides = plan.decides(first_target.engine.runtime) | {"averaged": is_random}
        store = None if work_dir is None else ChunkStore(Path(work_dir), decides)
        done: dict[int, Measurements] = {}
        if store is not None:
            for first, count in plan.chunks:
                if (measured := store.load(first, count)) is not None:
                    done[first] = measured
        resumed = sum(count for first, count in plan.chunks if first in done)
        waiting = [(first, count) for first, count in plan.chunks if first not in done]
        targets = [first_target]
        targets += [stack.enter_context(open_target(bundle)) for _ in range(min(workers, len(waiting)) - 1)]
        if is_random:
            targets = [averaged(target) for target in targets]
        for first, measured in _measure_all(plan, waiting, targets, progress):
            if store is not None:
                store.save(first, len(measured["index"]), measured)
            done[first] = measured
    draws = DRAWS if is_random else 1
    chunks = (done[first] for first, _ in plan.chunks)
    evidence = collect_evidence(chunks, suite, bundle.manifest, plan.radii_255, draws)
    return _as_evaluation(evidence, bundle, suite, images, time.perf_counter() - started, resumed)


def runnable(suite: Suite, bundle: Bundle) -> Suite:
    """What of `suite` can be run on the bundle: without a smooth attack graph, the rest of it, and an alarm says so
    where that is not enough."""
    return suite if bundle.manifest.smooth_attack_file else suite.without_smooth(bundle.manifest.bits)


class _Plan:
    """Which images make up which chunk, and what decides the results of all."""

    def __init__(self, bundle: Bundle, suite: Suite, images: int) -> None:
        values = math.prod(bundle.manifest.input_shape)
        candidates = sum(source.candidates for source in bundle.manifest.transfers)
        size = max(1, min(suite.chunk, _CHUNK_BYTES // ((_BYTES_PER_VALUE + candidates) * values)))
        self.bundle = bundle
        self.suite = suite
        self.chunks = [(first, min(size, images - first)) for first in range(0, images, size)]
        self.radii_255 = curve_radii_255(suite, bundle.manifest.threat_model, values)

    def read(self, first: int, count: int) -> Chunk:
        """Copy one chunk out of the bundle's memory-mapped arrays."""
        rows = slice(first, first + count)
        bundle = self.bundle

        def copied(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else np.array(array[rows])

        return Chunk(
            first,
            np.array(bundle.images[rows]),
            np.array(bundle.labels[rows]),
            copied(bundle.twin_clean_logits),
            copied(bundle.twin_adversarial_images),
            copied(bundle.twin_adversarial_logits),
            {name: np.array(made[rows]) for name, made in bundle.transfers.items()},
        )

    def work(self, first: int, count: int) -> int:
        candidates = sum(source.candidates for source in self.bundle.manifest.transfers)
        return work_in_queries(count, first, self.suite, len(self.radii_255), candidates, self.bundle.manifest.classes)

    def decides(self, runtime: str) -> dict[str, Any]:
        return {
            "manifest_sha256": self.bundle.manifest_sha256,
            "suite": self.suite.to_document(),
            "transfers": [[s.name, s.images_file, s.candidates] for s in self.bundle.manifest.transfers],
            "runtime": runtime,
            "machine": platform.machine(),
            "cpu": cpu_model(),  # instructions that are missing, such as VNNI, can change what an engine says
            "method": _METHOD,
        }


def _measure_all(
    plan: _Plan, waiting: list[tuple[int, int]], targets: list[Target], progress: Progress | None
) -> Iterator[tuple[int, Measurements]]:
    """Measure chunks on as many threads as there are targets; yields each as it is done."""
    free: queue.SimpleQueue[Target] = queue.SimpleQueue()
    for target in targets:
        free.put(target)
    steps: queue.SimpleQueue[tuple[int, int, str]] = queue.SimpleQueue()

    def measure(first: int, count: int) -> Measurements:
        target = free.get()
        try:
            return measure_chunk(
                target,
                plan.read(first, count),
                plan.bundle.manifest.threat_model,
                plan.suite,
                lambda work, what: steps.put((first, work, what)),
            )
        finally:
            free.put(target)

    left = {first: plan.work(first, count) for first, count in waiting}
    done_work, total_work = 0, sum(left.values())
    with ThreadPoolExecutor(len(targets), thread_name_prefix="hardbit") as pool:
        running: dict[Future[Measurements], int] = {
            pool.submit(measure, first, count): first for first, count in waiting
        }
        try:
            while running:
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                while not steps.empty():
                    first, work, what = steps.get()
                    work = min(work, left[first])  # an attack that is made again was counted once
                    left[first] -= work
                    done_work += work
                    if progress is not None:
                        progress(what, done_work, total_work)
                for future in finished:
                    first = running.pop(future)
                    done_work += left[first]  # what images that fell early, or were wrong, have saved
                    left[first] = 0
                    if progress is not None:
                        progress("attacks", done_work, total_work)
                    yield first, future.result()
        except BaseException:
            # Ctrl-C, or a chunk that failed: engines that are closed end the other threads at their next call.
            for future in running:
                future.cancel()
            for target in targets:
                target.deactivate()
            raise


def _image_count(bundle: Bundle, suite: Suite, limit: int | None) -> int:
    missing = [loss for loss in suite.losses if loss not in bundle.manifest.attack_losses]
    if missing:
        raise HardbitError(
            f"the bundle's attack graph has no loss {missing[0]!r}",
            "suite.losses",
            f"it has {', '.join(bundle.manifest.attack_losses)}",
        )
    for spec in suite.further:
        spec.refuse_other_norm(bundle.manifest.threat_model.norm)
    if limit is not None and limit < 1:
        raise HardbitError(f"a limit of {limit} images leaves none", "limit", "give at least one")
    return bundle.manifest.image_count if limit is None else min(limit, bundle.manifest.image_count)


def _as_evaluation(
    evidence: Evidence, bundle: Bundle, suite: Suite, images: int, duration_s: float, resumed: int
) -> Evaluation:
    return Evaluation(
        threat_model=bundle.manifest.threat_model.to_document(),
        suite={**suite.to_document(), "images": images},
        agreement=evidence.agreement,
        attacks=evidence.attacks,
        eps_curve=evidence.eps_curve,
        corruptions=evidence.corruptions,
        alarms=[alarm.to_document() for alarm in evidence.alarms],
        records=evidence.records,
        examples=evidence.examples,
        duration_s=duration_s,
        resumed_images=resumed,
    )
