"""How fast PGD-20 runs through the INT8 engine of ResNet-20, against the loop that everybody writes in PyTorch.

One pinned core, contenders interleaved, medians of CPU time. Nothing is asserted on speed: the table is the result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.resnet20_example import CLASSES, INPUT_SHAPE, resnet20_forms
from hardbit_deploy.attacks import ThreatModel, pgd
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeGradient

pytestmark = pytest.mark.slow

STEPS = 20
IMAGES = 64
REPEATS = 5
BATCHES = (16, 32, 64)  # of the PyTorch loops; the best one counts
# Steps of at least one grey level in a small ball, so that few images fall and all do all steps.
THREAT = ThreatModel("linf", 2.0)


@pytest.fixture
def one_core() -> Iterator[None]:
    """Pin the process to its last core, PyTorch and ONNX Runtime to one thread."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


def minimal_pgd(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int) -> None:
    """The loop of every tutorial: autograd.grad by the input, sign step, projection; nothing else."""
    eps, step = THREAT.eps_255 / 255, 2.5 * THREAT.eps_255 / 255 / STEPS
    for first in range(0, len(images), batch):
        x0, y = images[first : first + batch], labels[first : first + batch]
        x = x0.clone()
        for _ in range(STEPS):
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(functional.cross_entropy(network(x), y, reduction="sum"), x)
            x = (x.detach() + step * gradient.sign()).clamp(x0 - eps, x0 + eps).clamp(-0.5, 0.5)


class Stopwatch:
    """CPU time inside the calls of engine and attack graph, and the images that went through the second."""

    def __init__(self, engine: OnnxRuntimeEngine, gradient: OnnxRuntimeGradient) -> None:
        self.inside = 0.0
        self.gradients = 0
        engine.infer_impl = self.timed(engine.infer_impl)  # type: ignore[method-assign]
        gradient.gradient_impl = self.timed(gradient.gradient_impl, count=True)  # type: ignore[method-assign]
        gradient.ascend_impl = self.timed(gradient.ascend_impl, count=True)  # type: ignore[method-assign]

    def timed(self, method: Callable[..., Any], count: bool = False) -> Callable[..., Any]:
        def run(images: np.ndarray, *rest: object) -> Any:
            start = time.process_time()
            result = method(images, *rest)
            self.inside += time.process_time() - start
            self.gradients += len(images) if count else 0
            return result

        return run


def interleaved_medians(contenders: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median CPU seconds, every contender run once in each round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: float(np.median(values[1:])) for name, values in times.items()}  # the first round warms up


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bits", [8, 4])
def test_pgd_20_on_resnet20(one_core: None, tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]) -> None:
    forms = resnet20_forms(bits, tmp_path, IMAGES)
    centred = (torch.from_numpy(forms.images).float() - 128) / 256
    labels = forms.floating(centred).argmax(1)
    contenders: dict[str, Callable[[], None]] = {}
    for batch in BATCHES:
        for kind, network in (("float", forms.floating), ("Brevitas", forms.twin)):
            contenders[f"PyTorch {kind}, batch {batch}"] = lambda n=network, b=batch: minimal_pgd(n, centred, labels, b)
    engine = OnnxRuntimeEngine(forms.engine, INPUT_SHAPE, CLASSES)
    gradient = OnnxRuntimeGradient(forms.attack, INPUT_SHAPE, CLASSES)
    with engine, gradient:
        watch = Stopwatch(engine, gradient)
        answers = engine.infer(forms.images).argmax(axis=1)
        assert np.array_equal(engine.infer(forms.images), gradient.logits(forms.images)), "one run would not do for two"
        ours = {
            f"hardbit, W{bits}A{bits}, one run a step": True,  # what `evaluate` does where bits are the same
            f"hardbit, W{bits}A{bits}, two runs a step": False,
        }
        spent: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ours}

        def run_ours(name: str) -> None:
            start, inside, done = time.process_time(), watch.inside, watch.gradients
            pgd(engine, gradient, forms.images, answers, THREAT, steps=STEPS, same_bits=ours[name])
            total = time.process_time() - start
            spent[name].append((total, watch.inside - inside, watch.gradients - done))

        contenders |= {name: lambda n=name: run_ours(n) for name in ours}
        medians = interleaved_medians(contenders)
    rates = {name: IMAGES / value for name, value in medians.items()}
    best = {kind: max(v for k, v in rates.items() if kind in k) for kind in ("float", "Brevitas")}
    with capsys.disabled():
        print(f"\nPGD-{STEPS}, ResNet-20, one core: images per second of CPU time, medians of {REPEATS}")
        for name in contenders:
            if name not in ours:
                print(f"  {name:32s} {rates[name]:8.1f}")
        for name in ours:
            seconds, inside, gradients = (float(np.median(column)) for column in zip(*spent[name][1:], strict=True))
            # An image that has fallen is not attacked further: speed is counted in steps that were made.
            rate = gradients / STEPS / seconds
            ratios = "  ".join(f"{rate / best[kind]:5.2f} x {kind}" for kind in ("float", "Brevitas"))
            print(f"  {name:32s} {rate:8.1f}  {ratios}  the loop adds {seconds / inside - 1:.1%}")
            assert gradients > 0
