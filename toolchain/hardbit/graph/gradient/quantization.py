"""Straight-through adjoints of QuantizeLinear, the integer Clip behind it, and DequantizeLinear.

The derivative of rounding is taken as 1, that of saturation as it is (Bengio et al. 2013, arXiv:1308.3432): the
gradient passes where low <= round(x / scale) + zero_point <= high. For float x this is an interval whose ends,
(low - zero_point - 1/2) scale and (high - zero_point + 1/2) scale, belong to it if rounding half to even takes them
inwards: the lower if low - zero_point is even, the upper if high - zero_point is even.

Where the mask is computed from decides the speed of the whole attack graph. ONNX Runtime runs Conv-Relu-Quantize as
one integer kernel only if nothing else reads the float tensors, so:

- A Clip of codes below the range of their type shows saturation exactly: codes differ before and after it. No float
  tensor is read.
- Saturation of the type itself (8 bits), and x > 0 of a Relu whose small positive values round to code 0, are lost in
  the codes. With `tape.exact`, below 256 levels, and for pixels, they are taken from the float tensor. Else codes at
  the end of the type's range are counted as saturated, and code 0 behind a Relu as negative: at 256 levels this
  concerns half a code in 256, and the attack is as strong (with 16 levels and fewer it is weaker).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.intervals import integer_bounds
from hardbit.graph.gradient.primal import PrimalGraph, attributes, input_name
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["MOVES_VALUES", "clipped_codes", "code_range", "codes_carry_relu", "dequantize", "quantize"]

FINE_LEVELS = 256  # quantizers with at least this many levels may take their masks from codes
MOVES_VALUES = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose"})
PREPROCESSING = frozenset(
    {"Add", "Cast", "DequantizeLinear", "Div", "Flatten", "Gather", "Mul", "Reshape", "Sub", "Transpose"}
)


def quantize(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    graph = tape.graph
    if has_channels(graph, node):
        return [quantize_channels(tape, node, cotangent)]
    parameters(graph, node)
    type_range = integer_bounds(graph.dtypes[node.output[0]])
    if type_range is None:
        raise UnsupportedOperator("QuantizeLinear to a type other than 8 or 16 bits", where=node_label(node))
    low, high = code_range(graph, node)
    # A side on which the Clip behind is narrower than the type is masked there.
    sides = [sign for sign, bound, end in ((-1, low, type_range[0]), (1, high, type_range[1])) if bound == end]
    if tape.forms == "tensorrt":
        sides = [-1, 1]
    if takes_masks_from_codes(tape, node):
        return [mask_by_codes(tape, node, cotangent, [side for side in sides if leaves_range(tape, node, side)])]
    for side in sides:
        if leaves_range(tape, node, side):
            value, inclusive = edge(graph, node, side)
            if reads_pixels(graph, node):
                value += side * parameters(graph, node)[0] / 2
            comparison = ("Greater" if side < 0 else "Less") + ("OrEqual" if inclusive else "")
            cotangent = cotangent.masked(tape.emit(comparison, [node.input[0], tape.constant(value)]))
    return [cotangent]


def has_channels(graph: PrimalGraph, node: onnx.NodeProto) -> bool:
    """Whether a quantizer of activations has a scale for each channel."""
    scale = graph.constant(node, 1)
    return scale is not None and scale.size > 1


def quantize_channels(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> Cotangent:
    """As for one scale, with edges for each channel, and always from the float values.

    An edge that does not belong to the range is moved inwards to the next float, so one comparison serves all channels.
    """
    graph, shape = tape.graph, tape.graph.shape(node.input[0])
    scale, zero_point = graph.constant(node, 1), graph.constant(node, 2)
    type_range = integer_bounds(graph.dtypes[node.output[0]])
    if scale is None or not (scale > 0).all() or type_range is None or (zero_point is None and input_name(node, 2)):
        raise UnsupportedOperator("QuantizeLinear of channels without constant parameters", where=node_label(node))
    axis = attributes(node).get("axis", 1) % len(shape)
    zero = np.zeros(scale.shape) if zero_point is None else zero_point.astype(np.float64)
    for side, bound, end in zip((-1, 1), code_range(graph, node), type_range, strict=True):
        if bound != end:
            continue  # the Clip behind masks this side
        codes = bound - zero
        edges = ((codes + side / 2) * scale).astype(np.float32)
        edges = np.where(codes % 2 == 0, edges, np.nextafter(edges, np.float32(-side * np.inf)))
        limits = tape.constant(edges.reshape([-1 if k == axis else 1 for k in range(len(shape))]))
        cotangent = cotangent.masked(tape.emit(f"{'Greater' if side < 0 else 'Less'}OrEqual", [node.input[0], limits]))
    return cotangent


def mask_by_codes(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent, sides: list[int]) -> Cotangent:
    """Codes at the ends of their type's range count as saturated."""
    if not sides:
        return cotangent
    codes, dtype = node.output[0], tape.graph.dtypes[node.output[0]]
    low, high = integer_bounds(dtype) or (0.0, 0.0)
    inner = [low + (-1 in sides), high - (1 in sides)]
    bounds = [tape.constant(bound, helper.tensor_dtype_to_np_dtype(dtype)) for bound in inner]
    return cotangent.masked(tape.emit("Equal", [codes, tape.emit("Clip", [codes, *bounds])]))


