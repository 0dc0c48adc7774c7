"""Which of several exact forms of the reverse graph ONNX Runtime runs fastest: the numbers behind its rules.

One pinned core, contenders interleaved, medians of CPU time. Nothing is asserted on speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.resnet20_example import CLASSES, INPUT_SHAPE, resnet20_canonical
from benchmarks.test_attack_speed import one_core  # noqa: F401 (a fixture)
from hardbit.graph.gradient import build_attack_graph
from quantized_examples import random_images

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_core")]

BATCH = 8
REPEATS = 25


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def medians_us(contenders: dict[str, Callable[[], object]], images: int) -> dict[str, float]:
    """Median CPU time per image in microseconds, every contender in each round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS + 1):
        for name, run in contenders.items():
            start = time.process_time()
            for _ in range(10):
                run()
            times[name].append((time.process_time() - start) / 10 / images * 1e6)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def report(capsys: pytest.CaptureFixture[str], title: str, medians: dict[str, float]) -> None:
    with capsys.disabled():
        print(f"\n{title}: CPU time per image in us")
        for name, value in medians.items():
            print(f"  {name:44s} {value:8.1f}")


def graph_of(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], result: tuple[int, ...], constants: dict[str, np.ndarray]
) -> ort.InferenceSession:
    """Nodes from `g` to `out`, with a multiplication before and an addition behind them as in a reverse graph."""
    frame = [helper.make_node("Mul", ["g", "one"], ["in"]), *nodes, helper.make_node("Add", ["x", "one"], ["out"])]
    constants = constants | {"one": np.ones((1, 1, 1, 1), np.float32)}
    graph = helper.make_graph(
        frame,
        "option",
        [helper.make_tensor_value_info("g", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", *result])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def flipped(weights: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weights.swapaxes(0, 1)[:, :, ::-1, ::-1])


def sub_pixel(weights: np.ndarray) -> np.ndarray:
    """Weights of the 2x2 convolution that makes the four phases of a 3x3, stride 2, padding 1 adjoint."""
    outputs, inputs = weights.shape[:2]
    phases = np.zeros((2, 2, inputs, outputs, 2, 2), np.float32)
    for row, column, k, m in np.ndindex(2, 2, 3, 3):
        if (row + 1 - k) % 2 == 0 and (column + 1 - m) % 2 == 0:
            phases[row, column, :, :, (row + 1 - k) // 2, (column + 1 - m) // 2] = weights[:, :, k, m].T
    return phases.reshape(4 * inputs, outputs, 2, 2)


@pytest.mark.parametrize(("channels", "size"), [(16, 32), (32, 16), (64, 8)])
def test_adjoint_of_a_convolution(channels: int, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    shape = (channels, size, size)
    plain = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    options = {
        "nothing but the frame": graph_of([helper.make_node("Identity", ["in"], ["x"])], shape, shape, {}),
        "stride 1, Conv with flipped kernel": graph_of(
            [helper.make_node("Conv", ["in", "w"], ["x"], **plain)], shape, shape, {"w": flipped(w)}
        ),
        "stride 1, ConvTranspose": graph_of(
            [helper.make_node("ConvTranspose", ["in", "w"], ["x"], **plain)], shape, shape, {"w": w}
        ),
    }
    strided = rng.standard_normal((2 * channels, channels, 3, 3)).astype(np.float32)
    half = (2 * channels, size // 2, size // 2)
    doubled = {"a": np.array([-1, half[0], half[1], 1, half[2], 1]), "b": np.array([-1, half[0], size, size])}
    doubled |= {"pads": np.array([0] * 9 + [1, 0, 1]), "zero": np.float32(0)}
    stuffing = [
        helper.make_node("Reshape", ["in", "a"], ["apart"]),
        helper.make_node("Pad", ["apart", "pads", "zero"], ["padded"]),
        helper.make_node("Reshape", ["padded", "b"], ["stuffed"]),
        helper.make_node("Conv", ["stuffed", "w"], ["x"], **plain),
    ]
    phases = [
        helper.make_node("Conv", ["in", "w"], ["p"], pads=[0, 0, 1, 1], kernel_shape=[2, 2]),
        helper.make_node("DepthToSpace", ["p"], ["x"], blocksize=2, mode="DCR"),
    ]
    transposed = helper.make_node("ConvTranspose", ["in", "w"], ["x"], strides=[2, 2], output_padding=[1, 1], **plain)
    strided_options = {
        "stride 2, ConvTranspose": graph_of([transposed], half, shape, {"w": strided}),
        "stride 2, sub-pixel Conv and DepthToSpace": graph_of(phases, half, shape, {"w": sub_pixel(strided)}),
        "stride 2, zeros between, then Conv": graph_of(stuffing, half, shape, doubled | {"w": flipped(strided)}),
    }
    g, g_half = (rng.standard_normal((BATCH, *s)).astype(np.float32) for s in (shape, half))
    reference, *others = (option.run(None, {"g": g_half})[0] for option in strided_options.values())
    for other in others:
        np.testing.assert_allclose(other, reference, atol=1e-3)
    contenders = {name: lambda s=s: s.run(None, {"g": g}) for name, s in options.items()}
    contenders |= {name: lambda s=s: s.run(None, {"g": g_half}) for name, s in strided_options.items()}
    report(capsys, f"adjoint, 3x3, {channels} channels at {size}x{size}", medians_us(contenders, BATCH))


def test_mask_of_a_relu(capsys: pytest.CaptureFixture[str]) -> None:
    shape = (16, 32, 32)
    zero = {"zero": np.float32(0), "big": np.float32(1e38), "unit": np.float32(1)}
    of = helper.make_node
    forms = {
        "nothing but the frame": [of("Identity", ["in"], ["x"])],
        "Mul by Cast of Greater": [
            of("Greater", ["in", "zero"], ["b"]),
            of("Cast", ["b"], ["m"], to=TensorProto.FLOAT),
            of("Mul", ["in", "m"], ["x"]),
        ],
        "Mul by Cast of Cast to bool (of a Relu's output)": [
            of("Cast", ["in"], ["b"], to=TensorProto.BOOL),
            of("Cast", ["b"], ["m"], to=TensorProto.FLOAT),
            of("Mul", ["in", "m"], ["x"]),
        ],
        "Mul by Sign (of a Relu's output)": [of("Sign", ["in"], ["m"]), of("Mul", ["in", "m"], ["x"])],
        "Mul by Clip of a multiple": [
            of("Mul", ["in", "big"], ["l"]),
            of("Clip", ["l", "zero", "unit"], ["m"]),
            of("Mul", ["in", "m"], ["x"]),
        ],
        "Where": [of("Greater", ["in", "zero"], ["b"]), of("Where", ["b", "in", "zero"], ["x"])],
    }
    g = np.random.default_rng(0).standard_normal((BATCH, *shape)).astype(np.float32)
    sessions = {name: graph_of(nodes, shape, shape, zero) for name, nodes in forms.items()}
    contenders = {name: lambda s=s: s.run(None, {"g": g}) for name, s in sessions.items()}
    report(capsys, "mask over 16 channels at 32x32", medians_us(contenders, BATCH))


@pytest.mark.timeout(900)
def test_masks_and_micro_batches_of_whole_attack_graphs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = random_images(32, INPUT_SHAPE)
    rng = np.random.default_rng(0)
    rows = {
        "onehot": np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, 32)],
        "engine_logits": rng.standard_normal((32, CLASSES)).astype(np.float32),
        "seed": np.zeros((32, CLASSES), np.float32),
        "image": images,
    }
    constants = {"own_logits": np.array(False), "loss_weights": np.array([1, 0], np.float32)}
    contenders: dict[str, Callable[[], object]] = {}
    for bits in (8, 4):
        canonical = resnet20_canonical(bits)
        for masks in ("auto", "exact"):
            attack = session(build_attack_graph(canonical, masks=masks))
            for batch in (4, 8, 16, 32) if masks == "auto" else (8,):

                def run(attack: ort.InferenceSession = attack, batch: int = batch) -> None:
                    for first in range(0, 32, batch):
                        feeds = {name: value[first : first + batch] for name, value in rows.items()}
                        attack.run(["gradient"], feeds | constants)

                contenders[f"W{bits}A{bits}, masks {masks}, micro-batch {batch}"] = run
    report(capsys, "attack graph of ResNet-20", medians_us(contenders, 32))
