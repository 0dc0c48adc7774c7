"""Layer taps: they move nothing, see one wrong code, and name the layer that it is in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bundle_examples
import canonical_examples
from hardbit.graph.export import export_canonical
from hardbit.quantize import freeze
from hardbit.report import html_report
from hardbit.targets import lower
from hardbit_deploy import engines, results
from hardbit_deploy.bundle import Bundle, load_bundle
from hardbit_deploy.check import CheckOptions, check
from hardbit_deploy.engines.onnx_bytes import further_outputs, read_nodes
from hardbit_deploy.engines.onnxruntime_taps import common_taps
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.summary import result_summary, taps_table
from hardbit_deploy.taps import Tap, TappedImages, TapReport, compare_bundle_layers, compare_layers
from quantized_examples import calibrated

UNATTACKED = CheckOptions(latency=None, workers=1, square_queries=0, steps=1, taps=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_examples.build_bundle(tmp_path_factory.mktemp("taps") / "b", count=20)


def off_by_one(layer: str, sign: int = 1) -> onnx.ModelProto:
    """The engine of the plain network, with the first channel's bias of `layer` moved by one code of its result."""
    engine = lower(canonical_examples.plain_cnn(), "onnxruntime")
    values = {tensor.name: tensor for tensor in engine.graph.initializer}
    nodes = {node.name: node for node in engine.graph.node}
    bias = next(node for node in engine.graph.node if node.output[0] == nodes[layer].input[2])
    codes, scale = (numpy_helper.to_array(values[name]) for name in bias.input[:2])
    readers = {node.input[0]: node for node in engine.graph.node}
    quantize = readers[nodes[layer].output[0]]
    while quantize.op_type != "QuantizeLinear":
        quantize = readers[quantize.output[0]]
    step = float(numpy_helper.to_array(values[quantize.input[1]])) / float(scale.reshape(-1)[0])
    moved = codes.copy()
    moved[0] += sign * round(step)
    values[bias.input[0]].CopyFrom(numpy_helper.from_array(moved, bias.input[0]))
    return engine


def compare(bundle: Bundle, **changes: Any) -> TapReport:
    with engines.open_engine(bundle) as engine:
        taps = engines.open_taps(bundle)
        for name, value in changes.items():
            setattr(taps, name, value)
        return compare_layers(engine, taps, {"clean": bundle.images})


# --- on networks that compute the same bits ---------------------------------------------------------------------------


def test_every_layer_of_the_source_is_compared_and_equal(bundle: Bundle) -> None:
    report = compare_bundle_layers(bundle)
    source = {node.name for node in onnx.load(bundle.file("canonical.onnx")).graph.node}
    assert report.problems == ()
    assert list(report.layers) == ["clean", "adversarial"]
    for kind, layers in report.layers.items():
        assert {layer.node for layer in layers} <= source
        assert {"conv1", "conv2"} <= {layer.node for layer in layers}
        assert all(layer.histogram == (layer.values, 0, 0, 0) for layer in layers)
        assert report.first_apart(kind) is None
        assert report.largest_logit_difference[kind] < 1e-4


