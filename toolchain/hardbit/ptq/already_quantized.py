"""ONNX networks that are quantized already, taken as they are: Q/DQ, QOperator or QONNX to a canonical graph.

Boundary: the network's own codes decide. No scale is chosen, nothing is calibrated or quantized anew.
"""

from __future__ import annotations

import onnx

from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import RemoveIdentities, StripInitializerInputs, run_passes
from hardbit.ptq.declarations import declare_floats
from hardbit.ptq.operators_on_codes import codes_as_numbers
from hardbit.ptq.preparation import with_initializers
from hardbit.ptq.qonnx_dialect import qonnx_as_qdq
from hardbit.ptq.quantized_layers_of_files import constants_as_numbers, layers_by_output_channel
from hardbit.ptq.quantizers_of_files import (
    bytes_first,
    declared_widths,
    eight_bit_codes,
    explicit_parameters,
    integer_clips,
    without_repeated_quantizers,
)

__all__ = ["canonical_from_quantized"]

_CANONICAL_FORMAT = "canonical-1"


def canonical_from_quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The canonical graph of a quantized classifier: the same codes, scales and zero points.

    `model`, opset 18, reads `image` float32 (batch, channels, height, width) and gives `logits` (batch, classes); its
    quantized parts are written with QuantizeLinear and DequantizeLinear, with ONNX Runtime's operators on codes, or in
    QONNX. Layers are written in the form that integer kernels have; what the file leaves to float is declared so.
    Raises HardbitError that names the node which has no canonical form.
    """
    source = StripInitializerInputs().apply(with_initializers(model))
    plain = codes_as_numbers(eight_bit_codes(qonnx_as_qdq(source)))
    graph = OnnxGraph(run_passes(plain, (RemoveIdentities(),)))
    for node in graph.nodes:
        if not node.name:
            node.name = graph.unused_node_name(node.output[0] or node.op_type)
    for step in (
        layers_by_output_channel,
        constants_as_numbers,
        explicit_parameters,
        bytes_first,
        integer_clips,
        without_repeated_quantizers,
    ):
        step(graph)
        graph.prune()
    declared_widths(graph)
    declare_floats(graph)
    graph.set_metadata({"hardbit.format": _CANONICAL_FORMAT, "hardbit.profile": "onnxruntime"})
    canonical = graph.to_model()
    check_canonical(canonical)
    onnx.checker.check_model(canonical, full_check=True)
    return canonical
