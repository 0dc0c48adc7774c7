"""The attack graph with a backward pass in integers: logits of the exact one, nearly its directions, its strength."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.graph.gradient.integer_cotangents import calibration_feeds, with_integer_cotangents
from hardbit.quantize import freeze
from hardbit_deploy.attacks import ThreatModel, pgd
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.engines.directions import GradientWithDirections
from hardbit_deploy.engines.executed_kernels import Kernel
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeGradient, open_engine
from linear_examples import LinearGradient
from quantized_examples import calibrated, random_images

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def canonical() -> onnx.ModelProto:
    """ResNet-8 at 8 bits, which has convolutions of stride 2 and shortcuts."""
    return export_canonical(freeze(calibrated("resnet8", 8)).eval(), SHAPE)


@pytest.fixture(scope="module")
def graphs(canonical: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Its exact attack graph, and the other."""
    exact = build_attack_graph(canonical)
    integer = with_integer_cotangents(exact, random_images(16, SHAPE, seed=5))
    assert integer is not None
    return exact, integer


@pytest.fixture(scope="module")
def gradients(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory
) -> tuple[OnnxRuntimeGradient, OnnxRuntimeGradient]:
    folder = tmp_path_factory.mktemp("graphs")
    opened = []
    for name, model in zip(("exact", "integer"), graphs, strict=True):
        onnx.save(model, folder / f"{name}.onnx")
        opened.append(OnnxRuntimeGradient(folder / f"{name}.onnx", SHAPE, 10).activate())
    return opened[0], opened[1]


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the angle between the rows."""
    rows = [values.reshape(len(values), -1).astype(np.float64) for values in (first, second)]
    rows = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in rows]
    return np.asarray((rows[0] * rows[1]).sum(axis=1))


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_logits_are_the_same_bits_and_directions_nearly_the_same(gradients, loss: str) -> None:
    images = random_images(24, SHAPE, seed=1)
    labels = np.arange(24, dtype=np.int64) % 10
    (exact_logits, exact), (logits, direction) = (graph.ascend(images, labels, loss) for graph in gradients)
    assert np.array_equal(logits, exact_logits)
    assert np.median(cosines(exact, direction)) > 0.98
    assert cosines(exact, direction).min() > 0.9
    assert np.mean(np.sign(exact) == np.sign(direction)) > 0.88


def test_an_image_has_the_same_direction_in_every_batch(gradients) -> None:
    _, integer = gradients
    images, labels = random_images(9, SHAPE, seed=2), np.arange(9, dtype=np.int64)
    _, together = integer.ascend(images, labels, "margin")
    for row in (0, 4, 8):
        _, alone = integer.ascend(images[row : row + 1], labels[row : row + 1], "margin")
        assert np.array_equal(alone[0], together[row])


def test_all_of_the_sweep_but_its_last_layer_runs_on_integer_kernels(graphs, tmp_path: Path, monkeypatch) -> None:
    import json

    import onnxruntime as ort

    monkeypatch.chdir(tmp_path)
    options = ort.SessionOptions()
    options.enable_profiling = True
    session = ort.InferenceSession(graphs[1].SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = random_images(2, SHAPE)
    session.run(["gradient"], calibration_feeds(images, np.zeros((2, 10), np.float32), 0))
    events = json.loads(Path(session.end_profiling()).read_text())
    operators = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    kernels = [Kernel("", name, "", ()) for name in operators]
    assert [kernel.op for kernel in kernels if kernel.is_heavy and not kernel.op.startswith("Q")] in (
        ["Gemm", "ConvTranspose"],
        ["FusedGemm", "ConvTranspose"],
    )
    assert "QLinearMul" in operators
    reverse = sum(node.op_type in ("Conv", "ConvTranspose") for node in graphs[0].graph.node)
    assert operators.count("QLinearConv") == reverse - 1


def test_images_of_other_magnitudes_fill_the_range_alike(gradients) -> None:
    """A seed a million times smaller, through `seed` and without a loss: the same direction, where scales alone would
    leave nothing of it."""
    _, integer = gradients
    images = random_images(6, SHAPE, seed=4)
    seeds = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    large, small = integer.pullback(images, seeds), integer.pullback(images, seeds * np.float32(2**-20))
    assert np.array_equal(large, small)
    assert large.reshape(6, -1).any(axis=1).all()


@pytest.mark.parametrize("bits", [4, 32])
def test_networks_of_few_bits_and_float_networks_have_none(bits: int) -> None:
    exact = build_attack_graph(export_canonical(freeze(calibrated("lenet", bits)).eval(), (1, 28, 28)))
    assert with_integer_cotangents(exact, random_images(4, (1, 28, 28))) is None


# --- beside the exact graph -------------------------------------------------------------------------------------------


class Silent(LinearGradient):
    """Gives no direction for images whose first pixel is 0."""

    def ascend_impl(self, images, labels, loss):
        logits, gradient = super().ascend_impl(images, labels, loss)
        gradient[images[:, 0, 0, 0] == 0] = 0
        return logits, gradient


def test_an_image_that_lost_its_direction_is_given_the_exact_one() -> None:
    weights = np.random.default_rng(0).normal(size=(10, 144)).astype(np.float32)
    exact, silent = LinearGradient(weights, (1, 12, 12)), Silent(weights, (1, 12, 12))
    images, labels = random_images(6, (1, 12, 12)), np.arange(6, dtype=np.int64)
    images[:, 0, 0, 0] = [0, 9, 9, 0, 9, 9]
    with GradientWithDirections(exact, silent) as both:
        _, direction = both.ascend(images, labels, "margin")
        assert exact.calls == [2]
        assert np.array_equal(direction, exact.ascend(images, labels, "margin")[1])
        assert np.array_equal(
            both.pullback(images, np.eye(10, dtype=np.float32)[:6]), weights[:6].reshape(6, 1, 12, 12)
        )


def test_pgd_finds_as_much_with_it(canonical, gradients, tmp_path: Path) -> None:
    """Random weights, 48 images: no more than two fall to one of them only."""
    from hardbit.targets import lower

    onnx.save(lower(canonical, "onnxruntime"), tmp_path / "e")
    images = random_images(48, SHAPE, seed=3)
    exact, integer = gradients
    with OnnxRuntimeEngine(tmp_path / "e", SHAPE, 10) as engine:
        labels = engine.infer(images).argmax(axis=1)
        survived = [
            pgd(engine, graph, images, labels, ThreatModel("linf", 2.0), steps=10, same_bits=True).survived
            for graph in (exact, GradientWithDirections(exact, integer).activate())
        ]
    assert 0 < survived[0].sum() < 48
    assert np.count_nonzero(survived[0] != survived[1]) <= 2


@pytest.mark.slow
@pytest.mark.skipif("HARDBIT_BUNDLE_W8A8" not in os.environ, reason="HARDBIT_BUNDLE_W8A8 names no bundle of 8 bits")
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_pgd_finds_as_much_on_a_trained_network(tmp_path: Path, loss: str) -> None:
    """HARDBIT_BUNDLE_W8A8=BUNDLE: 1,000 images, one restart of PGD-20; the difference is within five images."""
    bundle = load_bundle(os.environ["HARDBIT_BUNDLE_W8A8"])
    manifest = bundle.manifest
    images, labels = np.array(bundle.images[:1000]), np.array(bundle.labels[:1000])
    exact = OnnxRuntimeGradient(bundle.file(manifest.attack_file), manifest.input_shape, manifest.classes)
    model = with_integer_cotangents(onnx.load(bundle.file(manifest.attack_file)), images[:64])
    assert model is not None
    onnx.save(model, tmp_path / "integer.onnx")
    integer = OnnxRuntimeGradient(tmp_path / "integer.onnx", manifest.input_shape, manifest.classes)
    with open_engine(bundle) as engine, exact, integer:
        right = engine.infer(images).argmax(axis=1) == labels
        survivors = [
            int(
                pgd(
                    engine,
                    graph,
                    images[right],
                    labels[right],
                    manifest.threat_model,
                    steps=20,
                    loss=loss,
                    same_bits=True,
                ).survived.sum()
            )
            for graph in (exact, GradientWithDirections(exact, integer).activate())
        ]
    assert survivors[1] <= survivors[0] + 5
