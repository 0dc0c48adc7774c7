"""A second opinion on ONNX graphs and their gradients: PyTorch in float64, differentiated by torch.autograd.

It shares nothing with hardbit's rules: forward semantics are written from the ONNX operator specification, and every
derivative but two is autograd's own. The two are the straight-through rounding, and the clipping of codes, whose
derivative by torch.clamp is 1 on the closed interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.nn import functional

from hardbit.graph.gradient import differentiate

CODES = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127), TensorProto.INT32: (-(2**31), 2**31 - 1)}


class RoundStraightThrough(torch.autograd.Function):
    """Rounding half to even whose derivative is taken as 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class ClampInside(torch.autograd.Function):
    """Clamp whose derivative is 1 strictly inside the bounds: saturation as integer codes alone show it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x > low) & (x < high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


def evaluate(
    model: onnx.ModelProto, feeds: dict[str, Tensor], *, masks_from_codes: bool = False, reach: float = 1.0
) -> dict[str, Tensor]:
    """Every tensor of the graph, float64 (codes too). `masks_from_codes` follows the rule for 8-bit quantizers, `reach`
    is the magnitude up to which a Sign passes the gradient."""
    values = dict(feeds)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        values[tensor.name] = torch.from_numpy(array.astype(np.float64) if array.dtype.kind == "f" else array.copy())
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        options["reach"] = reach
        operands = [values[name] if name else None for name in node.input]
        if node.op_type == "QuantizeLinear":
            types[node.output[0]] = types[node.input[2]] if len(node.input) > 2 else TensorProto.UINT8
            options["code_type"] = types[node.output[0]]
            bytes_enter = node.input[0] == model.graph.input[0].name
            options["inside"] = masks_from_codes and not bytes_enter and not followed_by_clip(model, node.output[0])
            options["pooled"] = any("Pool" in n.op_type and node.input[0] in n.output for n in model.graph.node)
        values[node.output[0]] = OPERATORS[node.op_type](operands, options)
    return values


def followed_by_clip(model: onnx.ModelProto, tensor: str) -> bool:
    return any(node.op_type == "Clip" and tensor in node.input for node in model.graph.node)


def quantize(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    scale, zero_point = x[1], x[2].double() if len(x) > 2 else torch.zeros(())
    if scale.ndim == 1:
        shape = [-1 if k == options.get("axis", 1) else 1 for k in range(x[0].ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    codes = RoundStraightThrough.apply(x[0] / scale) + zero_point
    low, high = CODES[options["code_type"]]
    if not options["inside"]:
        return codes.clamp(low, high)
    # The average of codes that are not negative cannot saturate below: its code 0 is a value like any other.
    return ClampInside.apply(codes, low - (low == 0 and options["pooled"]), high)


def dequantize(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    scale, zero_point = x[1], x[2] if len(x) > 2 else torch.zeros(())
    if scale.ndim == 1:
        axis = options.get("axis", 1)
        shape = [-1 if k == axis else 1 for k in range(x[0].ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return (x[0].double() - zero_point.double()) * scale.double()


def padded(x: Tensor, options: dict[str, Any], value: float = 0.0) -> Tensor:
    top, left, bottom, right = options.get("pads", (0, 0, 0, 0))
    return functional.pad(x, (left, right, top, bottom), value=value)


def conv(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    return functional.conv2d(
        padded(x[0], options),
        x[1],
        x[2] if len(x) > 2 else None,
        tuple(options.get("strides", (1, 1))),
        0,
        tuple(options.get("dilations", (1, 1))),
        options.get("group", 1),
    )


def max_pool(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    strides = options.get("strides", (1, 1))
    return functional.max_pool2d(padded(x[0].double(), options, -1e30), options["kernel_shape"], strides)


def average_pool(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    kernel, strides = options["kernel_shape"], tuple(options.get("strides", (1, 1)))
    total = functional.avg_pool2d(padded(x[0], options), kernel, strides) * float(np.prod(kernel))
    if options.get("count_include_pad", 0):
        return total / float(np.prod(kernel))
    ones = padded(torch.ones_like(x[0]), options)
    return total / (functional.avg_pool2d(ones, kernel, strides) * float(np.prod(kernel)))


def gemm(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    left = x[0].T if options.get("transA", 0) else x[0]
    right = x[1].T if options.get("transB", 0) else x[1]
    product = options.get("alpha", 1.0) * (left @ right)
    return product + options.get("beta", 1.0) * x[2] if len(x) > 2 else product


def batch_norm(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    return functional.batch_norm(x[0], x[3], x[4], x[1], x[2], eps=options.get("epsilon", 1e-5))


class SignStraightThrough(torch.autograd.Function):
    """Sign whose derivative is taken as 1 where the magnitude is at most `reach`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: float) -> Tensor:
        ctx.save_for_backward(x.abs() <= reach)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def reshape(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    return x[0].reshape([x[0].shape[k] if size == 0 else size for k, size in enumerate(x[1].tolist())])


def sliced(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    places: list[slice] = [slice(None)] * x[0].ndim
    axes = x[3].tolist() if len(x) > 3 else range(len(x[1]))
    steps = x[4].tolist() if len(x) > 4 else [1] * len(x[1])
    for axis, first, last, step in zip(axes, x[1].tolist(), x[2].tolist(), steps, strict=True):
        places[axis] = slice(first, last, step)
    return x[0][tuple(places)]


def pad(x: list[Tensor], options: dict[str, Any]) -> Tensor:
    amounts, rank = x[1].tolist(), x[0].ndim
    return functional.pad(x[0], [amounts[k + side * rank] for k in reversed(range(rank)) for side in range(2)])


OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], Tensor]] = {
    "Add": lambda x, o: x[0] + x[1],
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Clip": lambda x, o: torch.clamp(x[0], float(x[1]), float(x[2])),
    "Concat": lambda x, o: torch.cat(x, o["axis"]),
    "Conv": conv,
    "DequantizeLinear": dequantize,
    "Flatten": lambda x, o: x[0].flatten(o.get("axis", 1)),
    "Gemm": gemm,
    "GlobalAveragePool": lambda x, o: x[0].mean((2, 3), keepdim=True),
    "Identity": lambda x, o: x[0],
    "MatMul": lambda x, o: x[0] @ x[1],
    "MaxPool": max_pool,
    "Mul": lambda x, o: x[0] * x[1],
    "Pad": pad,
    "QuantizeLinear": quantize,
    "ReduceMean": lambda x, o: x[0].mean(x[1].tolist(), keepdim=bool(o.get("keepdims", 1))),
    "Relu": lambda x, o: torch.relu(x[0]),
    "Reshape": reshape,
    "Sign": lambda x, o: SignStraightThrough.apply(x[0], o["reach"]),
    "Slice": sliced,
    "Transpose": lambda x, o: x[0].permute(o["perm"]),
}


