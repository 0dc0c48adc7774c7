"""The smooth surrogate: the twin with clamps for quantizers, differentiated as torch does it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from canonical_examples import plain_cnn, residual_net
from gradient_reference import relative_error, run
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import UnsupportedOperator, build_attack_graph
from hardbit.graph.gradient.surrogates import relax_activations
from hardbit.quantize import freeze
from hardbit.quantize.quantizers import activation_numerics, is_activation_quantizer
from hardbit_deploy.errors import HardbitError
from quantized_examples import calibrated, random_images

SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32)}


class Clipped(nn.Module):
    """Where a quantizer of few bits was: its ReLU, if it had one, and its range."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        return torch.relu(x).clamp(max=self.high) if self.low == 0 else x.clamp(self.low, self.high)


def relaxed_twin(twin):
    """`twin` with clamps for its activation quantizers below 8 bits."""
    smooth = copy.deepcopy(twin)
    for name, quantizer in twin.named_modules():
        if is_activation_quantizer(quantizer):
            numerics = activation_numerics(quantizer)
            if numerics.bits < 8:
                parent, _, child = name.rpartition(".")
                clipped = Clipped(numerics.low * numerics.scale, numerics.high * numerics.scale)
                setattr(smooth.get_submodule(parent), child, clipped)
    return smooth.double()


def feeds_for(images, classes=10):
    return {
        "image": images,
        "onehot": np.eye(classes, dtype=np.float32)[np.arange(len(images)) % classes],
        "engine_logits": np.zeros((len(images), classes), np.float32),
        "own_logits": np.array(True),
        "loss_weights": np.array([0, 1], np.float32),
        "seed": np.zeros((len(images), classes), np.float32),
    }


@pytest.mark.parametrize("bits", [7, 4, 2, 1])
@pytest.mark.parametrize("architecture", list(SHAPES))
def test_logits_and_gradient_are_those_of_the_twin_with_clamps_in_place_of_quantizers(architecture, bits):
    twin = freeze(calibrated(architecture, bits)).eval()
    images = random_images(16, SHAPES[architecture], seed=3)
    graph = build_attack_graph(export_canonical(twin, SHAPES[architecture]), surrogate="smooth")
    feeds = feeds_for(images)
    found = run(graph, feeds)
    x = ((torch.from_numpy(images).double() - 128) / 256).requires_grad_()
    logits = relaxed_twin(twin)(x)
    onehot = torch.from_numpy(feeds["onehot"]).double()
    margin = (logits - 1e9 * onehot).amax(1) - (logits * onehot).sum(1)
    (gradient,) = torch.autograd.grad(margin.sum(), x)
    np.testing.assert_allclose(found["logits"], logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    errors = [relative_error(a, b) for a, b in zip(found["gradient"], gradient.numpy(), strict=True)]
    assert np.median(errors) < 1e-5  # an 8-bit quantizer behind may still round a value to the other side
    assert np.abs(gradient.numpy()).max() > 0


def test_the_gradient_is_the_true_one_by_finite_differences():
    """Between two bytes the surrogate moves as its gradient says; the quantized network moves in jumps."""
    twin = freeze(calibrated("lenet", 2)).eval()
    canonical = export_canonical(twin, (1, 28, 28))
    images = random_images(64, (1, 28, 28), seed=5)
    direction = np.random.default_rng(0).choice([-1, 1], images.shape)
    apart = [np.clip(images.astype(int) + sign * direction, 0, 255).astype(np.uint8) for sign in (-1, 1)]
    moved = (apart[1].astype(float) - apart[0].astype(float)) / 256

    def correlation(surrogate):
        graph = build_attack_graph(canonical, surrogate=surrogate)
        low, high = (run(graph, feeds_for(ends))["loss"] for ends in apart)
        predicted = (run(graph, feeds_for(images))["gradient"] * moved).sum((1, 2, 3))
        return np.corrcoef(predicted, high - low)[0, 1]

    assert correlation("smooth") > 0.99
    assert correlation("straight-through") < 0.9


@pytest.mark.parametrize("example", [plain_cnn, residual_net])
def test_at_eight_bits_there_is_nothing_to_relax(example):
    model = example(8)
    same = build_attack_graph(model, surrogate="smooth").SerializeToString(deterministic=True)
    assert same == build_attack_graph(model).SerializeToString(deterministic=True)


def test_inputs_and_outputs_are_those_of_the_other_graph_and_the_canonical_graph_is_left_alone():
    model = residual_net(4)
    before = model.SerializeToString(deterministic=True)
    smooth, straight = build_attack_graph(model, surrogate="smooth").graph, build_attack_graph(model).graph
    assert model.SerializeToString(deterministic=True) == before
    assert [v.SerializeToString() for v in smooth.input] == [v.SerializeToString() for v in straight.input]
    assert [v.SerializeToString() for v in smooth.output] == [v.SerializeToString() for v in straight.output]


def test_every_quantizer_of_few_bits_is_gone_and_the_weights_are_what_they_were():
    relaxed = relax_activations(residual_net(4))
    quantizers = [node.name for node in relaxed.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers == ["input.quantize", "pool.act.quantize"]
    codes = {tensor.name for tensor in relaxed.graph.initializer if tensor.name.endswith(".weight.codes")}
    assert codes == {t.name for t in residual_net(4).graph.initializer if t.name.endswith(".weight.codes")}


def test_codes_that_something_else_reads_are_refused_by_node():
    model = plain_cnn(4)
    model.graph.node.append(helper.make_node("Cast", ["act1.clipped"], ["elsewhere"], name="spy", to=1))
    with pytest.raises(UnsupportedOperator, match=r"node 'spy': the smooth surrogate needs QuantizeLinear, Clip"):
        build_attack_graph(model, surrogate="smooth")


def test_an_unknown_surrogate_is_refused_with_the_known_ones():
    with pytest.raises(HardbitError, match="no surrogate 'sigmoid'; known: straight-through, smooth"):
        build_attack_graph(plain_cnn(4), surrogate="sigmoid")
