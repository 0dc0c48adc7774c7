"""Every network that hardbit ships, under TensorRT: lowered to the same bits, built without a GPU, proved to be INT8.

TensorRT for RTX parses, compiles and lists its layers on a CPU. It runs nothing there: what is compared with the
canonical graph is the lowered graph in ONNX Runtime, what is proved of the plan is what it multiplies.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gradient_reference import relative_error
from gradient_reference import run as outputs_of
from hardbit import cli, nets, pipeline
from hardbit.data import load_images
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.ptq import quantize_network
from hardbit.quantize import Bits, calibrate, freeze
from hardbit.quantize.requantize import requantize
from hardbit.recipe import load_recipe
from hardbit.steps.train import load_trained_twin
from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit.train.adversary import centred
from hardbit_deploy.bundle import Bundle, load_bundle
from hardbit_deploy.engines.base import PrecisionReport
from hardbit_deploy.engines.tensorrt_build import BuildSettings, BuiltPlan, build_plan
from hardbit_deploy.engines.tensorrt_precision import judge_layers
from hardbit_deploy.manifest import FloatNode, IntegerNode
from lowering_examples import run
from network_examples import OPTIONS, input_shape
from quantized_examples import calibrated, random_images
from recipe_examples import RECIPE, write_bars
from tensorrt_examples import run_engine

MODELS = Path(__file__).parents[1] / "models"
WITH_IMAGES = MODELS / "fashion-cnn-w4a4"  # whose folder has the images that it is judged by
WIDTHS = {"w8a8": Bits(weights=8, activations=7), "w4a4": Bits(weights=4, activations=4)}
"""Eight bits are seven behind a ReLU: [0, 127], all that INT8 has there."""
FLOAT = Bits(32, 32, 32, 32)
SHIPPED = {
    ("cifar10-resnet20-w8a8", "w8a8"): 0.9,
    ("fashion-cnn-w8a8", "w8a8"): 0.98,
    ("fashion-cnn-w8a8", "w4a4"): 0.9,
}
"""Trained networks, the widths that they are quantized to anew, and the share of decisions that stays."""
FEW_BITS = ("fashion-cnn-w4a4", "fashion-cnn-w2a4", "fashion-cnn-w2a2", "fashion-cnn-w1a1", "gtsrb-cnn-w4a4")
BUILDS = BuildSettings(batches=((1, 8, 8),))


@cache
def canonical_of(architecture: str, width: str) -> onnx.ModelProto:
    """A network of random weights with calibrated scales, narrow and for small images. Not to be changed."""
    module = calibrated(architecture, WIDTHS[width], profile="tensorrt", **OPTIONS[architecture])
    return export_canonical(freeze(module).eval(), input_shape(architecture), profile="tensorrt")


@cache
def shipped(name: str, width: str | None = None) -> tuple[onnx.ModelProto, np.ndarray]:
    """A trained network as it ships, or quantized anew under the profile of TensorRT; and images to test it on."""
    recipe = load_recipe(MODELS / name)
    if name.startswith("fashion"):
        images = load_images(load_recipe(WITH_IMAGES).evaluation_set, "test", 256, recipe.network.input_shape).images
    else:
        images = random_images(256, recipe.network.input_shape)
    twin = load_trained_twin(recipe, MODELS / name / "weights.safetensors")
    if width is None:
        return export_canonical(twin, recipe.network.input_shape), images
    anew = requantize(
        twin, lambda: nets.build(recipe.network.architecture, **recipe.network.options()), "tensorrt", WIDTHS[width]
    )
    calibrate(anew, centred(torch.from_numpy(images[:64])).split(32))
    return export_canonical(freeze(anew).eval(), recipe.network.input_shape, profile="tensorrt"), images


def built(graph: onnx.ModelProto) -> BuiltPlan:
    return build_plan(graph.SerializeToString(), BUILDS, "tensorrt_rtx")


def proof(canonical: onnx.ModelProto, plan: BuiltPlan) -> PrecisionReport:
    declared = [IntegerNode(node["name"], node["op"]) for node in integer_nodes(canonical)]
    in_float = [FloatNode(node["name"], node["reason"]) for node in float_nodes(canonical)]
    return judge_layers(plan.layers, declared, in_float)


def feeds_for(images: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Inputs of an attack graph for uint8 images, at logits that are its own."""
    rng, count = np.random.default_rng(0), len(images)
    return {
        "image": images,
        "onehot": np.eye(classes, dtype=np.float32)[rng.integers(0, classes, count)],
        "engine_logits": np.zeros((count, classes), np.float32),
        "own_logits": np.array(True),
        "loss_weights": np.array([1, 0.5], np.float32),
        "seed": np.zeros((count, classes), np.float32),
    }