def leaves_range(tape: Tape, node: onnx.NodeProto, side: int) -> bool:
    """Whether the values that are quantized can saturate below (side -1) or above (side 1), as far as is known."""
    if side < 0 and codes_carry_relu(tape, tape.graph.producers.get(node.input[0])):
        return True  # the mask of the Relu comes with it
    value, inclusive = edge(tape.graph, node, side)
    extreme = tape.intervals.get(node.input[0], (-np.inf, np.inf))[0 if side < 0 else 1]
    return side * extreme > side * value or (extreme == value and not inclusive)


def edge(graph: PrimalGraph, node: onnx.NodeProto, side: int) -> tuple[float, bool]:
    """The float value at which saturation begins on one side, and whether it still belongs to the range."""
    scale, zero_point = parameters(graph, node)
    code = code_range(graph, node)[0 if side < 0 else 1] - zero_point
    return (code + side / 2) * scale, code % 2 == 0


def clipped_codes(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Passes where the Clip of integer codes changes nothing; left to the quantizer's rule where no mask may read
    codes."""
    if tape.forms == "tensorrt":
        quantizer = tape.graph.producers.get(node.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear" or has_channels(tape.graph, quantizer):
            raise UnsupportedOperator("Clip of codes elsewhere than behind their quantizer", where=node_label(node))
        return [cotangent]
    return [cotangent.masked(tape.emit("Equal", [node.input[0], node.output[0]]))]


def dequantize(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """As it is where the scale is that of the quantizer, else by the ratio of the two."""
    quantizer = source_quantizer(tape.graph, node)
    scales = [None if quantizer is None else tape.graph.constant(quantizer, 1), tape.graph.constant(node, 1)]
    if scales[0] is None or scales[1] is None or np.array_equal(scales[0], scales[1]):
        return [cotangent]
    if scales[0].size != 1 or scales[1].size != 1:
        raise UnsupportedOperator("DequantizeLinear by other scales than its quantizer's", where=node_label(node))
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    return [Cotangent(tape.scaled(tensor, float(scales[1].item()) / float(scales[0].item())))]


def source_quantizer(graph: PrimalGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The QuantizeLinear whose codes a DequantizeLinear reads, by way of what moves or clips them."""
    maker = graph.producers.get(node.input[0])
    while maker is not None and maker.op_type in MOVES_VALUES | {"Clip"}:
        maker = graph.producers.get(maker.input[0])
    return maker if maker is not None and maker.op_type == "QuantizeLinear" else None


def codes_carry_relu(tape: Tape, node: onnx.NodeProto | None) -> bool:
    """Whether the mask of a Relu is left to the codes of the quantizer that alone reads it."""
    if node is None or node.op_type != "Relu":
        return False
    reader = tape.graph.sole_consumer(node.output[0])
    if reader is None or reader.op_type != "QuantizeLinear" or has_channels(tape.graph, reader):
        return False
    if not takes_masks_from_codes(tape, reader):
        return False
    _, zero_point = parameters(tape.graph, reader)
    low, _ = code_range(tape.graph, reader)
    type_range = integer_bounds(tape.graph.dtypes[reader.output[0]])
    return type_range is not None and low == zero_point == type_range[0]


def takes_masks_from_codes(tape: Tape, node: onnx.NodeProto) -> bool:
    low, high = code_range(tape.graph, node)
    return not tape.exact and high - low + 1 >= FINE_LEVELS and not reads_pixels(tape.graph, node)


def reads_pixels(graph: PrimalGraph, node: onnx.NodeProto) -> bool:
    """Whether nothing but preprocessing lies between the bytes of an image and a quantizer.

    Black and white are the outermost of such codes, and far from rare. What is before them is computed in float
    whatever reads it, so a mask from float values costs nothing there. Its edges lie half a code further out: as the
    zero point is rounded, a range that holds all pixels may end half a code too early on one side.
    """
    name = node.input[0]
    while (maker := graph.producers.get(name)) is not None and maker.op_type in PREPROCESSING:
        moving = [source for source in maker.input if source and source not in graph.constants]
        if len(moving) != 1:
            return False
        name = moving[0]
    return name in graph.inputs and graph.dtypes[name] == TensorProto.UINT8


def code_range(graph: PrimalGraph, node: onnx.NodeProto) -> tuple[float, float]:
    """Least and greatest code of a quantizer: those of its type, narrowed by a Clip that alone reads the codes."""
    low, high = integer_bounds(graph.dtypes[node.output[0]]) or (-np.inf, np.inf)
    reader = graph.sole_consumer(node.output[0])
    if reader is not None and reader.op_type == "Clip":
        bounds = [graph.constant(reader, position) for position in (1, 2)]
        low = low if bounds[0] is None else max(low, float(bounds[0]))
        high = high if bounds[1] is None else min(high, float(bounds[1]))
    return low, high


def parameters(graph: PrimalGraph, node: onnx.NodeProto) -> tuple[float, float]:
    """Scale and zero point of a per-tensor QuantizeLinear; refuses what is not constant or not per tensor."""
    scale, zero_point = graph.constant(node, 1), graph.constant(node, 2)
    if scale is None or scale.size != 1 or not float(scale.reshape(-1)[0]) > 0:
        raise UnsupportedOperator("QuantizeLinear without one constant positive scale", where=node_label(node))
    if len(node.input) > 2 and node.input[2] and zero_point is None:
        raise UnsupportedOperator("QuantizeLinear with a computed zero point", where=node_label(node))
    zero = 0.0 if zero_point is None else float(zero_point.reshape(-1)[0])
    return float(scale.reshape(-1)[0]), zero
