"""Placement: a plain module in, the same module with quantizers where the profile wants them out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from hardbit.quantize.bits import FLOAT, Bits
from hardbit.quantize.float_streams import float_sums
from hardbit.quantize.legality import check_traced
from hardbit.quantize.operators import FLOAT_OPERATORS, MOVING_OPERATORS, depths, folds_into_its_layer, node_place
from hardbit.quantize.profiles import Profile, get_profile
from hardbit.quantize.quantizers import quant_conv, quant_identity, quant_image, quant_linear, quant_relu
from hardbit_deploy.errors import HardbitError

__all__ = ["quantize", "trace"]

_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
_LAYERS = frozenset({"Conv", "Gemm", "BatchNormalization"})
_STREAM_BITS = 8
_CEILING = {"Relu": None, "Relu6": 6.0}


def quantize(module: nn.Module, profile: str | Profile, bits: Bits) -> fx.GraphModule:
    """`module` with Brevitas layers and quantizers, as an FX graph module; `module` itself is not changed.

    The image is quantized (int8, scale 1/256), ReLU outputs are unsigned, both operands of an Add and the input of
    every Conv, of every Gemm and of a BatchNorm that no layer can take up are quantized. What LayerNorm, softmax and
    the like compute stays in float, with the sums that it goes into (`float_streams`). Streams have 8 bits at every
    width: what a convolution gives to floats, because a convolution of integers has to end in codes; and the residual
    sum that such a BatchNorm reads, because no layer of few bits does.

    Where the profile lets layers end in floats, a layer that one Add alone reads is not quantized for it: of two such
    operands that with more layers behind it, the other is the skip branch.

    Scales still have to be calibrated. Raises HardbitError naming the place where the module cannot be traced or holds
    an operation that the profile does not know, and a place in `bits` that is not there.
    """
    chosen = get_profile(profile) if isinstance(profile, str) else profile
    return _Placement(trace(copy.deepcopy(module)), chosen, bits).run()


def trace(module: nn.Module) -> fx.GraphModule:
    """FX trace of `module`, or a HardbitError that says where tracing stopped."""
    tracer = _PlacedTracer()
    try:
        traced = fx.GraphModule(module, tracer.trace(module), type(module).__name__)
    except Exception as error:  # FX raises whatever the traced code raises
        raise HardbitError(
            f"the network cannot be traced: {error}",
            where=tracer.innermost or type(module).__name__,
            remedy="make its forward() free of control flow that depends on tensor values",
        ) from error
    if len([n for n in traced.graph.nodes if n.op == "placeholder"]) != 1:
        raise HardbitError("the network must take one input, the image", where=type(module).__name__)
    return traced


class _PlacedTracer(fx.Tracer):
    """FX's tracer, which remembers the innermost submodule that it was in when something went wrong."""

    innermost = ""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.innermost = self.innermost or self.path_of_module(m)
            raise


