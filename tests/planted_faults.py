"""Faults planted in an engine graph, each of a kind that happens when networks are converted."""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import helper, numpy_helper

import canonical_examples
from hardbit.targets import lower


def engine_with_a_float_convolution() -> onnx.ModelProto:
    """`plain_cnn` lowered, without the quantizer between conv1 and conv2: both fall back to float kernels."""
    model = lower(canonical_examples.plain_cnn(), "onnxruntime")
    dropped = {"act1.quantize", "act1.clip", "pool.dequantize"}
    nodes = [copy.deepcopy(node) for node in model.graph.node if node.name not in dropped]
    reroute = {"act1.clipped": "relu1.out", "pool.out": "pool.codes"}
    for node in nodes:
        node.input[:] = [reroute.get(name, name) for name in node.input]
    return _with_nodes(model, nodes)


def engine_that_ignores_its_image() -> onnx.ModelProto:
    """`plain_cnn` lowered, with so much added to one logit that neither image nor adversary can change the label."""
    model = lower(canonical_examples.plain_cnn(), "onnxruntime")
    nodes = [copy.deepcopy(node) for node in model.graph.node]
    last = next(node for node in nodes if "logits" in node.output)
    last.output[:] = ["honest_logits"]
    nodes.append(helper.make_node("Add", ["honest_logits", "planted.offset"], ["logits"], name="planted"))
    offset = np.zeros(10, np.float32)
    offset[0] = 1e6
    model.graph.initializer.append(numpy_helper.from_array(offset, "planted.offset"))
    return _with_nodes(model, nodes)


def _with_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    changed = copy.deepcopy(model)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    del changed.graph.value_info[:]
    onnx.checker.check_model(changed, full_check=True)
    return changed
