"""The attack graph's interface, its entry of bytes, and whole networks."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from canonical_examples import CanonicalBuilder, plain_cnn, residual_net
from gradient_reference import evaluate, relative_error, run
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import UnsupportedOperator, build_attack_graph, differentiate, supported_operators
from hardbit.quantize import Bits, calibrate, freeze, quantize
from hardbit.train.adversary import centred
from hardbit_deploy.errors import HardbitError
from quantized_examples import random_images


def feeds_for(model, batch, seed=0):
    rng = np.random.default_rng(seed)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return {
        "image": rng.integers(0, 256, (batch, *shape)).astype(np.uint8),
        "onehot": np.eye(10, dtype=np.float32)[rng.integers(0, 10, batch)],
        "engine_logits": rng.standard_normal((batch, 10)).astype(np.float32),
        "own_logits": np.array(False),
        "loss_weights": np.array([1, 0], np.float32),
        "seed": np.zeros((batch, 10), np.float32),
    }


def test_inputs_and_outputs_are_those_that_a_board_expects():
    graph = build_attack_graph(residual_net(4)).graph
    described = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in [*graph.input, *graph.output]
    }
    assert described == {
        "image": (TensorProto.UINT8, ["batch", 3, 16, 16]),
        "onehot": (TensorProto.FLOAT, ["batch", 10]),
        "engine_logits": (TensorProto.FLOAT, ["batch", 10]),
        "own_logits": (TensorProto.BOOL, []),
        "loss_weights": (TensorProto.FLOAT, [2]),
        "seed": (TensorProto.FLOAT, ["batch", 10]),
        "gradient": (TensorProto.FLOAT, ["batch", 3, 16, 16]),
        "logits": (TensorProto.FLOAT, ["batch", 10]),
        "loss": (TensorProto.FLOAT, ["batch"]),
    }
    assert [value.name for value in graph.output] == ["gradient", "logits", "loss"]


def test_only_standard_operators_of_opset_18_are_written():
    model = build_attack_graph(residual_net(4))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("example", [plain_cnn, residual_net])
def test_an_image_has_the_same_gradient_in_every_batch(example):
    model = example(4)
    graph, feeds = build_attack_graph(model), feeds_for(model, 7)
    together = run(graph, feeds)
    for row in range(7):
        alone = run(graph, {name: v[row : row + 1] if len(v.shape) > 1 else v for name, v in feeds.items()})
        for name in ("gradient", "logits", "loss"):
            np.testing.assert_allclose(alone[name][0], together[name][row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masks", ["auto", "exact"])
def test_the_runtime_s_optimiser_changes_nothing_but_speed(masks):
    model = residual_net(8)
    graph, feeds = build_attack_graph(model, masks=masks), feeds_for(model, 16)
    fast, plain = run(graph, feeds), run(graph, feeds, optimised=False)
    np.testing.assert_array_equal(fast["logits"], plain["logits"])
    assert relative_error(fast["gradient"], plain["gradient"]) < 1e-6


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("masks", ["auto", "exact"])
def test_a_layer_that_reads_a_pool_of_the_image_keeps_its_weights_in_the_runtime(bits, masks):
    """ONNX Runtime quantizes float weights of its own accord where codes go in and come out: to other values."""
    torch.manual_seed(0)
    layers = [nn.MaxPool2d(2), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)]
    module = quantize(nn.Sequential(*layers), "onnxruntime", Bits(bits, bits))
    images = random_images(64, (3, 16, 16))
    calibrate(module, [centred(torch.from_numpy(images))])
    twin = freeze(module).eval()
    with torch.no_grad():
        expected = twin(centred(torch.from_numpy(images))).numpy()
    graph = build_attack_graph(export_canonical(twin, (3, 16, 16)), masks=masks)
    feeds = {
        "image": images,
        "onehot": np.eye(5, dtype=np.float32)[np.arange(64) % 5],
        "engine_logits": expected,
        "own_logits": np.array(True),
        "loss_weights": np.array([1, 0], np.float32),
        "seed": np.zeros_like(expected),
    }
    (logits,) = ort.InferenceSession(graph.SerializeToString()).run(["logits"], feeds)
    np.testing.assert_array_equal(logits, expected)


def test_the_canonical_graph_is_left_as_it_was():
    model = plain_cnn(4)
    before = model.SerializeToString(deterministic=True)
    build_attack_graph(model)
    assert model.SerializeToString(deterministic=True) == before


def test_the_same_graph_is_built_every_time():
    one, other = (build_attack_graph(residual_net(4)).SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


def test_a_network_may_use_the_names_of_our_inputs_and_outputs_for_itself():
    plain, renamed = plain_cnn(4), plain_cnn(4)
    names = {"image": "x", "logits": "gradient", "conv1.out": "loss", "conv1.weight": "logits", "fc1.bias": "onehot"}
    names |= {"conv1.bias.scale": "engine_logits", "relu1.out": "image", "fc1.out": "seed"}
    for node in renamed.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [*renamed.graph.input, *renamed.graph.output, *renamed.graph.initializer]:
        value.name = names.get(value.name, value.name)
    onnx.checker.check_model(renamed)
    feeds = feeds_for(plain, 4)
    one, other = run(build_attack_graph(plain), feeds), run(build_attack_graph(renamed), feeds)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def executed(model):
    """Operator types of the graph that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = "optimised.onnx"
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load("optimised.onnx").graph.node]


