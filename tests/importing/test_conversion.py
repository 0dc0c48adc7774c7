"""From an ONNX file to a bundle that the harness judges: integer kernels proved, twins agree, attacks run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from hardbit.importing import import_network
from hardbit.importing.conversion import convert_onnx
from hardbit.importing.graphs import float_bytes_graph
from hardbit.importing.request import read_request
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.check import CheckOptions, check
from hardbit_deploy.errors import HardbitError
from importing_examples import logits_of, node, operators, pixels, run, saved
from onnx_files import attention, quarters, write_blobs


def convert(model: onnx.ModelProto, folder: Path, **given: object) -> tuple:
    blobs = write_blobs(folder)
    request = read_request(
        saved(model, folder), {"calibrate": f"npz:{blobs}", "eps_255": 8.0, "suite": "quick", **given}
    )
    said: list[str] = []
    return convert_onnx(request, folder / "bundle", said.append), said


def verdict(folder: Path) -> dict:
    """The result of a check of the bundle."""
    return check(folder / "bundle", None, folder / "check", CheckOptions(latency=None))


def agreements(document: dict) -> dict[str, int]:
    rows = {row["name"]: row["label_flips"] for row in document["agreement"]}
    return {name: flips for name, flips in rows.items() if name.startswith(("twin", "attack_graph"))}


def test_a_float_network_becomes_a_bundle_with_integer_layers(tmp_path: Path) -> None:
    made, said = convert(quarters(), tmp_path, name="blobs", class_names=("a", "b", "c", "d"), eps_255=30.0)
    bundle = load_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert (manifest.name, manifest.class_names, manifest.input_shape) == ("blobs", ("a", "b", "c", "d"), (3, 8, 8))
    assert {layer.name for layer in manifest.integer_nodes} == {"/h/Conv", "/z/Gemm"}
    assert {part.name for part in manifest.float_nodes} >= {"preprocessing.scale", "preprocessing.shift"}
    assert made.float_right == made.images == 60
    assert made.engine_right >= 58
    assert list(bundle.transfers) == ["blobs-float"]
    assert bundle.transfers["blobs-float"].shape == (60, 1, 3, 8, 8)
    source = manifest.provenance["source"]
    assert (source["file"], len(source["sha256"])) == ("net.onnx", 64)
    assert any("Softmax" in note for note in source["notes"])
    assert manifest.provenance["quantized"]["images"] == 64
    assert any("percentile over 64 images" in line for line in said)

    document = verdict(tmp_path)
    assert document["precision"]["status"] == "integer"
    assert max(agreements(document).values()) <= 1
    rates = {row["name"]: row["rate"] for row in document["attacks"]}
    assert rates["worst_case"] < rates["clean"]


def test_transfer_images_are_those_of_the_float_network(tmp_path: Path) -> None:
    """They lie in the ball, and fool the source as it came."""
    model = quarters("n")
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 24]), "flat"))
    convert(model, tmp_path, eps_255=40.0)
    bundle = load_bundle(tmp_path / "bundle")
    moved = bundle.transfers["net-float"][:, 0]
    assert np.abs(moved.astype(int) - bundle.images).max() == 40
    source = [run(model, {"x": (images / 255).astype(np.float32)})[0].argmax(1) for images in (bundle.images, moved)]
    assert (source[0] == bundle.labels).mean() == 1
    assert (source[1] == bundle.labels).mean() < 0.5


def test_fewer_bits_bring_the_smooth_surrogate_and_square(tmp_path: Path) -> None:
    convert(quarters(), tmp_path, bits=3)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert (manifest.bits.weights, manifest.bits.activations) == (8, 3)  # both layers are ends
    assert manifest.smooth_attack_file == "attack_smooth.onnx"
    assert manifest.suite.surrogates == ("straight-through", "smooth")
    assert manifest.suite.square_queries > 0


def test_a_binary_network_is_attacked_through_its_signs(tmp_path: Path) -> None:
    made, said = convert(quarters(binary=True), tmp_path)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.bits.activations == 1
    assert bundle.manifest.suite.square_queries > 0
    standing = bundle.manifest.provenance["signs"]["standing"]
    assert set(standing) == {"clipped", "identity"}
    assert any("straight through signs" in line for line in said)
    assert made.engine_right == made.float_right


@pytest.mark.parametrize("batch", [1, "n"])
def test_an_attention_network_becomes_a_bundle(batch: int | str, tmp_path: Path) -> None:
    model = attention(batch)
    images = pixels(5)
    network = import_network(saved(model, tmp_path))
    expected = [run(model, {"x": (image[None] / 255).astype(np.float32)})[0][0] for image in images]
    np.testing.assert_allclose(logits_of(network, images), expected, atol=1e-5)
    assert {"Shape", "Slice"} & set(operators(network)) <= {"Shape"}

    convert(model, tmp_path)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert "/p/Conv" in {layer.name for layer in manifest.integer_nodes}
    assert "/shares/Softmax" in {part.name for part in manifest.float_nodes}
    document = verdict(tmp_path)
    assert document["precision"]["status"] == "integer"


def quantized(model: onnx.ModelProto, folder: Path, form: str) -> onnx.ModelProto:
    """What onnxruntime.quantization makes of a network: Q/DQ, or operators on codes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": (image[None] / 255).astype(np.float32)} for image in pixels(20)]

        def get_next(self) -> dict | None:
            return self.left.pop() if self.left else None

    target = folder / f"{form}.onnx"
    quantize_static(
        saved(model, folder, "float.onnx"),
        target,
        Reader(),
        quant_format=getattr(QuantFormat, form),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return onnx.load(target)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_quantized_network_is_taken_as_it_is(form: str, tmp_path: Path) -> None:
    """Its logits are those of the file, up to the few codes that the runtime's fusions round the other way."""
    source = quarters()
    source.opset_import[0].version = 13
    source.graph.node.pop()  # without the Softmax
    source.graph.output[0].name = "z"
    model = quantized(source, tmp_path, form)
    made, _ = convert(model, tmp_path)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.provenance["quantized"] == "by the source"
    assert made.float_right is None
    assert bundle.transfers == {}
    assert {layer.op for layer in bundle.manifest.integer_nodes} == {"Conv", "Gemm"}
    expected = np.concatenate([run(model, {"x": (image[None] / 255).astype(np.float32)})[0] for image in bundle.images])
    ours = bundle.twin_clean_logits
    assert np.median(np.abs(ours - expected)) <= 0.02 * np.ptp(expected)
    assert (ours.argmax(1) == expected.argmax(1)).mean() >= 0.95
    assert verdict(tmp_path)["precision"]["status"] == "integer"


def test_a_network_in_qonnx_is_taken_as_it_is(tmp_path: Path) -> None:
    """Made for one image, with weights and activations of 4 bits; ONNX Runtime does not know its operators."""
    model = quarters()
    means = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "m")
    model.graph.initializer.append(onnx.numpy_helper.from_array(-means, "bias"))
    model.graph.node[0].CopyFrom(node("Conv", ["x", "w", "bias"], "n"))
    del model.graph.node[1]  # its BatchNormalization is in the bias
    model.opset_import.append(onnx.helper.make_opsetid("qonnx.custom_op.general", 1))
    for name, value in (
        ("one", 1.0),
        ("zero", 0.0),
        ("four", 4.0),
        ("eighth", 1 / 8),
        ("half", 0.5),
        ("fine", 1 / 255),
    ):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(8), "eight"))

    def quant(source: str, scale: str, bits: str, signed: int) -> onnx.NodeProto:
        inputs = [source, scale, "zero", bits]
        domain = "qonnx.custom_op.general"
        return node("Quant", inputs, f"{source}.q", domain=domain, signed=signed, narrow=signed, rounding_mode="ROUND")

    places = {
        "x": ("fine", "eight", 0),
        "w": ("eighth", "eight", 1),
        "r": ("half", "four", 0),
        "u": ("eighth", "four", 1),
    }
    for each in model.graph.node:
        each.input[:] = [f"{name}.q" if name in places else name for name in each.input]
    kept = [onnx.NodeProto.FromString(each.SerializeToString()) for each in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([quant(name, *places[name]) for name in ("x", "w", "u")])
    for each in kept:
        model.graph.node.append(each)
        if each.output[0] == "r":
            model.graph.node.append(quant("r", *places["r"]))
    made, _ = convert(model, tmp_path)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.bits.activations == 4
    assert made.engine_right >= 55
    assert verdict(tmp_path)["precision"]["status"] == "integer"


def test_what_cannot_be_attacked_is_refused_by_its_nodes(tmp_path: Path) -> None:
    model = quarters()
    index = next(place for place, each in enumerate(model.graph.node) if each.op_type == "Relu")
    model.graph.node[index].CopyFrom(
        onnx.helper.make_node("MeanVarianceNormalization", ["n"], ["r"], name="/strange", axes=[1, 2, 3])
    )
    with pytest.raises(HardbitError, match="no gradient rule") as caught:
        convert(model, tmp_path)
    assert caught.value.where == "/strange"


def test_images_that_do_not_fit_the_network(tmp_path: Path) -> None:
    model = quarters()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    with pytest.raises(HardbitError, match=r"the images \[3, 8, 8\]"):
        convert(model, tmp_path)


def test_a_network_that_knows_nothing_is_doubted(tmp_path: Path) -> None:
    _, said = convert(quarters(), tmp_path, mean=(5.0,))
    assert any("--mean" in line for line in said)


def test_without_training_images_the_last_test_images_calibrate(tmp_path: Path) -> None:
    blobs = write_blobs(tmp_path)
    with np.load(blobs) as arrays:
        np.savez(tmp_path / "few.npz", images=arrays["x_test"], labels=arrays["y_test"])
    given = {"calibrate": f"npz:{tmp_path / 'few.npz'}", "calibration_count": 20, "suite": "quick"}
    said: list[str] = []
    convert_onnx(read_request(saved(quarters(), tmp_path), given | {"count": 30}), tmp_path / "bundle", said.append)
    assert any("0 of 20 are judged too" in line for line in said)
    convert_onnx(read_request(tmp_path / "net.onnx", given), tmp_path / "bundle", said.append)
    assert any("20 of 20 are judged too" in line for line in said)


def test_the_float_network_reads_bytes_too(tmp_path: Path) -> None:
    network = import_network(saved(quarters(), tmp_path))
    images = pixels(4)
    (logits,) = run(float_bytes_graph(network.model), {"image": images})
    np.testing.assert_allclose(logits, logits_of(network, images), atol=1e-6)


def test_no_training_framework_on_the_way(tmp_path: Path) -> None:
    """The whole command, in a process of its own, in which importing torch would be an error."""
    blobs = write_blobs(tmp_path)
    saved(quarters(), tmp_path)
    program = (
        "import json, sys\n"
        "sys.modules['torch'] = sys.modules['brevitas'] = None\n"
        "from hardbit.cli import main\n"
        "code = main(['convert', 'net.onnx', '--calibrate', sys.argv[1], '--suite', 'quick', '--json', '--out', 'b'])\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"npz:{blobs}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine_right"] >= 58
