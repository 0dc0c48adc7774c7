"""Canonical graphs as the profile of TensorRT makes them, written by hand; and what the tests of its target share."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from canonical_examples import INPUT_SCALE, CanonicalBuilder, plain_cnn
from hardbit.graph.onnx_graph import OnnxGraph
from lowering_examples import run_on

WIDTHS = [7, 4, 3, 2]


def symmetric_cnn(bits: int = 7, seed: int = 0) -> onnx.ModelProto:
    """`plain_cnn`, which has no sums: the same under every profile."""
    return plain_cnn(bits, seed)


def symmetric_residual_net(bits: int = 7, seed: int = 0) -> onnx.ModelProto:
    """Stem, an identity block, a strided block with a 1x1 shortcut, average pooling, on (3, 16, 16).

    Of the operands of an Add, the skip branch alone is quantized; what is averaged has 7 bits, as all that is not
    negative; and int8 codes of 8 bits stand where a number may be negative.
    """
    b = CanonicalBuilder(seed)
    scale = 2.0**-bits
    x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    x = b.conv(x, "stem", (16, 3, 3, 3), INPUT_SCALE, 8, strides=[1, 1], pads=[1, 1, 1, 1])
    x = b.node("Relu", [x], "stem.relu.out", "stem.relu")
    x = b.quantize(x, "stem.act", scale, bits, signed=False)
    for block, (inputs, outputs, stride) in enumerate([(16, 16, 1), (16, 32, 2)]):
        p, strides = f"block{block}", [stride, stride]
        y = b.conv(x, f"{p}.conv1", (outputs, inputs, 3, 3), scale, bits, strides=strides, pads=[1, 1, 1, 1])
        y = b.node("Relu", [y], f"{p}.relu1.out", f"{p}.relu1")
        y = b.quantize(y, f"{p}.act1", scale, bits, signed=False)
        y = b.conv(y, f"{p}.conv2", (outputs, outputs, 3, 3), scale, bits, strides=[1, 1], pads=[1, 1, 1, 1])
        if stride != 1 or inputs != outputs:
            x = b.conv(x, f"{p}.shortcut", (outputs, inputs, 1, 1), scale, bits, strides=strides, pads=[0, 0, 0, 0])
            x = b.quantize(x, f"{p}.skip", scale * 2, 8 if bits == 7 else bits, signed=True)
        x = b.node("Add", [y, x], f"{p}.add.out", f"{p}.add")
        x = b.node("Relu", [x], f"{p}.relu2.out", f"{p}.relu2")
        x = b.quantize(x, f"{p}.act2", scale, bits, signed=False)
    x = b.node("GlobalAveragePool", [x], "pool.out", "pool")
    x = b.quantize(x, "pool.act", scale / 16, 7, signed=False)
    x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    x = b.gemm(x, "fc", (10, 32), scale / 16, 8)
    return b.model(x, (3, 16, 16), 10)


def run_engine(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of an engine graph by ONNX Runtime, node by node: it reads pixel - 128 as int8."""
    return run_on(model, (images.astype(np.int16) - 128).astype(np.int8))


def halves(model: onnx.ModelProto) -> set[str]:
    """The nodes whose results are float16."""
    shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*shaped.value_info, *shaped.output)}
    return {node.name for node in model.graph.node if kinds[node.output[0]] == TensorProto.FLOAT16}


def rounding_to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` such that ONNX Runtime rounds every float16 result.

    It computes such nodes in float32 and takes out the two Casts that stand between one and the next; not so where an
    Identity keeps them apart.
    """
    graph, names = OnnxGraph(model), halves(model)
    for node in [node for node in graph.nodes if node.name in names]:
        kept = graph.unused_name(f"{node.output[0]}.kept")
        graph.replace_uses(node.output[0], kept)
        identity = helper.make_node("Identity", [node.output[0]], [kept], name=graph.unused_node_name(kept))
        graph.insert_after(node, identity)
    return graph.to_model()
