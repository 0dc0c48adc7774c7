"""The attack graph for TensorRT holds the numbers of that for ONNX Runtime, and nothing that TensorRT refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from canonical_examples import CanonicalBuilder, plain_cnn
from gradient_reference import check_rule, relative_error, run
from hardbit.graph.gradient import build_attack_graph, differentiate
from hardbit_deploy.errors import HardbitError

CLASSES = 10
POOLS = {
    "overlapping": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "dilated": {"kernel_shape": [2, 3], "strides": [1, 2], "dilations": [2, 1]},
    "rounded up": {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
}


def strided_net(bits: int) -> onnx.ModelProto:
    """A residual network whose codes all fit into 7 bits: signed sums, a strided shortcut, overlapping pooling."""
    b, scale = CanonicalBuilder(3), 2.0**-bits
    x = b.quantize("image", "input", 1 / 256, 8, signed=True)
    x = b.conv(x, "stem", (16, 3, 3, 3), 1 / 256, 8, strides=[1, 1], pads=[1, 1, 1, 1])
    x = b.node("Relu", [x], "stem.relu.out", "stem.relu")
    x = b.quantize(x, "stem.act", scale, bits, signed=False)
    x = b.node("MaxPool", [x], "pool.out", "pool", **POOLS["overlapping"])
    y = b.conv(x, "conv1", (16, 16, 3, 3), scale, bits, strides=[2, 2], pads=[1, 1, 1, 1])
    x = b.conv(x, "shortcut", (16, 16, 1, 1), scale, bits, strides=[2, 2], pads=[0, 0, 0, 0])
    x = b.quantize(x, "skip", scale * 2, bits + 1, signed=True)
    x = b.node("Add", [y, x], "add.out", "add")
    x = b.node("Relu", [x], "relu.out", "relu")
    x = b.node("GlobalAveragePool", [x], "mean.out", "mean")
    x = b.quantize(x, "mean.act", scale, 7, signed=False)
    x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    return b.model(b.gemm(x, "fc", (CLASSES, 16), scale, 8), (3, 16, 16), CLASSES)


def feeds_for(canonical, count=8):
    rng = np.random.default_rng(0)
    shape = [d.dim_value for d in canonical.graph.input[0].type.tensor_type.shape.dim][1:]
    return {
        "image": rng.integers(0, 256, (count, *shape)).astype(np.uint8),
        "onehot": np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, count)],
        "engine_logits": rng.standard_normal((count, CLASSES)).astype(np.float32),
        "own_logits": np.array(False),
        "loss_weights": np.array([1, 0.5], np.float32),
        "seed": rng.standard_normal((count, CLASSES)).astype(np.float32),
    }


def centred(feeds):
    return feeds | {"image": (feeds["image"].astype(np.int16) - 128).astype(np.int8)}


NETWORKS = pytest.mark.parametrize(
    "canonical", [plain_cnn(3), plain_cnn(4), plain_cnn(7), strided_net(3), strided_net(6)]
)


@NETWORKS
@pytest.mark.parametrize("surrogate", ["straight-through", "smooth"])
def test_logits_loss_and_gradient_are_those_of_the_graph_for_onnx_runtime(canonical, surrogate):
    feeds = feeds_for(canonical)
    expected = run(build_attack_graph(canonical, masks="exact", surrogate=surrogate), feeds, optimised=False)
    graph = build_attack_graph(canonical, surrogate=surrogate, target="tensorrt")
    actual = run(graph, centred(feeds), optimised=False)
    np.testing.assert_array_equal(actual["logits"], expected["logits"])
    assert relative_error(actual["loss"], expected["loss"]) < 1e-6
    assert np.abs(expected["gradient"]).max() > 0
    assert relative_error(actual["gradient"], expected["gradient"]) < 1e-6


@NETWORKS
def test_nothing_is_computed_on_codes(canonical):
    model = onnx.shape_inference.infer_shapes(build_attack_graph(canonical, target="tensorrt"))
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    codes = {v.name for v in values if v.type.tensor_type.elem_type in (TensorProto.INT8, TensorProto.UINT8)}
    readers = {node.op_type for node in model.graph.node if codes & set(node.input)}
    assert readers == {"DequantizeLinear"}
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    assert {types[name] for name in codes} == {TensorProto.INT8}


@NETWORKS
def test_every_layer_of_codes_reads_its_weights_as_codes_and_its_bias_as_floats(canonical):
    graph = build_attack_graph(canonical, target="tensorrt").graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = {node.name for node in canonical.graph.node if node.op_type in ("Conv", "Gemm")}
    found = [node for node in graph.node if node.name in layers]
    assert {node.name for node in found} == layers
    for node in found:
        weights = makers[node.input[1]]
        assert weights.op_type == "DequantizeLinear"
        assert constants[weights.input[0]] == TensorProto.INT8
        assert constants[node.input[2]] == TensorProto.FLOAT


def test_activation_scales_have_no_axis_and_zero_points_are_zero():
    model = build_attack_graph(strided_net(4), target="tensorrt")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(constants[node.input[1]].ndim == 0 for node in quantizers if node.input[0] not in constants)
    assert not any(constants[node.input[2]].any() for node in quantizers)


def test_fewer_than_eight_bits_are_clipped_in_float_before_they_are_quantized():
    model = build_attack_graph(plain_cnn(4), target="tensorrt")
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    bounds = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            clip = makers[node.input[0]]
            assert clip.op_type == "Clip"
            assert makers[clip.input[0]].op_type == "Relu"
            bounds[node.name] = float(constants[clip.input[2]])
    assert bounds == {f"act{k}.quantize": 15 / 16 for k in (1, 2, 3)}


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_pools_of_every_kind_are_differentiated_by_comparison(options):
    x = (np.random.default_rng(0).integers(0, 4, (2, 3, 7, 9)) / 4).astype(np.float32)
    pads, ceil = options.get("pads", [0] * 4)[:2], bool(options.get("ceil_mode", 0))
    dilations = options.get("dilations", [1, 1])

    def by_torch(image):
        return functional.max_pool2d(image, options["kernel_shape"], options["strides"], pads, dilations, ceil)

    check_rule([helper.make_node("MaxPool", ["x"], ["y"], name="pool", **options)], x, by_torch, target="tensorrt")


@pytest.mark.parametrize("rank", [1, 3])
def test_pools_over_one_and_three_axes(rank):
    x = (np.random.default_rng(0).integers(0, 3, (2, 2, *[6] * rank)) / 4).astype(np.float32)
    by_torch = {1: functional.max_pool1d, 3: functional.max_pool3d}[rank]
    for kernel, stride in ((2, 2), (3, 2)):
        node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[kernel] * rank, strides=[stride] * rank)
        check_rule([node], x, lambda image, k=kernel, s=stride: by_torch(image, k, s), target="tensorrt")


def test_eight_unsigned_bits_are_refused_with_the_node_and_the_reason():
    with pytest.raises(HardbitError, match="codes from 0 to 255 do not fit into int8") as refused:
        build_attack_graph(plain_cnn(8), target="tensorrt")
    assert refused.value.where == "act1.quantize"


def test_operators_on_codes_are_refused_with_the_node():
    model = plain_cnn(4)
    graph = model.graph
    pool = next(node for node in graph.node if node.op_type == "MaxPool")
    dequantize = next(node for node in graph.node if node.output[0] == pool.input[0])
    codes, pooled = dequantize.input[0], pool.output[0]
    pool.input[0], pool.output[0] = codes, "pool.codes"
    dequantize.input[0], dequantize.output[0] = "pool.codes", pooled
    nodes = list(graph.node)
    i, j = nodes.index(dequantize), nodes.index(pool)
    nodes[i], nodes[j] = nodes[j], nodes[i]
    del graph.node[:]
    graph.node.extend(nodes)
    build_attack_graph(model)
    with pytest.raises(HardbitError, match="no MaxPool of codes") as refused:
        build_attack_graph(model, target="tensorrt")
    assert refused.value.where == "pool"


def test_an_unknown_target_is_refused():
    with pytest.raises(HardbitError, match="no attack graph for the target 'abacus'"):
        build_attack_graph(plain_cnn(4), target="abacus")
    with pytest.raises(HardbitError, match="abacus"):
        differentiate(plain_cnn(4), "logits", "image", target="abacus")


def test_tensorrt_and_tensorrt_for_rtx_take_the_same_graph():
    one, other = (build_attack_graph(plain_cnn(4), target=name) for name in ("tensorrt", "tensorrt_rtx"))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
