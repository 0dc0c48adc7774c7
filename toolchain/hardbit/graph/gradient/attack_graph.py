"""The attack graph: an ONNX model of input gradient, logits and loss, made of a classifier's graph.

Inputs: `image` uint8 (batch, channels, height, width), for TensorRT int8; `onehot` float32 (batch, classes);
`engine_logits` float32 (batch, classes), the deployed engine's answer to the same bytes; `own_logits` bool (), which
takes this graph's own logits in their place; `loss_weights` float32 (2,), those of cross-entropy and margin; `seed`
float32 (batch, classes), added to the derivative of the weighted losses by the logits.

Outputs: `gradient` float32 of the shape of `image`, the derivative of the loss by the network's float input, straight
through its quantizers; `logits` float32 (batch, classes), this graph's own forward pass; `loss` float32 (batch,).
With a `seed` of zeros the gradient is that of the losses; with `loss_weights` of zeros it is the product of the seed
with the Jacobian of the logits, for a loss that is written elsewhere. `loss` does not know of the seed.

The backward pass starts from the engine's logits and reads this graph's own activations. Where both compute the same
bits, `own_logits` saves a step the engine's run: one pass gives logits and gradient. Only standard operators of opset
18 are written, and the batch is dynamic.

Of the smooth surrogate (see `surrogates`) the graph's own logits are those of another network than the engine's, never
equal to it.
"""

from __future__ import annotations

from typing import Literal, get_args

import onnx
from onnx import TensorProto, helper, numpy_helper

from hardbit.graph.gradient.forward import forward_from_bytes
from hardbit.graph.gradient.later_operators import in_opset_18
from hardbit.graph.gradient.losses import weighted_losses
from hardbit.graph.gradient.primal import Shape, index_graph
from hardbit.graph.gradient.quantization import MOVES_VALUES
from hardbit.graph.gradient.rules import RULES
from hardbit.graph.gradient.surrogates import relax_activations
from hardbit.graph.gradient.tape import OPSET, PREFIX, Cotangent, StraightThrough, Tape, sweep
from hardbit.graph.gradient.tensorrt_forms import forms_of, in_tensorrt_forms, weight_codes
from hardbit_deploy.errors import HardbitError

__all__ = ["Masks", "Surrogate", "build_attack_graph", "differentiate"]

IR_VERSION = 10
PUBLIC_NAMES = (
    *("image", "onehot", "engine_logits", "own_logits", "loss_weights", "seed"),
    *("gradient", "logits", "loss"),
)
Masks = Literal["auto", "exact"]
Surrogate = Literal["straight-through", "smooth"]


def build_attack_graph(
    canonical: onnx.ModelProto,
    *,
    masks: Masks = "auto",
    surrogate: Surrogate = "straight-through",
    straight_through: StraightThrough = "clipped",
    target: str = "onnxruntime",
) -> onnx.ModelProto:
    """The attack graph of a classifier with one float32 image input and one output of logits (batch, classes).

    `masks="exact"` takes the clipping masks of all quantizers from float values; "auto" takes those of quantizers with
    256 levels and more from their integer codes, which lets the forward pass run in integers (see `quantization`).
    `surrogate="smooth"` differentiates the network whose activations below 8 bits are clipped and not rounded (see
    `surrogates`); inputs and outputs are the same. `straight_through` is what stands for the derivative of a Sign:
    "clipped" passes where the magnitude is at most 1, "identity" everywhere (see `rounding`). For the targets
    "tensorrt" and "tensorrt_rtx" the image is int8, the byte less 128, masks are exact, and only what TensorRT takes is
    written (see `tensorrt_forms`). Raises UnsupportedOperator naming the node that has no gradient rule, HardbitError
    naming what the target cannot hold.
    """
    require_choice("surrogate", surrogate, get_args(Surrogate))
    require_choice("straight_through", straight_through, get_args(StraightThrough))
    forms = forms_of(target)
    canonical = in_opset_18(canonical)
    network = relax_activations(canonical) if surrogate == "smooth" else canonical
    model, pixels = forward_from_bytes(with_free_names(network), forms)
    graph = index_graph(model)
    if len(graph.outputs) != 1 or len(graph.shape(graph.outputs[0])) != 2:
        raise HardbitError("an attack needs a classifier: one output of shape (batch, classes)", where="graph outputs")
    logits = graph.outputs[0]
    classes = int(graph.shape(logits)[1] or 0)
    exact = masks == "exact" or forms == "tensorrt"
    tape = Tape(graph, exact=exact, straight_through=straight_through, forms=forms)
    judged = tape.emit("Where", ["own_logits", logits, "engine_logits"])
    losses = weighted_losses(tape, judged, "onehot", "loss_weights")
    seed = tape.emit("Add", [losses.seed, "seed"])
    gradient = sweep(tape, RULES, {logits: Cotangent(seed)}, pixels)
    inputs = {
        "image": (graph.dtypes["image"], graph.shape("image")),
        "onehot": (TensorProto.FLOAT, (None, classes)),
        "engine_logits": (TensorProto.FLOAT, (None, classes)),
        "own_logits": (TensorProto.BOOL, ()),
        "loss_weights": (TensorProto.FLOAT, (2,)),
        "seed": (TensorProto.FLOAT, (None, classes)),
    }
    outputs = {
        "gradient": (gradient, graph.shape(pixels)),
        "logits": (logits, (None, classes)),
        "loss": (losses.loss, (None,)),
    }
    attack = finish(tape, inputs, outputs, "attack")
    return in_tensorrt_forms(attack) if forms == "tensorrt" else attack


