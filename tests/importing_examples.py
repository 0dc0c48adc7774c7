"""Small ONNX networks as other people write them, and how a test runs source and import independently of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hardbit.importing import ImportedNetwork

Array = NDArray[Any]
CLASSES = 4


def pixels(count: int = 5, shape: Sequence[int] = (3, 8, 8)) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, *shape), np.uint8)


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    fan_in = int(np.prod(shape[1:])) or 1
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: dict[str, Sequence[int | str | None]],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "somebody's",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    for value in graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(operator: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], name=name or f"/{output}/{operator}", **attributes)


def convolutional(
    batch: int | str | None = "n",
    *,
    opset: int = 13,
    channels: int = 3,
    size: int = 8,
    tail: Sequence[onnx.NodeProto] = (),
    logits: str = "y",
    flat: Sequence[int] | None = None,
) -> onnx.ModelProto:
    """Conv, Relu, Flatten (or a Reshape to `flat`), Gemm."""
    moved = node("Flatten", ["r"], "f") if flat is None else node("Reshape", ["r", "flat"], "f")
    constants = {
        "w": weights(6, channels, 3, 3),
        "b": weights(6),
        "v": weights(CLASSES, 6 * size * size, seed=1),
        "c": weights(CLASSES, seed=2),
    }
    if flat is not None:
        constants["flat"] = np.array(flat, np.int64)
    nodes = [
        node("Conv", ["x", "w", "b"], "h", pads=[1, 1, 1, 1]),
        node("Relu", ["h"], "r"),
        moved,
        node("Gemm", ["f", "v", "c"], logits, transB=1),
        *tail,
    ]
    return model_of(nodes, constants, {"x": [batch, channels, size, size]}, opset=opset)


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def run(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def logits_of(network: ImportedNetwork, images: NDArray[np.uint8]) -> Array:
    """Of an imported network, all images in one batch."""
    (logits,) = run(network.model, {"image": (images.astype(np.float32) - 128) / 256})
    assert logits.dtype == np.float32
    assert logits.shape == (len(images), network.classes)
    return logits


def operators(network: ImportedNetwork) -> list[str]:
    return [each.op_type for each in network.model.graph.node]
