"""The fused operations against the same ones written out, forward and backward."""

import itertools
import logging
import math
import multiprocessing
from contextlib import contextmanager

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hardbit.quantize.binary import binarize
from hardbit.quantize.quantizers import (
    ActivationNumerics,
    activation_numerics,
    activation_scale,
    quant_identity,
    quant_relu,
)
from hardbit.train.fused import NOTHING, RELU, Clip, Normalisation, activate, fake_quantize, library, operators
from hardbit.train.fused.operators import is_fused

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.skipif(not is_fused(torch.zeros(1), FLOAT32), reason="there is no C compiler")


def values(*shape, dtype=FLOAT32, seed=0):
    """Random numbers with ties, borders, zeros of both signs and what is not finite among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3
    odd = torch.tensor([0.125, -0.125, 0.375, 3.875, 3.8750002, 0.0, -0.0, 1e30, -1e30, math.inf, -math.inf, 1e-40])
    flat = x.flatten()
    flat[: min(len(flat), len(odd))] = odd[: len(flat)]
    return x.to(dtype)


def with_gradients(function, *tensors):
    """The result of `function`, and the gradients of its inner product with fixed random numbers."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    result = function(*leaves)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(9)).to(result.dtype)
    return result.detach(), torch.autograd.grad(result, leaves, upstream)


@contextmanager
def running(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def composed(monkeypatch, function, *tensors):
    with monkeypatch.context() as patch:
        patch.setattr(operators, "load_library", lambda: None)
        return with_gradients(function, *tensors)


def assert_same_bits(ours, theirs):
    for a, b in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("layer", [quant_relu(4), quant_relu(8, ceiling=6.0), quant_identity(3, signed=True)])
@pytest.mark.parametrize("scale", [0.25, 0.3])
def test_a_quantizer_has_the_bits_of_brevitas(layer, scale):
    activation_scale(layer).value.fill_(scale)
    clip = Clip.of(activation_numerics(layer), relu=isinstance(layer, qnn.QuantReLU))
    borders = torch.arange(-64, 64) / 2 * activation_scale(layer).value  # here a multiplication would not do
    x = torch.cat([values(2, 3, 7, 5).flatten(), borders])
    ours, (gradient,) = with_gradients(lambda x: activate(x, clip), x)
    theirs, (expected,) = with_gradients(layer, x)
    assert torch.equal(ours, theirs)
    # Brevitas multiplies the gradient by the scale and divides it again: exact where the scale is a power of two.
    assert torch.equal(gradient, expected) if scale == 0.25 else torch.allclose(gradient, expected)


def test_one_bit_with_a_sign_has_the_bits_of_the_binary_quantizer():
    clip = Clip.of(ActivationNumerics(0.5, 1, signed=True), relu=False)
    x = values(5, 31).clamp(-1e30, 1e30)  # it subtracts infinity from itself
    assert_same_bits(
        with_gradients(lambda x: activate(x, clip), x), with_gradients(lambda x: binarize(x, torch.tensor(0.5)), x)
    )


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtypes=st.sampled_from([(FLOAT32, FLOAT32), (FLOAT32, BFLOAT16), (BFLOAT16, BFLOAT16), (BFLOAT16, FLOAT32)]),
    relu=st.booleans(),
    seed=st.integers(0, 999),
)
def test_fake_quantization_is_the_composite_in_any_shape(shape, dtypes, relu, seed):
    x = values(*shape, dtype=dtypes[0], seed=seed)

    def quantized(x):
        return fake_quantize(x, 0.25, -8, 7, relu, dtype=dtypes[1])

    with pytest.MonkeyPatch.context() as patch:
        assert_same_bits(with_gradients(quantized, x), composed(patch, quantized, x))