def both_gradients(canonical: onnx.ModelProto, images: np.ndarray) -> tuple[dict[str, np.ndarray], ...]:
    """Outputs of the attack graphs for TensorRT and for ONNX Runtime, both by the latter."""
    classes = canonical.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    feeds = feeds_for(images, classes)
    codes = {"image": (images.astype(np.int16) - 128).astype(np.int8)}
    return (
        outputs_of(build_attack_graph(canonical, target="tensorrt"), feeds | codes, optimised=False),
        outputs_of(build_attack_graph(canonical, masks="exact"), feeds, optimised=False),
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("architecture", OPTIONS)
class TestArchitectures:
    def test_the_engine_has_the_bits_of_the_canonical_graph(self, architecture: str, width: str) -> None:
        canonical = canonical_of(architecture, width)
        images = random_images(32, input_shape(architecture), seed=1)
        logits = run_engine(lower(canonical, "tensorrt"), images)
        np.testing.assert_array_equal(logits, run(canonical, images))
        assert len(np.unique(logits.round(6), axis=0)) > 16  # it does not say the same to all

    def test_the_attack_graph_has_the_gradient_of_that_for_onnx_runtime(self, architecture: str, width: str) -> None:
        canonical = canonical_of(architecture, width)
        ours, reference = both_gradients(canonical, random_images(8, input_shape(architecture), seed=1))
        np.testing.assert_array_equal(ours["logits"], reference["logits"])
        assert np.abs(reference["gradient"]).max() > 0
        assert relative_error(ours["gradient"], reference["gradient"]) < 2e-6

    @pytest.mark.tensorrt
    def test_every_declared_layer_of_the_engine_multiplies_int8(self, architecture: str, width: str) -> None:
        canonical = canonical_of(architecture, width)
        report = proof(canonical, built(lower(canonical, "tensorrt_rtx")))
        assert report.problems == ()
        assert report.status == "integer"
        assert {row.name for row in report.nodes} == {node["name"] for node in integer_nodes(canonical)}
        assert all(row.operand_types == ("int8", "int8") for row in report.nodes)

    @pytest.mark.tensorrt
    def test_its_attack_graph_builds_and_keeps_the_layers_in_int8(self, architecture: str, width: str) -> None:
        canonical = canonical_of(architecture, width)
        report = proof(canonical, built(build_attack_graph(canonical, target="tensorrt_rtx")))
        assert [row.name for row in report.nodes if not row.integer] == []


@pytest.mark.parametrize(("name", "width"), SHIPPED)
class TestTrainedWeights:
    def test_quantized_anew_they_keep_their_bits_and_nearly_all_decisions(self, name: str, width: str) -> None:
        canonical, images = shipped(name, width)
        logits = run_engine(lower(canonical, "tensorrt"), images)
        np.testing.assert_array_equal(logits, run(canonical, images))
        as_trained, _ = shipped(name)
        agreement = (logits.argmax(1) == run(as_trained, images).argmax(1)).mean()
        assert agreement > SHIPPED[name, width]

    @pytest.mark.tensorrt
    def test_they_build_to_int8_with_an_attack_graph(self, name: str, width: str) -> None:
        canonical, _ = shipped(name, width)
        report = proof(canonical, built(lower(canonical, "tensorrt_rtx")))
        assert (report.status, report.problems) == ("integer", ())
        attack = proof(canonical, built(build_attack_graph(canonical, target="tensorrt_rtx")))
        assert all(row.integer for row in attack.nodes)


@pytest.mark.parametrize("name", FEW_BITS)
class TestFewBits:
    """Trained for ONNX Runtime, and of such codes that both runtimes take: the same network, value for value."""

    def test_the_values_are_the_same_in_int8(self, name: str) -> None:
        canonical, images = shipped(name)
        np.testing.assert_array_equal(run_engine(lower(canonical, "tensorrt"), images), run(canonical, images))
        ours, reference = both_gradients(canonical, images[:8])
        assert relative_error(ours["gradient"], reference["gradient"]) < 2e-6

    @pytest.mark.tensorrt
    def test_they_run_as_int8(self, name: str) -> None:
        canonical, _ = shipped(name)
        report = proof(canonical, built(lower(canonical, "tensorrt_rtx")))
        assert (report.status, report.problems) == ("integer", ())


@pytest.mark.tensorrt
def test_the_smooth_surrogate_builds_too() -> None:
    smooth = build_attack_graph(canonical_of("vgg-small", "w4a4"), surrogate="smooth", target="tensorrt_rtx")
    assert len(built(smooth).plan) > 10_000


@pytest.mark.tensorrt
def test_two_builds_are_of_the_same_layers() -> None:
    """Of networks with layers by the dozen the bytes may differ all the same, in a few hundred of millions: where the
    builder's threads overtake each other it numbers its own names otherwise."""
    canonical = canonical_of("resnet8", "w8a8")
    for graph in (lower(canonical, "tensorrt_rtx"), build_attack_graph(canonical, target="tensorrt_rtx")):
        one, other = built(graph), built(graph)
        assert kinds_and_operands(one) == kinds_and_operands(other)
        assert len(one.plan) == len(other.plan)
        different = np.frombuffer(one.plan, np.uint8) != np.frombuffer(other.plan, np.uint8)
        assert different.mean() < 0.001


def kinds_and_operands(plan: BuiltPlan) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(layer.kind, layer.operands, layer.onnx_nodes) for layer in plan.layers]