class _Placement:
    """State of one pass over the graph: which values are quantized already, and which cannot be negative."""

    def __init__(self, traced: fx.GraphModule, profile: Profile, bits: Bits) -> None:
        self.module = traced
        self.graph = traced.graph
        self.profile = profile
        self.bits = bits
        self.quantized: set[fx.Node] = set()
        self.non_negative: set[fx.Node] = set()
        self.operators: dict[fx.Node, str] = {}
        self.float_sums: set[fx.Node] = set()
        self.depths: dict[fx.Node, int] = {}
        self.places: list[str] = []

    def run(self) -> fx.GraphModule:
        nodes = list(self.graph.nodes)
        self.operators = check_traced(self.module, self.profile)
        self.float_sums = float_sums(self.operators)
        self.depths = depths(nodes, self.operators)
        heavy = [n for n in nodes if self.operators[n] in ("Conv", "Gemm")]
        self.first, self.last = heavy[0], heavy[-1]
        for node in nodes:
            self._visit(node, self.operators[node])
        self.bits.check_places(self.places)
        self.graph.lint()
        self.module.delete_all_unused_submodules()
        self.module.recompile()
        return self.module

    def _visit(self, node: fx.Node, operator: str) -> None:
        if operator == "input" and self._weight_width(self.first) != FLOAT:
            self._insert_after(node, "input_quant", quant_image())
        elif operator in ("Conv", "Gemm"):
            self._ensure_quantized(node, node.all_input_nodes[0])
            self._replace_layer(node, operator)
        elif operator == "BatchNormalization" and not folds_into_its_layer(node, self.operators):
            self._ensure_quantized(node, node.all_input_nodes[0], is_stream=True)
        elif operator in _CEILING:
            self._replace_relu(node, _CEILING[operator])
        elif operator in FLOAT_OPERATORS or node in self.float_sums:
            self._visit_float(node, operator)
        elif operator == "Add":
            self._visit_add(node)
        elif operator in MOVING_OPERATORS | _AVERAGES:
            self._visit_shape(node, operator)

    def _visit_float(self, node: fx.Node, operator: str) -> None:
        """What is computed in float reads floats; but a convolution ends in codes, or it would run in float too."""
        for operand in node.all_input_nodes:
            origin, _ = self._origin(operand)
            if self.operators[origin] in _LAYERS and not self._ends_in_float(origin):
                self._ensure_quantized(node, operand, is_stream=True)
        if operator == "Softmax" or (operator == "ReduceMean" and self._is_non_negative(node.all_input_nodes[0])):
            self.non_negative.add(node)

    def _ends_in_float(self, layer: fx.Node) -> bool:
        """A Gemm's sums can be given out in float, a convolution's if the profile says so."""
        if self.profile.layers_end_in_floats:
            return True
        if self.operators[layer] == "BatchNormalization":
            return folds_into_its_layer(layer, self.operators) and self._ends_in_float(layer.all_input_nodes[0])
        return self.operators[layer] == "Gemm"

    def _reads_floats(self, user: fx.Node) -> bool:
        return self.operators.get(user) in FLOAT_OPERATORS or user in self.float_sums

    def _visit_add(self, node: fx.Node) -> None:
        operands = node.all_input_nodes
        layers = [n for n in operands if self.operators.get(n) in _LAYERS and len(n.users) == 1]
        raw = max(layers, key=self.depths.__getitem__, default=None) if self.profile.layers_end_in_floats else None
        for operand in operands:
            if operand is not raw:
                self._ensure_quantized(node, operand)
        if all(self._is_non_negative(a) for a in node.all_input_nodes):
            self.non_negative.add(node)

    def _visit_shape(self, node: fx.Node, operator: str) -> None:
        origin, _ = self._origin(node.all_input_nodes[0])
        if operator in _AVERAGES and self.operators.get(origin) in _LAYERS and not self.profile.layers_end_in_floats:
            self._ensure_quantized(node, node.all_input_nodes[0])  # a layer read by an average would run in float
        source = node.all_input_nodes[0]
        if self._is_non_negative(source):
            self.non_negative.add(node)
        if source in self.quantized and operator in MOVING_OPERATORS:
            self.quantized.add(node)

    def _origin(self, source: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
        """Where the values of `source` were computed or quantized, and the nodes that only moved them since."""
        moved = []
        while source not in self.quantized and self.operators.get(source) in MOVING_OPERATORS:
            moved.append(source)
            source = source.all_input_nodes[0]
        return source, moved

    def _ensure_quantized(self, user: fx.Node, source: fx.Node, *, is_stream: bool = False) -> None:
        """Put a quantizer on the value `source`, for all who use it, unless it is quantized already.

        It goes before a Flatten or MaxPool, not behind it: engines fuse that form. Of a value that was computed in
        float, those who compute in float go on reading the floats.
        """
        origin, moved = self._origin(source)
        if self.operators[origin] == "input":
            return  # the image has its own quantizer, or a first layer in float
        if origin not in self.quantized:
            only_for_last = user is self.last and self.operators.get(source) in _AVERAGES | MOVING_OPERATORS
            width = self._activation_width(origin, only_for_last=only_for_last, is_stream=is_stream)
            if width == FLOAT:
                return
            width, signed = self._form(origin, width, asked=not (only_for_last or is_stream))
            self._insert_after(origin, f"{_attribute(origin)}_quant", quant_identity(width, signed=signed))
        self.quantized.update(moved)

    def _insert_after(self, node: fx.Node, name: str, quantizer: nn.Module) -> None:
        target = _free_name(self.module, name)
        self.module.add_submodule(target, quantizer)
        with self.graph.inserting_after(node):
            inserted = self.graph.call_module(target, (node,))
        in_float = self._reads_floats(node)
        node.replace_all_uses_with(
            inserted, delete_user_cb=lambda user: user is not inserted and not (in_float and self._reads_floats(user))
        )
        self.quantized.add(inserted)
        if self._is_non_negative(node):
            self.non_negative.add(inserted)
        self.operators[inserted] = "Identity"

    def _replace_layer(self, node: fx.Node, operator: str) -> None:
        width = self._weight_width(node)
        if width == FLOAT:
            return
        source: Any = self.module.get_submodule(str(node.target))
        layer = quant_conv(source, width) if operator == "Conv" else quant_linear(source, width)
        _set_submodule(self.module, str(node.target), layer)

    def _replace_relu(self, node: fx.Node, ceiling: float | None) -> None:
        """A ReLU with its quantizer. Between a layer and its ReLU, a MaxPool or Flatten changes places with the ReLU,
        which is the same function: a layer whose result another operator reads would run in float."""
        width = self._activation_width(node)
        if width == FLOAT:
            self.non_negative.add(node)
            return
        name = str(node.target) if node.op == "call_module" else _free_name(self.module, node.name)
        if node.op == "call_module" and sum(n.target == node.target for n in self.graph.nodes) > 1:
            name = _free_name(self.module, f"{node.target}_{node.name}")  # one ReLU module used in several places
        source = node.all_input_nodes[0]
        origin, moved = self._origin(source)
        if self.operators.get(origin) in _LAYERS and any(len(n.users) > 1 for n in (origin, *moved)):
            self._ensure_quantized(node, source)  # others read the layer without this ReLU
            source = node.all_input_nodes[0]
            origin, moved = self._origin(source)
        early = bool(moved) and self.operators.get(origin) in _LAYERS
        width, signed = self._form(node, width, rectified=True)
        quantizer = quant_relu(width, ceiling, signed=signed, calibration=self.bits.calibration)
        _set_submodule(self.module, name, quantizer)
        with self.graph.inserting_after(origin if early else node):
            inserted = self.graph.call_module(name, (origin if early else source,))
        if early:
            origin.replace_all_uses_with(inserted, delete_user_cb=lambda user: user is not inserted)
        node.replace_all_uses_with(source if early else inserted)
        self.graph.erase_node(node)
        of_codes = {inserted, *(moved if early else ())}
        self.quantized |= of_codes
        self.non_negative |= of_codes
        self.operators[inserted] = "Relu"

    def _weight_width(self, layer: fx.Node) -> int:
        kind = self.bits.last_layer if layer is self.last else self.bits.weights
        return self._width(layer, self.bits.first_layer if layer is self.first and layer is not self.last else kind)

    def _activation_width(self, origin: fx.Node, *, only_for_last: bool = False, is_stream: bool = False) -> int:
        """Weight-only quantization has no quantizer for the last layer or for streams either."""
        if self.bits.activations == FLOAT:
            return self._width(origin, FLOAT)
        usual = _STREAM_BITS if is_stream else self.bits.activations
        return self._width(origin, self.bits.last_layer if only_for_last else usual)

    def _form(self, node: fx.Node, width: int, *, rectified: bool = False, asked: bool = True) -> tuple[int, bool]:
        never_negative = rectified or self._is_non_negative(node)
        return self.profile.form_of(width, never_negative=never_negative, where=node_place(node), asked=asked)

    def _width(self, node: fx.Node, otherwise: int) -> int:
        self.places.append(node_place(node))
        return self.bits.of(node_place(node), otherwise)

    def _is_non_negative(self, node: fx.Node) -> bool:
        return node in self.non_negative


def _attribute(node: fx.Node) -> str:
    return node_place(node).replace(".", "_")


def _free_name(module: nn.Module, name: str) -> str:
    taken = dict(module.named_modules())
    candidate, count = name.replace(".", "_"), 1
    while candidate in taken or hasattr(module, candidate):
        candidate, count = f"{name.replace('.', '_')}_{count}", count + 1
    return candidate


def _set_submodule(module: nn.Module, path: str, child: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent) if parent else module
    setattr(owner, name, child)