@pytest.mark.parametrize(
    "network",
    [canonical_examples.plain_cnn, lambda: export_canonical(freeze(calibrated("resnet8", 4)).eval(), (3, 32, 32))],
    ids=["plain", "resnet8"],
)
def test_taps_move_neither_logits_nor_kernels(network: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    made = bundle_examples.build_bundle(tmp_path / "b", network(), count=6)
    taps = engines.open_taps(made)
    assert taps.kernels_moved() == ()
    with engines.open_engine(made) as engine:
        assert np.array_equal(engine.infer(made.images), taps.images(made.images).engine_logits)
    assert compare_bundle_layers(made).problems == ()


def test_codes_are_those_that_onnx_reference_gives(bundle: Bundle) -> None:
    """Against another implementation of the operators: the reference evaluator of ONNX, image by image."""
    from onnx.reference import ReferenceEvaluator

    taps = engines.open_taps(bundle)
    canonical = onnx.load(bundle.file("canonical.onnx"))
    canonical.opset_import[0].version = 19  # onnx.reference has no older DequantizeLinear
    canonical.graph.output.extend(onnx.ValueInfoProto(name=tap.tensor) for tap in taps.taps)
    pixels = (bundle.images[:2].astype(np.float32) - 128) / 256
    expected = ReferenceEvaluator(canonical).run([tap.tensor for tap in taps.taps], {"image": pixels})
    for ours, reference in zip(taps.images(np.array(bundle.images[:2])).engine_codes, expected, strict=True):
        assert np.abs(ours - reference.astype(np.int32)).max() <= 1
        assert np.mean(ours != reference) < 1e-3


# --- planted faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_a_layer_that_is_off_by_one_is_named(tmp_path: Path, layer: str) -> None:
    faulty = bundle_examples.build_bundle(tmp_path / "b", engine=off_by_one(layer), count=20)
    report = compare_bundle_layers(faulty)
    for kind in ("clean", "adversarial"):
        first = report.first_apart(kind)
        assert first is not None
        assert first.node == layer
        _, one, two, more = first.histogram
        assert one > 20 * two  # a tie goes to the even code: 2.5 to 2 and, moved by one, 3.5 to 4
        assert more == 0
        assert first.images_apart > 0
    text = taps_table(report.to_document())
    assert f"the first that diverges is {layer}" in text


def test_taps_that_move_the_logits_are_not_believed(bundle: Bundle) -> None:
    class Moving:
        taps = (Tap("conv1", "x"),)
        batch = 8

        def images(self, images: np.ndarray) -> TappedImages:
            logits = np.zeros((len(images), bundle_examples.CLASSES), np.float32)
            codes = np.zeros((len(images), 1), np.int32)
            return TappedImages(logits, logits, (codes,), (codes,))

        def kernels_moved(self) -> tuple[str, ...]:
            return ()

    with engines.open_engine(bundle) as engine:
        report = compare_layers(engine, Moving(), {"clean": bundle.images})
    assert report.problems == ("taps move the engine's logits",)
    assert report.layers == {}


def test_a_float_tensor_among_the_taps_is_found_out(bundle: Bundle) -> None:
    """What a tap must never be: it keeps the runtime from fusing the layer, and the proof says so."""
    taps = engines.open_taps(bundle)
    convolution = next(node for node in read_nodes(bundle.file("engine.onnx").read_bytes()) if node.name == "conv1")
    taps._outputs = ["logits", convolution.outputs[0]]  # type: ignore[attr-defined]
    taps._appended = further_outputs(convolution.outputs[:1])  # type: ignore[attr-defined]
    assert any("conv1" in kernel for kernel in taps.kernels_moved())


def test_a_float_network_has_nothing_to_compare(tmp_path: Path, bundle: Bundle) -> None:
    report = compare(bundle, taps=())
    assert report.problems == ("the network has no integer codes to compare: its layers run in float",)
    assert report.to_document()["status"] == "not_run"
    assert "not run" in taps_table(report.to_document())


# --- the bytes of ONNX ------------------------------------------------------------------------------------------------


def test_nodes_are_read_as_onnx_reads_them() -> None:
    model = lower(canonical_examples.plain_cnn(), "onnxruntime")
    read = read_nodes(model.SerializeToString())
    assert [(node.name, node.op, list(node.inputs), list(node.outputs)) for node in read] == [
        (node.name, node.op_type, list(node.input), list(node.output)) for node in model.graph.node
    ]


def test_appended_bytes_are_further_outputs_to_onnx_too() -> None:
    model = canonical_examples.plain_cnn()
    names = ["a tensor", "b" * 300]
    merged = onnx.ModelProto.FromString(model.SerializeToString() + further_outputs(names))
    assert [value.name for value in merged.graph.output] == [value.name for value in model.graph.output] + names
    assert merged.graph.node == model.graph.node


@pytest.mark.parametrize("data", [b"\x3a\xff", b"\x3a\x05ab", b"\x0f", b"\xff" * 12, b"\x3a\x04\x0a\x02\x22\x09"])
def test_bytes_that_are_no_onnx_are_refused(data: bytes) -> None:
    with pytest.raises(HardbitError, match="not an ONNX file"):
        read_nodes(data)


def test_codes_behind_a_clip_are_tapped_and_weights_are_not() -> None:
    canonical = read_nodes(canonical_examples.plain_cnn().SerializeToString())
    engine = read_nodes(lower(canonical_examples.plain_cnn(), "onnxruntime").SerializeToString())
    tensors = {tap.tensor for tap in common_taps(engine, canonical)}
    assert tensors
    made = {name for node in engine for name in node.outputs}
    unclipped = {node.inputs[0] for node in canonical if node.op == "Clip" and node.outputs[0] in made}
    assert tensors <= made - unclipped
    assert not any("weight" in tensor for tensor in tensors)


# --- in the harness ---------------------------------------------------------------------------------------------------


def test_a_check_with_taps_writes_and_shows_them(bundle: Bundle, tmp_path: Path) -> None:
    document = check(bundle.path, None, tmp_path, UNATTACKED)
    jsonschema.Draft202012Validator(results.load_schema("result-v1")).validate(document)
    kinds = {kind["name"]: kind for kind in document["taps"]["kinds"]}
    assert {"clean", "adversarial"} <= set(kinds)
    assert (kinds["clean"]["first_divergent"], kinds["clean"]["images"]) == (None, 20)
    assert "Layer taps, engine against canonical graph" in result_summary(document)
    assert "Layer by layer" in html_report(document, tmp_path)


def test_a_check_without_taps_says_nothing_of_them(bundle: Bundle, tmp_path: Path) -> None:
    document = check(bundle.path, None, tmp_path, CheckOptions(latency=None, workers=1, square_queries=0, steps=1))
    assert "taps" not in document
    assert "Layer by layer" not in html_report(document, tmp_path)


@pytest.mark.skipif("HARDBIT_BUNDLES" not in os.environ, reason="HARDBIT_BUNDLES names no folder of bundles")
def test_taps_of_bundles_that_were_built_elsewhere() -> None:
    """HARDBIT_BUNDLES=DIR: every bundle somewhere below it, the shipped networks', say."""
    for manifest in sorted(Path(os.environ["HARDBIT_BUNDLES"]).rglob("manifest.json")):
        if json.loads(manifest.read_text()).get("format") == "hardbit-bundle":
            made = load_bundle(manifest.parent)
            report = compare_bundle_layers(made, limit=32)
            integer = bool(made.manifest.integer_nodes)
            assert bool(report.layers) == integer, (manifest, report.problems)