def require_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise HardbitError(
            f"there is no {name.replace('_', '-')} '{value}'", where=name, remedy=f"known: {', '.join(known)}"
        )


def differentiate(
    model: onnx.ModelProto,
    output: str,
    wrt: str,
    *,
    masks: Masks = "exact",
    straight_through: StraightThrough = "clipped",
    target: str = "onnxruntime",
) -> onnx.ModelProto:
    """The vector-Jacobian product of one tensor by another as a model.

    It has the inputs of `model` and `grad_output`, of the shape of `output`; its outputs are `gradient`, of the shape
    of the tensor `wrt`, and `output` itself. For TensorRT it is written in its forms, as in `build_attack_graph`.
    """
    forms = forms_of(target)
    graph = index_graph(in_opset_18(model))
    exact = masks == "exact" or forms == "tensorrt"
    tape = Tape(graph, exact=exact, straight_through=straight_through, forms=forms)
    gradient = sweep(tape, RULES, {output: Cotangent("grad_output")}, wrt)
    inputs = {name: (graph.dtypes[name], graph.shape(name)) for name in graph.inputs}
    inputs["grad_output"] = (TensorProto.FLOAT, graph.shape(output))
    outputs = {"gradient": (gradient, graph.shape(wrt)), output: (output, graph.shape(output))}
    product = finish(tape, inputs, outputs, "vector_jacobian_product")
    return in_tensorrt_forms(product) if forms == "tensorrt" else product


def with_free_names(canonical: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose input is called `image`, and in which only the output may be called like an output of ours."""
    model = onnx.ModelProto()
    model.CopyFrom(canonical)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    outputs = [value.name for value in model.graph.output]
    names = {name: f"network/{name}" for name in PUBLIC_NAMES if outputs != [name] or name != "logits"}
    names |= {inputs[0]: "image"} if len(inputs) == 1 else {}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.name = names.get(value.name, value.name)
    return model


def finish(
    tape: Tape,
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[str, Shape]],
    name: str,
) -> onnx.ModelProto:
    """Assemble forward and reverse nodes that lead to `outputs` into a checked model."""
    aliases = [
        helper.make_node("Identity", [tensor], [public], name=f"{PREFIX}output.{public}")
        for public, (tensor, _) in outputs.items()
        if public != tensor
    ]
    parameters = weight_codes(tape) if tape.forms == "tensorrt" else integer_parameters(tape)
    nodes = [*parameters, *tape.forward_nodes(), *tape.nodes, *aliases]
    nodes = live_nodes(nodes, set(outputs))
    read = {tensor for node in nodes for tensor in node.input} - {tensor for node in nodes for tensor in node.output}
    constants = tape.graph.constants
    initializers = [
        tape.initializers[name] if name in tape.initializers else numpy_helper.from_array(constants[name], name)
        for name in sorted(read & {*tape.initializers, *constants})
    ]
    proto = helper.make_graph(
        nodes,
        name,
        [value_info(public, dtype, shape) for public, (dtype, shape) in inputs.items()],
        [value_info(public, TensorProto.FLOAT, shape) for public, (_, shape) in outputs.items()],
        initializers,
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def integer_parameters(tape: Tape) -> list[onnx.NodeProto]:
    """DequantizeLinear of weights and biases, where it lets ONNX Runtime run the layer in integers.

    It does if the layer's input comes from codes, by way of a MaxPool of the image, say, and its output, Relu included,
    goes to a quantizer and to nobody else. There ONNX Runtime would quantize float constants itself, to other values.
    Other layers read their parameters as float constants, which saves the work in every run.
    """
    graph = tape.graph
    read_in_reverse = {tensor for node in tape.nodes for tensor in node.input}
    kept: dict[str, onnx.NodeProto] = {}
    for node in graph.nodes:
        source = graph.producers.get(node.input[0]) if node.input else None
        while source is not None and source.op_type in MOVES_VALUES:
            source = graph.producers.get(source.input[0])
        if node.op_type not in ("Conv", "Gemm") or source is None or source.op_type != "DequantizeLinear":
            continue
        result = node.output[0]
        reader = graph.sole_consumer(result)
        if reader is not None and reader.op_type == "Relu" and result not in read_in_reverse:
            result, reader = reader.output[0], graph.sole_consumer(reader.output[0])
        if result in read_in_reverse or (
            node.op_type == "Conv" and (reader is None or reader.op_type != "QuantizeLinear")
        ):
            continue
        kept.update((name, graph.folded[name]) for name in node.input[1:] if name in graph.folded)
    return list(kept.values())


def live_nodes(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    kept = []
    for node in reversed(nodes):
        if any(tensor in wanted for tensor in node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def value_info(name: str, dtype: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["batch" if size is None else size for size in shape])
