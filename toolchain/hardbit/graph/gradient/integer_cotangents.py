"""The attack graph with a backward pass in 8-bit integers: the same logits, and directions that are nearly the same.

At 8 bits the forward pass of an attack graph costs a quarter of its time, for it runs in integers; what is left are
convolutions of float cotangents. An attacker who takes signs of a gradient, or its direction, has no use for 24 bits of
it. So the cotangents of convolutions, masks and sums are quantized to 8 bits each, and ONNX Runtime runs the reverse
sweep on the kernels of the engine itself: QLinearConv, QLinearMul, QLinearAdd (gradients of few bits: Banner et al.
2018, arXiv:1805.11046). The convolution nearest to the image stays in float.

- Scales are static, so that an image has the same direction in every batch: the cotangents of some images under both
  losses fill the range, but for the few greatest, which saturate; small ones decide more signs. Images are brought to
  the same magnitude where the sweep leaves the last layers. What is still too small for its scale is lost, in the
  worst case the whole direction of an image: who uses this graph asks the exact one then.
- Weights of adjoints are int8 codes per output channel, as those of the forward pass are.
- A convolution of stride 2 goes back as one of stride 1 with four times the channels, whose pixels are then
  interleaved (Shi et al. 2016, arXiv:1609.05158): ConvTranspose has no integer kernel.

Boundary: never a gradient to measure by. Minimal distances, alarms on gradients and seeds of other losses use the exact
attack graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.sub_pixel import doubles, padding_of, sub_pixel_weights
from hardbit.graph.gradient.surrogates import FINE_LEVELS, bounds
from hardbit.graph.gradient.tape import PREFIX
from hardbit.graph.onnx_graph import OnnxGraph

__all__ = ["calibration_feeds", "with_integer_cotangents"]

COVERED = 99.7  # per cent of a tensor's cotangents that do not saturate
LARGEST_CODE = 127
ZERO_POINT = 128
_SINGLE_PASS = 8  # images at a time in calibration


def with_integer_cotangents(attack: onnx.ModelProto, images: NDArray[np.uint8]) -> onnx.ModelProto | None:
    """A copy of the attack graph `attack` whose reverse sweep runs in integers, calibrated on `images`, uint8
    (n, channels, height, width); None where that does not pay: the network has an activation quantizer of fewer
    than 256 levels or none at all, or the sweep has no convolution to gain by.

    Inputs, and the outputs `gradient` and `logits`, are those of `attack`; the loss is left out.
    """
    graph = OnnxGraph(attack)
    sweep = _Sweep(graph)
    if not has_fine_activations(graph) or not any(node.op_type in _ADJOINTS for node in sweep.nodes):
        return None
    normalize_entry(graph, sweep)
    scales = _measured_scales(graph.to_model(), sweep, images)
    rewriting = _Rewriting(graph, sweep, scales)
    model = rewriting.model()
    onnx.checker.check_model(model, full_check=True)
    return model


def has_fine_activations(graph: OnnxGraph) -> bool:
    """Whether activations are quantized, all of them to 256 levels."""
    found = False
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or graph.is_constant(node.input[0]) or node.name.startswith(PREFIX):
            continue
        found = True
        zero_point = graph.operand(node, 2)
        for clip in graph.consumers(node.output[0]):
            if clip.op_type != "Clip" or clip.name.startswith(PREFIX):
                continue
            low, high = bounds(graph, clip, np.dtype(np.uint8) if zero_point is None else zero_point.dtype)
            if high - low + 1 < FINE_LEVELS:
                return False
    return found


_ADJOINTS = ("Conv", "ConvTranspose")
_OF_TRUTH = frozenset({"And", "Or", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


@dataclass
class _Sweep:
    """The nodes of the reverse sweep that are to run in integers, and the float masks that they multiply by."""

    graph: OnnxGraph
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    masks: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reverse = [node for node in self.graph.nodes if node.name.startswith(PREFIX)]
        self.masks = {
            node.output[0]: node
            for node in reverse
            if node.op_type == "Cast" and attributes(node)["to"] == TensorProto.FLOAT and self._is_bool(node.input[0])
        }
        self.nodes = [node for node in reverse if self._fits(node)]

    def _is_bool(self, tensor: str) -> bool:
        source = self.graph.producer(tensor)
        if source is None or source.op_type == "Cast":
            return source is not None and attributes(source)["to"] == TensorProto.BOOL
        return source.op_type in _OF_TRUTH

    def operands(self, node: onnx.NodeProto) -> list[str]:
        """The cotangents among the inputs of a node."""
        return list(node.input) if node.op_type == "Add" else [node.input[0]]

    def tensors(self) -> list[str]:
        """All cotangents around the nodes, each once."""
        return list(dict.fromkeys(name for node in self.nodes for name in (*self.operands(node), node.output[0])))

    def _fits(self, node: onnx.NodeProto) -> bool:
        if any(reader.name.startswith(f"{PREFIX}output.") for reader in self.graph.consumers(node.output[0])):
            return False  # what the attacker gets
        match node.op_type:
            case "Conv":
                return self.graph.is_constant(node.input[1])
            case "ConvTranspose":
                return self.graph.is_constant(node.input[1]) and doubles(node)
            case "Mul":
                return node.input[1] in self.masks
            case "Add":
                return not any(self.graph.is_constant(name) for name in node.input)
        return False


def normalize_entry(graph: OnnxGraph, sweep: _Sweep) -> None:
    """Divide the one cotangent by which the sweep enters its convolutions by its greatest value, image by image.

    Images then fill the ranges alike; a positive factor for each of them changes no direction. Where branches enter in
    several places, or elsewhere than in a Reshape to four axes, all stays as it is.
    """
    made = {node.output[0] for node in sweep.nodes}
    entries = {name for node in sweep.nodes for name in sweep.operands(node) if name not in made}
    reshapes = [node for node in graph.nodes if node.output[0] in entries and node.op_type == "Reshape"]
    shape = graph.operand(reshapes[0], 1) if len(reshapes) == 1 else None
    if shape is None or shape.size != 4:
        return
    (reshape,) = reshapes
    readers, cotangent = graph.consumers(reshape.output[0]), reshape.output[0]
    names = [f"{cotangent}.{part}" for part in ("size", "largest", "divisor", "normal")]
    axes = graph.add_constant(f"{cotangent}.axes", np.array([1, 2, 3], np.int64))
    least = graph.add_constant(f"{cotangent}.least", np.float32(np.finfo(np.float32).tiny))
    for operator, inputs, output, options in (
        ("Abs", [cotangent], names[0], {}),
        ("ReduceMax", [names[0], axes], names[1], {"keepdims": 1}),
        ("Max", [names[1], least], names[2], {}),
        ("Div", [cotangent, names[2]], names[3], {}),
    ):
        graph.insert_before(readers[0], helper.make_node(operator, inputs, [output], name=output, **options))
    for reader in readers:
        for index, name in enumerate(reader.input):
            if name == cotangent:
                graph.set_input(reader, index, names[3])


class _Rewriting:
    """The graph while it is written anew; `codes_of` names, by cotangent, the tensor that its codes stand for."""

    def __init__(self, graph: OnnxGraph, sweep: _Sweep, scales: dict[str, float]) -> None:
        self._graph, self._sweep, self._scales = graph, sweep, scales
        self._zero_point = graph.add_constant(f"{PREFIX}zero_point", np.uint8(ZERO_POINT))
        self._unit = [
            graph.add_constant(f"{PREFIX}unit", np.float32(1)),
            graph.add_constant(f"{PREFIX}off", np.uint8(0)),
        ]
        self._rounded: dict[str, str] = {}
        self._masks: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        quantized = {
            id(node)
            for node in self._sweep.nodes
            if all(name in self._scales for name in (*self._sweep.operands(node), node.output[0]))
        }
        written: list[onnx.NodeProto] = []
        for node in self._graph.nodes:
            written += self._rewritten(node) if id(node) in quantized else [self._reading_rounded(node)]
        model = self._graph.to_model()
        kept = [value for value in model.graph.output if value.name != "loss"]
        del model.graph.output[:], model.graph.node[:], model.graph.value_info[:]
        model.graph.output.extend(kept)
        model.graph.node.extend(written)
        pruned = OnnxGraph(model)
        pruned.prune()
        return pruned.to_model()

    def _reading_rounded(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node that stays in float; where its cotangent has been rounded, it reads that."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._rounded.get(name, name) for name in node.input]
        return copy

    def _rewritten(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        for name in self._sweep.operands(node):
            if name not in self._rounded:
                yield from self._round(name, name)
        copy = self._reading_rounded(node)
        if node.op_type == "Mul":
            yield from self._integer_mask(copy)
        elif node.op_type == "Conv":
            yield from self._integer_weights(copy, self._weights(node))
        result = node.output[0]
        if node.op_type != "ConvTranspose":
            yield copy
            yield from self._round(result, result)
            return
        phases = f"{result}.phases"
        weights, pads = sub_pixel_weights(self._weights(node), padding_of(node))
        shape = list(weights.shape[2:])
        stride_one = helper.make_node(
            "Conv", [copy.input[0], ""], [phases], name=node.name, pads=pads, kernel_shape=shape
        )
        yield from self._integer_weights(stride_one, weights)
        yield stride_one
        yield from self._round(phases, result, interleaved=True)

    def _round(self, tensor: str, result: str, *, interleaved: bool = False) -> Iterator[onnx.NodeProto]:
        """QuantizeLinear of `tensor` and DequantizeLinear, as what readers of `result` read from here on."""
        scale = self._graph.add_constant(f"{result}.scale", np.float32(self._scales[result]))
        codes, rounded = f"{result}.codes", f"{result}.rounded"
        yield helper.make_node("QuantizeLinear", [tensor, scale, self._zero_point], [codes], name=f"{result}.quantize")
        if interleaved:
            source, codes = codes, f"{result}.pixels"
            yield helper.make_node(
                "DepthToSpace", [source], [codes], name=f"{result}.interleave", blocksize=2, mode="DCR"
            )
        yield helper.make_node(
            "DequantizeLinear", [codes, scale, self._zero_point], [rounded], name=f"{result}.dequantize"
        )
        self._rounded[result] = rounded

    def _integer_mask(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """0 and 1 as codes, once for each mask."""
        mask = self._sweep.masks[node.input[1]]
        name = mask.output[0]
        if name not in self._masks:
            bits, self._masks[name] = f"{name}.codes", f"{name}.integer"
            yield helper.make_node("Cast", [mask.input[0]], [bits], name=f"{name}.integer", to=TensorProto.UINT8)
            yield helper.make_node(
                "DequantizeLinear", [bits, *self._unit], [self._masks[name]], name=f"{name}.dequantize"
            )
        node.input[1] = self._masks[name]

    def _integer_weights(self, node: onnx.NodeProto, weights: NDArray[np.float32]) -> Iterator[onnx.NodeProto]:
        """int8 codes with a scale for each output channel, symmetric."""
        largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
        scale = (np.where(largest > 0, largest, 1) / LARGEST_CODE).astype(np.float32)
        codes = np.rint(weights / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
        stem = f"{node.name}.weight"
        inputs = [
            self._graph.add_constant(f"{stem}.{part}", value)
            for part, value in (("codes", codes), ("scale", scale), ("zero_point", np.zeros(len(scale), np.int8)))
        ]
        yield helper.make_node("DequantizeLinear", inputs, [stem], name=f"{stem}.dequantize", axis=0)
        node.input[1] = stem

    def _weights(self, node: onnx.NodeProto) -> NDArray[np.float32]:
        weights = self._graph.operand(node, 1)
        if weights is None:
            raise ValueError(f"the weights of {node.name} are not constant")
        return weights.astype(np.float32)


def calibration_feeds(images: NDArray[np.uint8], logits: NDArray[np.float32], loss: int) -> dict[str, NDArray]:
    """What an attack graph is given for `images` with labels as `logits` have them, for loss 0 or 1."""
    classes = logits.shape[1]
    return {
        "image": images,
        "onehot": np.eye(classes, dtype=np.float32)[logits.argmax(axis=1)],
        "engine_logits": logits,
        "own_logits": np.array(False),
        "loss_weights": np.eye(2, dtype=np.float32)[loss],
        "seed": np.zeros_like(logits),
    }


def _measured_scales(attack: onnx.ModelProto, sweep: _Sweep, images: NDArray[np.uint8]) -> dict[str, float]:
    """Scales of the cotangents that are images of some kind (four axes); a masked one has its source's scale."""
    import onnxruntime

    tensors = sweep.tensors()
    observed = onnx.ModelProto()
    observed.CopyFrom(attack)
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    run = onnxruntime.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"]).run
    classes = next(value for value in attack.graph.output if value.name == "logits")
    nothing = np.zeros((_SINGLE_PASS, classes.type.tensor_type.shape.dim[1].dim_value), np.float32)
    largest: dict[str, float] = {}
    for first in range(0, len(images), _SINGLE_PASS):
        part = np.ascontiguousarray(images[first : first + _SINGLE_PASS])
        logits = run(["logits"], calibration_feeds(part, nothing[: len(part)], 0))[0]
        for loss in range(2):
            for name, values in zip(tensors, run(tensors, calibration_feeds(part, logits, loss)), strict=True):
                if values.ndim == 4:
                    end = float(np.percentile(np.abs(values), COVERED))
                    largest[name] = max(largest.get(name, 0.0), end)
    scales = {name: end / LARGEST_CODE if end > 0 else 1.0 for name, end in largest.items()}
    for node in sweep.nodes:
        if node.op_type == "Mul" and node.output[0] in scales and node.input[0] in scales:
            scales[node.output[0]] = scales[node.input[0]]
    return scales
