"""The end of a classifier: attacks want logits, so what only turns logits into probabilities or a label goes."""

from __future__ import annotations

import onnx

from hardbit.graph.onnx_graph import OnnxGraph, attribute

__all__ = ["end_in_logits"]

_NORMALIZATIONS = ("Softmax", "LogSoftmax")
_MOVES = ("Flatten", "Identity", "Reshape", "Squeeze")


def end_in_logits(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy whose output are the logits, and a note for what was taken away.

    That is a final Softmax, LogSoftmax or ArgMax over the classes, also where a Reshape or the like follows. None of
    them changes which class is the largest.
    """
    graph, notes = OnnxGraph(model), []
    output = model.graph.output[0].name
    while True:
        node = graph.producer(output)
        if node is not None and node.op_type == "Cast":
            labels = graph.producer(node.input[0])
            node = labels if labels is not None and labels.op_type == "ArgMax" else node
        if node is None or node.op_type not in ("ArgMax", *_NORMALIZATIONS) or not _over_classes(node):
            break
        notes.append(f"the final {node.op_type} '{node.name}' is left out: attacks want the logits before it")
        output = node.input[0]
    behind = _moved_normalization(graph, output)
    if behind is not None:
        notes.append(f"the final {behind.op_type} '{behind.name}' is left out: attacks want the logits before it")
        graph.replace_uses(behind.output[0], behind.input[0])
    changed = graph.to_model()
    if output != changed.graph.output[0].name:
        del changed.graph.output[:]
        changed.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    elif notes:
        changed.graph.output[0].type.tensor_type.ClearField("shape")
    return changed, notes


def _over_classes(node: onnx.NodeProto) -> bool:
    """Axis 1 or the last one; what is the default of old softmaxes is 1, of ArgMax 0."""
    return attribute(node, "axis", 0 if node.op_type == "ArgMax" else 1) in (1, -1)


def _moved_normalization(graph: OnnxGraph, output: str) -> onnx.NodeProto | None:
    """A softmax behind which values are only moved on their way to `output`."""
    node = graph.producer(output)
    while node is not None and node.op_type in _MOVES and len(graph.consumers(node.output[0])) <= 1:
        node = graph.producer(node.input[0])
    if node is None or node.op_type not in _NORMALIZATIONS or node.output[0] == output:
        return None
    return node if _over_classes(node) and len(graph.consumers(node.output[0])) == 1 else None