@pytest.mark.parametrize("count", [1023, 1024, 1025, 131_072 * 3 + 1])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_ragged_ends_change_nothing(monkeypatch, count, threads):
    x = values(count)
    with running(threads):
        ours = with_gradients(lambda x: fake_quantize(x, 0.25, 0, 15, True), x)
    assert_same_bits(ours, composed(monkeypatch, lambda x: fake_quantize(x, 0.25, 0, 15, True), x))


def test_results_are_rounded_to_bfloat16_half_to_even():
    """Every upper half with ties, what is next to them, and not-a-numbers of every kind below it."""
    upper = torch.arange(0, 65536, 7, dtype=torch.int64)[:, None]
    lower = torch.tensor([0, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = (upper * 65536 + lower).flatten().sub(2**31).to(torch.int32).view(FLOAT32)
    x = torch.cat([x, torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(FLOAT32)])
    torch.testing.assert_close(activate(x, NOTHING, dtype=BFLOAT16), x.to(BFLOAT16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_not_a_number_stays_one(dtype):
    x = torch.full((40,), math.nan, dtype=dtype)
    assert fake_quantize(x, 0.25, 0, 15, True).isnan().all()


def test_layout_is_kept_and_holes_are_closed():
    x = values(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert fake_quantize(x, 0.25, 0, 15).is_contiguous(memory_format=torch.channels_last)
    holes = values(4, 6)[:, ::2]
    assert torch.equal(fake_quantize(holes, 0.25, 0, 15), fake_quantize(holes.contiguous(), 0.25, 0, 15))
    x, other = values(2, 3, 4, 5), values(2, 3, 4, 5, seed=1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(activate(x, RELU, other=other, then=RELU), F.relu(F.relu(x) + other))


CLIPS = [RELU, Clip(0.25, -8, 7, rounds=True)]


@pytest.mark.parametrize(("first", "then"), list(itertools.product(CLIPS, CLIPS)))
def test_the_sum_of_a_residual_block_has_the_bits_of_its_parts(monkeypatch, first, then):
    def block(x, other):
        return activate(x, first, other=other, then=then)

    pair = values(3, 5, 7), values(3, 5, 7, seed=1)
    assert_same_bits(with_gradients(block, *pair), composed(monkeypatch, block, *pair))


@pytest.mark.parametrize("shapes", [((4, 5, 6), (1, 5, 6)), ((1, 5, 6), (4, 5, 6))])
def test_a_sum_may_broadcast(shapes):
    pair = [values(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    ours, gradients = with_gradients(lambda x, other: activate(x, NOTHING, other=other, then=RELU), *pair)
    assert torch.equal(ours, F.relu(sum(pair)))
    assert [gradient.shape for gradient in gradients] == list(shapes)


SHAPES = [(6, 1, 5, 5), (6, 3, 4, 7), (4, 16, 8, 8), (5, 33, 3, 3), (7, 1025), (9, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_batch", [True, False])
@pytest.mark.parametrize("joins", [True, False])
def test_batch_norm_is_that_of_float64(shape, by_batch, joins):
    """Relative to the largest value; ReLUs whose borders random numbers do not meet keep both sides comparable."""
    torch.manual_seed(0)
    channels = shape[1]
    x, other = torch.randn(shape) * 2 + 1, torch.randn(shape)
    weight, bias, mean = torch.rand(channels) + 0.5, torch.randn(channels), torch.randn(channels)
    variance = torch.rand(channels) + 0.5
    tensors = (x, other, weight, bias) if joins else (x, weight, bias)

    def fused(x, *rest):
        *join, weight, bias = rest
        norm = Normalisation(weight, bias, mean.clone(), variance.clone(), 0.1, by_batch)
        return activate(x, RELU, normalisation=norm, other=join[0] if join else None, then=RELU)

    def plain(x, *rest):
        *join, weight, bias = rest
        statistics = (None, None) if by_batch else (mean.double(), variance.double())
        y = F.relu(F.batch_norm(x, *statistics, weight, bias, by_batch, 0.0, 0.1))
        return F.relu(y + join[0]) if join else y

    ours, ours_back = with_gradients(fused, *tensors) if by_batch else without_weights(fused, tensors)
    theirs, theirs_back = with_gradients(plain, *(t.double() for t in tensors))
    if not by_batch:
        theirs_back = theirs_back[: len(ours_back)]
    for a, b in zip((ours, *ours_back), (theirs, *theirs_back), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("threads", [1, 3])
def test_statistics_over_many_blocks_are_those_of_float64(threads):
    x = torch.randn(8, 10, 80, 80, generator=torch.Generator().manual_seed(0)) * 2 + 1
    norm = Normalisation(None, None, torch.zeros(10), torch.zeros(10), 0.1, by_batch=True)
    with running(threads):
        ours, (gradient,) = with_gradients(lambda x: activate(x, RELU, normalisation=norm), x)
    theirs, (expected,) = with_gradients(
        lambda x: F.relu(F.batch_norm(x, None, None, None, None, True, 0.0, 0.1)), x.double()
    )
    assert (ours - theirs).abs().max() < 1e-5
    assert (gradient - expected).abs().max() < 1e-5


def without_weights(function, tensors):
    """By running statistics only the operands have derivatives."""
    operands, rest = tensors[:-2], tensors[-2:]
    return with_gradients(lambda *leaves: function(*leaves, *rest), *operands)


def test_batch_norm_writes_the_statistics_of_the_batch_also_without_the_library(monkeypatch):
    x = torch.randn(6, 5, 4, 4) * 3 + 10
    expected = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    for switch_off in (False, True):
        if switch_off:
            monkeypatch.setattr(operators, "load_library", lambda: None)
        norm = Normalisation(None, None, torch.zeros(5), torch.zeros(5), 1e-5, by_batch=True)
        activate(x, RELU, normalisation=norm)
        assert torch.allclose(norm.mean.double(), expected[1], rtol=1e-5)
        assert torch.allclose(norm.variance.double(), expected[0], rtol=1e-4)


def test_without_rounding_the_derivative_is_the_true_one():
    smooth = Clip.of(ActivationNumerics(0.25, 4, signed=True), relu=False, smooth=True)
    x = torch.linspace(-3, 3, 57, dtype=FLOAT32).requires_grad_()
    result = activate(x, smooth)
    assert torch.equal(result, x.clamp(-2.0, 1.75))
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(gradient, ((x >= -2.0) & (x <= 1.75)).float())


@pytest.fixture
def loading_afresh():
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


def test_the_library_can_be_switched_off_in_the_environment(monkeypatch, loading_afresh):
    monkeypatch.setenv("HARDBIT_FUSED", "0")
    assert not is_fused(torch.zeros(1), FLOAT32)


def test_without_a_compiler_there_is_one_remark(monkeypatch, loading_afresh, caplog, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(fake_quantize(torch.tensor([0.3, 9.0]), 0.25, 0, 15), torch.tensor([0.25, 3.75]))
        assert not is_fused(torch.zeros(1), FLOAT32)
    assert [record.message for record in caplog.records] == [
        "training runs more slowly without the fused operations (there is no C compiler); HARDBIT_FUSED=0 silences this"
    ]


def test_a_compiler_that_fails_is_quoted(monkeypatch, loading_afresh, caplog, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || { echo out of ideas >&2; exit 1; }\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert library.load_library() is None
    assert "out of ideas" in caplog.text
    assert list((tmp_path / "cache" / "hardbit" / "fused").iterdir()) == []


def test_two_processes_may_build_at_once(monkeypatch, loading_afresh, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_FLAGS", ("-O0", *library._FLAGS[1:]))  # sooner
    fork = multiprocessing.get_context("fork")
    builders = [fork.Process(target=library.load_library) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(timeout=120)
    assert [builder.exitcode for builder in builders] == [0, 0]
    (built,) = (tmp_path / "hardbit" / "fused").iterdir()
    assert library.load_library() is not None
    assert built.suffix == ".so"