@pytest.mark.tensorrt
def test_a_layer_that_lost_its_codes_is_found_out() -> None:
    """One scale of shape [1] in place of []: the parser takes it, the builder says nothing, the layer is float."""
    canonical = canonical_of("resnet8", "w8a8")
    engine = lower(canonical, "tensorrt_rtx")
    quantize = next(node for node in engine.graph.node if node.op_type == "QuantizeLinear")
    for tensor in engine.graph.initializer:
        if tensor.name == quantize.input[1]:
            tensor.dims.append(1)
    report = proof(canonical, built(engine))
    assert report.status == "wrong"
    lost = [row.name for row in report.nodes if not row.integer]
    assert lost == ["stages.0.conv1"]
    assert report.problems == ("stages.0.conv1 is declared integer and runs as correlation on float32 and float32",)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Trained under the profile of its target, at eight bits, and taken as far as a machine without a GPU takes it."""
    folder = tmp_path_factory.mktemp("bars")
    eight_bits = RECIPE.replace("weights = 4\nactivations = 4", "weights = 8\nactivations = 7")
    recipe = load_recipe(write_bars(folder, eight_bits + '[target]\nname = "tensorrt_rtx"\n'))
    return load_bundle(pipeline.run(recipe, folder / "run", until="bundle").folder("bundle"))


def image_type(file: Path) -> int:
    (image,) = [value for value in onnx.load(file).graph.input if value.name == "image"]
    return image.type.tensor_type.elem_type


class TestPipeline:
    def test_a_recipe_becomes_a_bundle_of_graphs_for_tensorrt(self, bundle: Bundle) -> None:
        assert (bundle.manifest.target, bundle.manifest.bits.activations) == ("tensorrt_rtx", 7)
        assert bundle.manifest.integer_attack_file is None
        assert image_type(bundle.path / "engine.onnx") == onnx.TensorProto.INT8
        assert image_type(bundle.path / "attack.onnx") == onnx.TensorProto.INT8

    def test_its_engine_says_what_the_trained_network_said(self, bundle: Bundle) -> None:
        said = np.load(bundle.path / "twin_clean_logits.npy")
        logits = run_engine(onnx.load(bundle.path / "engine.onnx"), np.array(bundle.images))
        np.testing.assert_array_equal(logits, said)

    @pytest.mark.tensorrt
    def test_it_builds_to_what_its_manifest_declares(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        plan = built(onnx.load(bundle.path / manifest.engine_file))
        report = judge_layers(plan.layers, manifest.integer_nodes, manifest.float_nodes)
        assert (report.status, report.problems) == ("integer", ())
        assert len(report.nodes) == 4
        built(onnx.load(bundle.path / manifest.attack_file))

    def test_weights_are_converted_for_the_target_of_their_recipe(self, bundle: Bundle, tmp_path: Path) -> None:
        run_dir = bundle.path.parent
        weights, recipe, out = run_dir / "train/weights.safetensors", run_dir.parent / "recipe.toml", tmp_path / "out"
        given = [
            "convert",
            str(weights),
            "--recipe",
            str(recipe),
            "--run-dir",
            str(tmp_path / "run"),
            "--out",
            str(out),
        ]
        assert cli.main(given) == 0
        engine = (out / "engine.onnx").read_bytes()
        assert engine == (bundle.path / "engine.onnx").read_bytes()


@pytest.mark.tensorrt
def test_a_float_network_of_anybody_is_quantized_to_int8() -> None:
    """With quantizers on both branches of its sums, which TensorRT keeps in INT8 too."""
    plain = export_canonical(freeze(calibrated("resnet8", FLOAT, **OPTIONS["resnet8"])).eval(), input_shape("resnet8"))
    for node in plain.graph.node:
        del node.metadata_props[:]
    images = random_images(32, input_shape("resnet8"))
    canonical = quantize_network(plain, images, symmetric=True)
    engine = lower(canonical, "tensorrt_rtx")
    np.testing.assert_array_equal(run_engine(engine, images), run(canonical, images))
    report = proof(canonical, built(engine))
    assert (report.status, report.problems) == ("integer", ())
    assert len(report.nodes) == sum(node.op_type in ("Conv", "Gemm") for node in plain.graph.node)