def test_at_eight_bits_the_forward_pass_runs_in_integers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = residual_net(8)
    operators = executed(build_attack_graph(model))
    layers = sum(node.op_type == "Conv" for node in model.graph.node)
    assert operators.count("QLinearConv") == layers
    assert operators.count("QLinearAdd") == 2


def test_below_eight_bits_convolutions_before_a_relu_run_in_float(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    operators = executed(build_attack_graph(residual_net(4)))
    assert operators.count("QLinearConv") == 3  # both conv2 and the shortcut, which feed quantizers directly


def network(first_scale, dtype, zero_point, bits):
    """One quantizer, one Gemm: enough to see how the image enters."""
    b = CanonicalBuilder(0)
    scale, zero = b.constant("s", np.float32(first_scale)), b.constant("z", dtype(zero_point))
    codes = b.node("QuantizeLinear", ["image", scale, zero], "q", "input.quantize")
    if bits < 8:
        bounds = [b.constant("low", dtype(-(2 ** (bits - 1)))), b.constant("high", dtype(2 ** (bits - 1) - 1))]
        codes = b.node("Clip", [codes, *bounds], "c", "input.clip")
    x = b.node("DequantizeLinear", [codes, scale, zero], "x", "input.dequantize")
    x = b.node("Flatten", [x], "flat", "flatten", axis=1)
    x = b.gemm(x, "fc", (10, 12), first_scale, 8)
    return b.model(x, (3, 2, 2), 10)


@pytest.mark.parametrize(
    ("scale", "dtype", "zero_point", "byte_zero"),
    [(1 / 256, np.int8, 0, 128), (1 / 64, np.int8, 0, 128), (1 / 256, np.uint8, 128, 128), (1 / 32, np.uint8, 0, 0)],
)
def test_an_eight_bit_input_quantizer_is_the_identity_on_bytes(scale, dtype, zero_point, byte_zero):
    model = network(scale, dtype, zero_point, 8)
    feeds = feeds_for(model, 16)
    feeds["image"][0] = 0
    feeds["image"][1] = 255
    graph = build_attack_graph(model)
    assert not any(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    result = run(graph, feeds)
    x = ((torch.from_numpy(feeds["image"]).double() - byte_zero) * scale).requires_grad_()
    logits = evaluate(model, {"image": x})["logits"]
    np.testing.assert_allclose(result["logits"], logits.detach().numpy(), rtol=1e-6)
    assert (result["gradient"] != 0).all()


def test_an_input_quantizer_of_fewer_bits_is_kept_with_its_mask():
    model = network(1 / 8, np.int8, 0, 3)  # saturates at -0.5 - 1/16 and 7/16
    feeds = feeds_for(model, 32)
    result = run(build_attack_graph(model), feeds)
    x = ((torch.from_numpy(feeds["image"]).double() - 128) / 256).requires_grad_()
    logits = evaluate(model, {"image": x})["logits"]
    np.testing.assert_allclose(result["logits"], logits.detach().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(result["gradient"] == 0, feeds["image"] >= 128 + 112)


def float_resnet20():
    """ResNet-20 with BatchNorm statistics like a trained network's, in torch and as an ONNX graph without Q and DQ."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outputs)
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

        def forward(self, x):
            y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
            return torch.relu(y + self.shortcut(x))

    blocks, width = [], 16
    for outputs in (16, 32, 64):
        for index in range(3):
            blocks.append(Block(width, outputs, 2 if outputs != 16 and index == 0 else 1))
            width = outputs
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.75, 1.25)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def to_onnx(net, shape):
    """A torch module of the layers above as ONNX, written by hand: torch's own exporter is not what is tested."""
    nodes, constants = [], []

    def add(operator, inputs, output, parameters=(), **options):
        names = [f"{output}.{k}" for k in range(len(parameters))]
        constants.extend(numpy_helper.from_array(p.detach().numpy(), n) for p, n in zip(parameters, names, strict=True))
        nodes.append(helper.make_node(operator, [*inputs, *names], [output], name=output, **options))
        return output

    def write(module, x, name):
        if isinstance(module, nn.Conv2d):
            pads = [*module.padding, *module.padding]
            return add("Conv", [x], name, [module.weight], strides=list(module.stride), pads=pads)
        if isinstance(module, nn.BatchNorm2d):
            parameters = [module.weight, module.bias, module.running_mean, module.running_var]
            return add("BatchNormalization", [x], name, parameters, epsilon=module.eps)
        if isinstance(module, nn.Linear):
            return add("Gemm", [x], name, [module.weight, module.bias], transB=1)
        if isinstance(module, nn.Sequential):
            for index, child in enumerate(module):
                x = write(child, x, f"{name}.{index}")
            return x
        simple = {nn.ReLU: "Relu", nn.AdaptiveAvgPool2d: "GlobalAveragePool", nn.Flatten: "Flatten"}
        if type(module) in simple:
            return add(simple[type(module)], [x], name)
        if isinstance(module, nn.Identity):
            return x
        y = write(module.norm1, write(module.conv1, x, f"{name}.conv1"), f"{name}.norm1")
        y = add("Relu", [y], f"{name}.relu1")
        y = write(module.norm2, write(module.conv2, y, f"{name}.conv2"), f"{name}.norm2")
        y = add("Add", [y, write(module.shortcut, x, f"{name}.shortcut")], f"{name}.add")
        return add("Relu", [y], name)

    result = write(net, "image", "net")
    nodes.append(helper.make_node("Identity", [result], ["logits"], name="logits"))
    graph = helper.make_graph(
        nodes,
        "float",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_resnet20_in_float_to_one_part_in_a_hundred_thousand():
    net = float_resnet20()
    model = to_onnx(net, (3, 32, 32))
    feeds = feeds_for(model, 8)
    result = run(build_attack_graph(model), feeds)
    x = ((torch.from_numpy(feeds["image"]).double() - 128) / 256).requires_grad_()
    logits = net.double()(x)
    y, z = (torch.from_numpy(feeds[name]).double() for name in ("onehot", "engine_logits"))
    (gradient,) = torch.autograd.grad(logits, x, torch.softmax(z - 1e9 * y, 1) - y)
    np.testing.assert_allclose(result["logits"], logits.detach().numpy(), rtol=1e-4, atol=1e-5)
    for actual, expected in zip(result["gradient"], gradient.numpy(), strict=True):
        assert relative_error(actual, expected) < 1e-5


def with_operator(operator, **options):
    """plain_cnn whose first Relu is another operator."""
    model = plain_cnn(4)
    node = next(n for n in model.graph.node if n.name == "relu1")
    node.op_type = operator
    node.attribute.extend(helper.make_attribute(name, value) for name, value in options.items())
    return model


def test_an_operator_without_a_rule_is_refused_by_name():
    with pytest.raises(UnsupportedOperator, match=r"relu1.*Sinh.*supported are Abs, Add, AveragePool") as raised:
        build_attack_graph(with_operator("Sinh"))
    assert isinstance(raised.value, HardbitError)
    assert raised.value.exit_code == 64


def test_an_operator_of_a_foreign_domain_is_refused_even_under_a_known_name():
    model = plain_cnn(4)
    next(n for n in model.graph.node if n.name == "relu1").domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedOperator, match=r"relu1.*com.example::Relu"):
        build_attack_graph(model)


def test_an_operator_beside_the_path_to_the_logits_needs_no_rule():
    model = plain_cnn(4)
    model.graph.node.append(helper.make_node("Sinh", ["conv1.out"], ["elsewhere"], name="elsewhere"))
    feeds = feeds_for(model, 2)
    expected = run(build_attack_graph(plain_cnn(4)), feeds)
    np.testing.assert_array_equal(run(build_attack_graph(model), feeds)["gradient"], expected["gradient"])


DYNAMIC = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="odd")
REFUSED = {
    "a pool of a window that lies outside": (
        "AveragePool",
        helper.make_node(
            "AveragePool", ["x"], ["y"], name="odd", kernel_shape=[2, 2], strides=[3, 3], pads=[1] * 4, ceil_mode=1
        ),
        {},
    ),
    "a scale of all images": ("DynamicQuantizeLinear", DYNAMIC, {}),
    "a step": ("Greater", helper.make_node("Greater", ["x", "s"], ["y"], name="odd"), {"s": np.float32(0)}),
    "weights that depend on the image": ("Conv", helper.make_node("Conv", ["x", "x"], ["y"], name="odd"), {}),
    "a cast to integers": ("Cast", helper.make_node("Cast", ["x"], ["y"], name="odd", to=TensorProto.INT32), {}),
    "a scale that is not positive": (
        "QuantizeLinear",
        helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="odd"),
        {"s": np.float32(0)},
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_a_rule_does_not_cover_is_refused_with_the_name_of_the_node(case):
    operator, node, constants = REFUSED[case]
    types = {"Cast": TensorProto.INT32, "QuantizeLinear": TensorProto.UINT8}
    types |= {"DynamicQuantizeLinear": TensorProto.UINT8, "Greater": TensorProto.BOOL}
    graph = helper.make_graph(
        [node],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3, 4, 4] if operator != "Conv" else [3, 3, 3, 3])],
        [helper.make_tensor_value_info("y", types.get(operator, TensorProto.FLOAT), None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(UnsupportedOperator, match=rf"odd.*{operator}"):
        differentiate(model, "y", "x")


@pytest.mark.parametrize("odd", ["Clip", "QuantizeLinear"])
def test_codes_that_depend_on_a_value_computed_at_run_time_are_refused_with_the_name_of_the_node(odd):
    computed = helper.make_node("Cast", ["image"], ["z"], name="computed", to=TensorProto.INT8)
    zero_point, bounds = ("z", []) if odd == "QuantizeLinear" else ("zero", ["", "z"])
    nodes = [
        computed,
        helper.make_node("QuantizeLinear", ["image", "scale", zero_point], ["q"], name="odd QuantizeLinear"),
        helper.make_node("Clip", ["q", *bounds], ["c"], name="odd Clip"),
        helper.make_node("DequantizeLinear", ["c", "scale", zero_point], ["logits"], name="dequantize"),
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(1), "scale"), numpy_helper.from_array(np.int8(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(UnsupportedOperator, match=f"odd {odd}.*computed at run time"):
        build_attack_graph(model)


def test_another_opset_is_refused():
    model = plain_cnn(4)
    model.opset_import[0].version = 13
    with pytest.raises(HardbitError, match=r"opset 13.*opset 18.*version_converter"):
        build_attack_graph(model)


def test_a_network_of_two_inputs_is_refused():
    model = plain_cnn(4)
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    with pytest.raises(HardbitError, match="one float32 input"):
        build_attack_graph(model)


def test_the_list_of_operators_covers_the_canonical_graphs():
    used = {node.op_type for bits in (8, 4) for m in (plain_cnn(bits), residual_net(bits)) for node in m.graph.node}
    assert used <= set(supported_operators())