def vector_jacobian(function: Callable[[Tensor], Tensor], x: NDArray[Any], v: NDArray[Any]) -> NDArray[np.float64]:
    """v' J of `function` at x, in float64."""
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(point), point, torch.tensor(v, dtype=torch.float64))
    return gradient.numpy()


def one_operator(
    nodes: list[onnx.NodeProto], x: NDArray[Any], y_shape: tuple[int, ...], constants: dict[str, NDArray[Any]]
) -> onnx.ModelProto:
    """Model of a few nodes from `x` to `y`, float32, dynamic batch, opset 18."""
    graph = helper.make_graph(
        nodes,
        "rule",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *y_shape[1:]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_rule(
    nodes: list[onnx.NodeProto],
    x: NDArray[np.float32],
    function: Callable[[Tensor], Tensor],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    tolerance: float = 3e-6,
    in_double: bool = False,
    target: str = "onnxruntime",
) -> None:
    """The rules of `nodes` (from `x` to `y`) give the vector-Jacobian product of `function` by torch.autograd.

    In float32 by ONNX Runtime, and with `in_double` also in float64 by onnx.reference (constants stay float32 numbers:
    choose examples in which they are exact).
    """
    y = function(torch.tensor(x, dtype=torch.float64)).numpy()
    v = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    expected = vector_jacobian(function, x, v)
    model = one_operator(nodes, x, y.shape, constants or {})
    product = differentiate(model, "y", "x", target=target)
    results = [(run(product, {"x": x, "grad_output": v}), tolerance)]
    if in_double:
        names = [output.name for output in product.graph.output]
        doubled = ReferenceEvaluator(to_double(product))
        values = doubled.run(names, {"x": x.astype(np.float64), "grad_output": v.astype(np.float64)})
        results.append((dict(zip(names, values, strict=True)), 1e-12))
    for result, bound in results:
        assert relative_error(result["y"], y) <= bound, "forward"
        assert result["gradient"].shape == x.shape
        assert relative_error(result["gradient"], expected) <= bound or np.abs(expected).max() == 0


def check_adjoint(nodes: list[onnx.NodeProto], x: NDArray[np.float32], constants: dict[str, NDArray[Any]]) -> None:
    """<u, J v> = <J' u, v>, with J v = f(v) - f(0) since `nodes` are affine: needs no second implementation."""
    model = one_operator(nodes, x, tuple(inferred_output(nodes, x, constants)), constants)
    u_shape = run(model, {"x": x})["y"].shape
    u = np.random.default_rng(2).standard_normal(u_shape).astype(np.float32)
    jacobian_v = run(model, {"x": x})["y"].astype(np.float64) - run(model, {"x": np.zeros_like(x)})["y"]
    pulled = run(differentiate(model, "y", "x"), {"x": x, "grad_output": u})["gradient"].astype(np.float64)
    left, right = float((u * jacobian_v).sum()), float((pulled * x).sum())
    assert abs(left - right) <= 1e-5 * float(np.linalg.norm(u) * np.linalg.norm(jacobian_v)) + 1e-12


def inferred_output(
    nodes: list[onnx.NodeProto], x: NDArray[np.float32], constants: dict[str, NDArray[Any]]
) -> list[int]:
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return [d.dim_value for d in onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim]


def to_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every float32 tensor, constant and cast in float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    for tensor in double.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in [*double.graph.input, *double.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in double.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return double


def for_all(strategy: Any, check: Callable[[Any], None], examples: int) -> None:
    """`check` holds for every example that hypothesis draws from `strategy`; the same ones in every run."""
    quiet = settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    given(strategy)(quiet(check))()


def run(model: onnx.ModelProto, feeds: dict[str, Any], *, optimised: bool = True) -> dict[str, NDArray[Any]]:
    """All outputs by name, from ONNX Runtime on one core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def relative_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference in units of the largest expected magnitude."""
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {actual.shape} and {expected.shape} differ")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
