"""Float classifiers in ONNX with random weights, written by hand as exporters write them: what is to be quantized."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10


class FloatBuilder:
    """Collects the nodes of a float classifier; every method returns the tensor that it made."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: object) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def conv(self, tensor: str, name: str, shape: tuple[int, int, int, int], **attributes: object) -> str:
        weight = self.rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        bias = self.rng.normal(0, 0.1, shape[0]).astype(np.float32)
        parameters = [self.constant(f"{name}.w", weight), self.constant(f"{name}.b", bias)]
        return self.node("Conv", [tensor, *parameters], name, kernel_shape=list(shape[2:]), **attributes)

    def gemm(self, tensor: str, name: str, inputs: int, outputs: int, **attributes: object) -> str:
        """Weights (inputs, outputs), or (outputs, inputs) with transB."""
        shape = (outputs, inputs) if attributes.get("transB") else (inputs, outputs)
        weight = self.rng.normal(0, np.sqrt(2 / inputs), shape).astype(np.float32)
        bias = self.rng.normal(0, 0.1, outputs).astype(np.float32)
        parameters = [self.constant(f"{name}.w", weight), self.constant(f"{name}.b", bias)]
        return self.node("Gemm", [tensor, *parameters], name, **attributes)

    def matmul(self, tensor: str, name: str, inputs: int, outputs: int) -> str:
        """A product with a matrix and, added to it, a bias."""
        weight = self.rng.normal(0, np.sqrt(1 / inputs), (inputs, outputs)).astype(np.float32)
        product = self.node("MatMul", [tensor, self.constant(f"{name}.w", weight)], name)
        bias = self.constant(f"{name}.b", self.rng.normal(0, 0.1, outputs).astype(np.float32))
        return self.node("Add", [product, bias], f"{name}.add")

    def front(self) -> str:
        """Pixels as ImageNet networks take them: a factor and a shift for each channel."""
        factor = self.constant("front.factor", np.array([4.4, 4.5, 4.4], np.float32).reshape(1, 3, 1, 1))
        shift = self.constant("front.shift", np.array([0.1, 0.2, 0.4], np.float32).reshape(1, 3, 1, 1))
        return self.node("Add", [self.node("Mul", ["image", factor], "front.mul"), shift], "front.add")

    def model(self, output: str, input_shape: tuple[int, int, int] = (3, 16, 16)) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["logits"], name="logits"))
        graph = helper.make_graph(
            self.nodes,
            "float",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *input_shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def plain_network(activation: str = "Relu", seed: int = 0) -> onnx.ModelProto:
    """Two convolutions and two fully connected layers, weights (inputs, outputs), with any activation function."""
    b = FloatBuilder(seed)
    x = b.conv(b.front(), "conv1", (12, 3, 3, 3), pads=[1, 1, 1, 1])
    x = b.node(activation, [x], "act1")
    x = b.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = b.conv(x, "conv2", (16, 12, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    x = b.node(activation, [x], "act2")
    x = b.node("Flatten", [x], "flatten", axis=1)
    x = b.gemm(x, "fc1", 256, 24)
    x = b.node(activation, [x], "act3")
    return b.model(b.gemm(x, "fc2", 24, CLASSES, alpha=0.5, beta=2.0))


def residual_network(seed: int = 0) -> onnx.ModelProto:
    """ReLU6, an identity block, a block whose shortcut picks every second pixel and pads channels, and a mean."""
    b = FloatBuilder(seed)

    def relu6(tensor: str, name: str) -> str:
        bounds = [b.constant(f"{name}.low", np.float32(0)), b.constant(f"{name}.high", np.float32(6))]
        return b.node("Clip", [tensor, *bounds], name)

    x = relu6(b.conv(b.front(), "stem", (8, 3, 3, 3), pads=[1, 1, 1, 1]), "stem.act")
    y = b.node("Relu", [b.conv(x, "one.conv1", (8, 8, 3, 3), pads=[1, 1, 1, 1])], "one.relu1")
    y = b.conv(y, "one.conv2", (8, 8, 3, 3), pads=[1, 1, 1, 1])
    x = b.node("Relu", [b.node("Add", [y, x], "one.add")], "one.relu2")
    y = b.node("Relu", [b.conv(x, "two.conv1", (12, 8, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])], "two.relu1")
    y = b.conv(y, "two.conv2", (12, 12, 3, 3), pads=[1, 1, 1, 1])
    corners = [b.constant(f"two.{w}", np.array(v, np.int64)) for w, v in (("start", [0, 0]), ("end", [16, 16]))]
    steps = [b.constant(f"two.{w}", np.array(v, np.int64)) for w, v in (("axes", [2, 3]), ("steps", [2, 2]))]
    short = b.node("Slice", [x, *corners, *steps], "two.slice")
    widths = b.constant("two.widths", np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64))
    short = b.node("Pad", [short, widths], "two.pad")
    x = b.node("Relu", [b.node("Add", [y, short], "two.add")], "two.relu2")
    x = b.node("ReduceMean", [x, b.constant("mean.axes", np.array([2, 3], np.int64))], "mean", keepdims=0)
    return b.model(b.gemm(x, "fc", 12, CLASSES, transB=1))


def token_network(seed: int = 0) -> onnx.ModelProto:
    """Patches, one attention block with its normalization, and a mean over the tokens."""
    b = FloatBuilder(seed)
    x = b.conv(b.front(), "patches", (24, 3, 4, 4), strides=[4, 4])
    x = b.node("Reshape", [x, b.constant("rows", np.array([0, 24, 16], np.int64))], "reshape")
    x = b.node("Transpose", [x], "tokens", perm=[0, 2, 1])
    ones, zeros = b.constant("norm.w", np.ones(24, np.float32)), b.constant("norm.b", np.zeros(24, np.float32))
    normed = b.node("LayerNormalization", [x, ones, zeros], "norm", axis=-1)
    query, key, value = (b.matmul(normed, word, 24, 24) for word in ("query", "key", "value"))
    scores = b.node("MatMul", [query, b.node("Transpose", [key], "turned", perm=[0, 2, 1])], "scores")
    shares = b.node(
        "Softmax", [b.node("Mul", [scores, b.constant("root", np.float32(0.2))], "scaled")], "shares", axis=-1
    )
    x = b.node("Add", [x, b.matmul(b.node("MatMul", [shares, value], "mixed"), "out", 24, 24)], "sum")
    x = b.node("ReduceMean", [x, b.constant("mean.axes", np.array([1], np.int64))], "mean", keepdims=0)
    return b.model(b.gemm(x, "fc", 24, CLASSES, transB=1))


def binary_network(seed: int = 0) -> onnx.ModelProto:
    """A convolution, a sign, a convolution with weights -1 and +1, a sign, and a product with such weights."""
    b = FloatBuilder(seed)
    x = b.node("Sign", [b.conv(b.front(), "conv1", (8, 3, 3, 3), pads=[1, 1, 1, 1])], "sign1")
    weight = b.constant("conv2.w", b.rng.choice([-1.0, 1.0], (8, 8, 3, 3)).astype(np.float32))
    x = b.node("Conv", [x, weight], "conv2", kernel_shape=[3, 3], strides=[2, 2])
    shift = b.constant("shift", b.rng.normal(0, 1, (1, 8, 1, 1)).astype(np.float32) + np.float32(0.123))
    x = b.node("Sign", [b.node("Add", [x, shift], "threshold")], "sign2")
    x = b.node("Flatten", [x], "flatten", axis=1)
    weight = b.constant("fc.w", (b.rng.choice([-1.0, 1.0], (392, CLASSES)) * 0.25).astype(np.float32))
    return b.model(b.node("MatMul", [x, weight], "fc"))


NETWORKS = {
    "plain": plain_network,
    "residual": residual_network,
    "tokens": token_network,
    "binary": binary_network,
}
