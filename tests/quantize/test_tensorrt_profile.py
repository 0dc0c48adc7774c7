"""Under the profile of TensorRT codes are symmetric, at most 7 bits where unsigned, and of a sum's operands the skip
branch alone is quantized; the exported graph has the twin's bits, and so has the engine's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from hardbit import nets
from hardbit.graph.export import export_canonical
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.quantize import Bits, freeze, quantize
from hardbit.quantize.operators import operator_of
from hardbit.quantize.quantizers import activation_numerics, is_activation_quantizer
from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit_deploy.errors import HardbitError
from lowering_examples import images_for, run
from quantized_examples import calibrated, random_images
from tensorrt_examples import run_engine

OPTIONS = {"lenet": {}, "resnet8": {"width": 8}, "vit": {"width": 24, "depth": 1, "heads": 3}}
SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32)}


def quantizers(module: fx.GraphModule) -> dict[str, tuple[int, bool]]:
    """(bits, signed) by the name of the quantizer."""
    found = {}
    for node in module.graph.nodes:
        child = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if is_activation_quantizer(child):
            numerics = activation_numerics(child)
            found[str(node.target)] = (numerics.bits, numerics.signed)
    return found


class Sum(nn.Module):
    """Two convolutions of different depth are added, averaged, and read by a layer."""

    def __init__(self, *, swapped: bool = False, doubly_read: bool = False) -> None:
        super().__init__()
        self.stem, self.deep, self.skip = (nn.Conv2d(c, 4, 3, padding=1) for c in (1, 4, 4))
        self.middle, self.relu, self.last_relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.ReLU()
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(4 * 16, 3)
        self.swapped, self.doubly_read = swapped, doubly_read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        deep = self.deep(torch.relu(self.middle(x)))
        total = self.skip(x) + deep if self.swapped else deep + self.skip(x)
        total = total + deep if self.doubly_read else total
        return self.fc(torch.flatten(self.pool(self.last_relu(total)), 1))


def test_seven_bits_are_a_byte_with_a_sign() -> None:
    """[0, 127] behind a ReLU, [-128, 127] elsewhere: also where the last layer's 8 bits would be unsigned."""
    seen = quantizers(quantize(nets.build("resnet8", width=8), "tensorrt", Bits(8, 7)))
    assert seen["input_quant"] == (8, True)
    rectified = {name for name in seen if "relu" in name}
    assert {seen[name] for name in rectified} == {(7, False)}
    assert {name: form for name, form in seen.items() if name not in rectified} == {
        "input_quant": (8, True),
        "stages_1_shortcut_1_quant": (8, True),
        "stages_2_shortcut_1_quant": (8, True),
        "pool_quant": (7, False),
    }


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_fewer_bits_are_as_many_as_asked(bits: int) -> None:
    seen = quantizers(quantize(nets.build("resnet8", width=8), "tensorrt", Bits(bits, bits)))
    assert {form for name, form in seen.items() if "relu" in name} == {(bits, False)}
    assert seen["stages_1_shortcut_1_quant"] == (bits, True)


def test_eight_unsigned_bits_are_refused_with_the_reason_and_the_ways_out() -> None:
    with pytest.raises(HardbitError) as caught:
        quantize(nets.build("lenet"), "tensorrt", Bits(8, 8))
    assert str(caught.value) == (
        "relu1: unsigned activations of 8 bits: the engine has int8 alone, and would cut them off at 127; write "
        "activations = 7, which is [0, 127] behind a ReLU; or profile = 'tensorrt-signed', whose 8 bits are [-128, 127]"
    )
    with pytest.raises(HardbitError, match=r"^relu2: unsigned activations of 8 bits"):
        quantize(nets.build("lenet"), "tensorrt", Bits(8, 7, layers={"relu2": 8}))


def test_eight_signed_bits_are_had_on_request() -> None:
    """They hold what 7 unsigned bits hold: behind a ReLU the sign is never used."""
    signed = quantize(nets.build("lenet"), "tensorrt-signed", Bits(8, 8))
    assert set(quantizers(signed).values()) == {(8, True)}
    image = torch.linspace(-0.5, 0.5, 784).view(1, 1, 28, 28)
    asked = {"tensorrt-signed": Bits(8, 8), "tensorrt": Bits(8, 7)}
    outputs = [freeze(calibrated("lenet", bits, profile=profile))(image) for profile, bits in asked.items()]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_skip_branch_alone_is_quantized_whatever_the_order(swapped: bool) -> None:
    module = quantize(Sum(swapped=swapped), "tensorrt", Bits(4, 4))
    (add,) = (node for node in module.graph.nodes if operator_of(module, node) == "Add")
    assert sorted(str(operand.target) for operand in add.all_input_nodes) == ["deep", "skip_quant"]
    both = quantize(Sum(swapped=swapped), "onnxruntime", Bits(4, 4))
    assert {"deep_quant", "skip_quant"} <= quantizers(both).keys()


def test_a_layer_that_others_read_too_is_quantized_for_a_sum() -> None:
    module = quantize(Sum(doubly_read=True), "tensorrt", Bits(4, 4))
    assert {"deep_quant", "add_quant"} <= quantizers(module).keys()
    assert "skip_quant" not in quantizers(module)


def test_what_was_averaged_or_added_is_quantized_afresh_before_the_next_layer() -> None:
    seen = quantizers(quantize(Sum(), "tensorrt", Bits(4, 4, last_layer=7)))
    assert seen["pool_quant"] == (7, False)
    assert seen["last_relu"] == (4, False)


@pytest.mark.parametrize("bits", [Bits(8, 7), Bits(4, 4), Bits(2, 2), Bits(1, 1)], ids=lambda bits: f"w{bits.weights}")
@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_twin_canonical_graph_and_engine_have_the_same_bits(name: str, bits: Bits) -> None:
    twin, shape = freeze(calibrated(name, bits, profile="tensorrt", **OPTIONS[name])), SHAPES[name]
    canonical = export_canonical(twin, shape, profile="tensorrt")
    images = random_images(16, shape, seed=1)
    logits = run(canonical, images)
    with torch.no_grad():
        expected = twin(torch.from_numpy((images.astype(np.float32) - 128) / 256)).numpy()
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(run_engine(lower(canonical, "tensorrt"), images), expected)
    assert len({tuple(row) for row in logits}) > 1
    layers = [node.name for node in canonical.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node["name"] for node in integer_nodes(canonical)] == layers
    assert [node["name"] for node in float_nodes(canonical) if ".raise" not in node["name"]] == [
        node["name"].replace(".raise", ".lower") for node in float_nodes(canonical) if ".raise" in node["name"]
    ]


def test_a_transformer_keeps_its_floats_and_its_layers_are_integer() -> None:
    twin = freeze(calibrated("vit", Bits(8, 7), profile="tensorrt", **OPTIONS["vit"]))
    canonical = export_canonical(twin, (3, 32, 32), profile="tensorrt")
    layers = [node.name for node in canonical.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node["name"] for node in integer_nodes(canonical)] == layers
    embedding = next(node for node in canonical.graph.node if node.op_type == "Conv")
    readers = OnnxGraph(canonical).consumers(embedding.output[0])
    assert "QuantizeLinear" not in {node.op_type for node in readers}  # it ends in floats: nothing has to be rounded
    images = images_for(canonical, 4)
    np.testing.assert_array_equal(run_engine(lower(canonical, "tensorrt"), images), run(canonical, images))
