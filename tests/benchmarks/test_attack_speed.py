"""How fast PGD-20 runs through the INT8 engine of ResNet-20, against the loop that everybody writes in PyTorch and
against the libraries torchattacks, foolbox and adv-lib, where they are installed.

One pinned core, contenders interleaved, medians of CPU time. Nothing is asserted on speed: the table is the result.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
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

from benchmarks.resnet20_example import CLASSES, INPUT_SHAPE, Forms, resnet20_forms
from hardbit_deploy.attacks import ThreatModel, pgd
from hardbit_deploy.engines import Gradient
from hardbit_deploy.engines.directions import GradientWithDirections
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeGradient, integer_batch

pytestmark = pytest.mark.slow

STEPS = 20
IMAGES = 64
REPEATS = 5
BATCHES = (16, 32, 64)  # of the PyTorch loops; the best one counts
PEER_BATCHES = {"float": (32, 64), "Brevitas": (32,)}  # of the libraries
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


class Bytes(nn.Module):
    """The network on images from 0 to 1, as the libraries want them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images * 255 - 128) / 256)


def peers(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int) -> dict[str, Callable[[], None]]:
    """PGD-20 with a random start of the libraries that are installed, on images from 0 to 1, `batch` at a time."""
    module, eps, step = Bytes(network), THREAT.eps_255 / 255, 2.5 * THREAT.eps_255 / 255 / STEPS
    attacks: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {}
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        attacks["torchattacks"] = torchattacks.PGD(module, eps=eps, alpha=step, steps=STEPS, random_start=True)
    if importlib.util.find_spec("foolbox"):
        import foolbox

        model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
        steps = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=step, random_start=True)
        attacks["foolbox"] = lambda x, y: steps.run(model, x, y, epsilon=eps)
    if importlib.util.find_spec("adv_lib"):
        from adv_lib.attacks import pgd_linf

        attacks["adv-lib"] = lambda x, y: pgd_linf(module, x, y, eps, steps=STEPS, absolute_step_size=step)

    def run(attack: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        for first in range(0, len(images), batch):
            attack(images[first : first + batch], labels[first : first + batch])

    return {name: lambda a=attack: run(a) for name, attack in attacks.items()}


class Stopwatch:
    """CPU time inside the calls of engine and attack graphs, and the images that went through the latter."""

    def __init__(self, engine: OnnxRuntimeEngine, *gradients: Gradient) -> None:
        self.inside = 0.0
        self.gradients = 0
        engine.infer_impl = self.timed(engine.infer_impl)  # type: ignore[method-assign]
        for gradient in gradients:
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


def in_pytorch(forms: Forms) -> dict[str, Callable[[], None]]:
    """Every PyTorch contender by its name, which says which of the two networks it attacks."""
    centred = (torch.from_numpy(forms.images).float() - 128) / 256
    unit = torch.from_numpy(forms.images).float() / 255
    contenders: dict[str, Callable[[], None]] = {}
    for kind, network in (("float", forms.floating), ("Brevitas", forms.twin)):
        labels = network(centred).argmax(1)
        for batch in BATCHES:
            contenders[f"plain loop, {kind}, batch {batch}"] = lambda n=network, y=labels, b=batch: minimal_pgd(
                n, centred, y, b
            )
        last, images = (
            copy.deepcopy(network).to(memory_format=torch.channels_last),
            centred.contiguous(memory_format=torch.channels_last),
        )
        contenders[f"plain loop, {kind}, channels_last, batch 32"] = lambda n=last, x=images, y=labels: minimal_pgd(
            n, x, y, 32
        )
        for batch in PEER_BATCHES[kind]:
            for name, attack in peers(network, unit, labels, batch).items():
                contenders[f"{name}, {kind}, batch {batch}"] = attack
        in_order = unit.contiguous(memory_format=torch.channels_last)
        for name, attack in peers(last, in_order, labels, 32).items():
            contenders[f"{name}, {kind}, channels_last, batch 32"] = attack
    return contenders


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", [8, 4])
def test_pgd_20_on_resnet20(one_core: None, tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]) -> None:
    forms = resnet20_forms(bits, tmp_path, IMAGES)
    contenders = in_pytorch(forms)
    engine = OnnxRuntimeEngine(forms.engine, INPUT_SHAPE, CLASSES)
    exact = OnnxRuntimeGradient(forms.attack, INPUT_SHAPE, CLASSES)
    name = f"hardbit, W{bits}A{bits}"
    ours: dict[str, tuple[Gradient, bool]] = {}
    if forms.integer is not None:
        integer = OnnxRuntimeGradient(forms.integer, INPUT_SHAPE, CLASSES, batch=integer_batch(INPUT_SHAPE))
        ours[f"{name}, one run a step, backward in integers"] = GradientWithDirections(exact, integer), True
    ours[f"{name}, one run a step, backward in float"] = OnnxRuntimeGradient(forms.attack, INPUT_SHAPE, CLASSES), True
    ours[f"{name}, two runs a step"] = OnnxRuntimeGradient(forms.attack, INPUT_SHAPE, CLASSES), False
    with contextlib.ExitStack() as stack:
        for part in (engine, *(gradient for gradient, _ in ours.values())):
            stack.enter_context(part)
        watch = Stopwatch(engine, *(gradient for gradient, _ in ours.values()))
        answers = engine.infer(forms.images).argmax(axis=1)
        for gradient, _ in ours.values():
            assert np.array_equal(engine.infer(forms.images), gradient.logits(forms.images)), "one run would not do"
        spent: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ours}

        def run_ours(name: str) -> None:
            start, inside, done = time.process_time(), watch.inside, watch.gradients
            gradient, same_bits = ours[name]
            pgd(engine, gradient, forms.images, answers, THREAT, steps=STEPS, same_bits=same_bits)
            total = time.process_time() - start
            spent[name].append((total, watch.inside - inside, watch.gradients - done))

        contenders |= {name: lambda n=name: run_ours(n) for name in ours}
        medians = interleaved_medians(contenders)
    rates = {name: IMAGES / value for name, value in medians.items()}
    best = {kind: max(v for k, v in rates.items() if kind in k and k not in ours) for kind in ("float", "Brevitas")}
    with capsys.disabled():
        print(f"\nPGD-{STEPS}, ResNet-20, one core: images per second of CPU time, medians of {REPEATS}")
        for name in contenders:
            if name not in ours:
                print(f"  {name:48s} {rates[name]:8.1f}")
        for name in ours:
            seconds, inside, gradients = (float(np.median(column)) for column in zip(*spent[name][1:], strict=True))
            # An image that has fallen is not attacked further: speed is counted in steps that were made.
            rate = gradients / STEPS / seconds
            ratios = "  ".join(f"{rate / best[kind]:5.2f} x {kind}" for kind in ("float", "Brevitas"))
            print(f"  {name:48s} {rate:8.1f}  {ratios}  the loop adds {seconds / inside - 1:.1%}")
            assert gradients > 0
