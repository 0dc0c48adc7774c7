"""The engine computes what the integer reference says, bit for bit, on whole networks."""

from __future__ import annotations

import numpy as np
import pytest

from canonical_examples import plain_cnn, residual_net
from hardbit.targets import lower
from kernels.integer_interpreter import run_engine
from lowering_examples import WIDTHS, constants, images_for, lively, run, with_constants


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("example", [plain_cnn, residual_net])
@pytest.mark.parametrize("biases", ["as they are", "lively"])
def test_logits_are_bit_identical(example, bits: int, biases: str) -> None:
    canonical = example(bits) if biases == "as they are" else lively(example(bits))
    engine = lower(canonical, "onnxruntime")
    images = images_for(engine)

    logits = run_engine(engine, images)

    np.testing.assert_array_equal(logits, run(engine, images, optimised=True))
    if biases == "lively":  # the network does tell images apart
        assert len(np.unique(logits, axis=0)) > len(images) / 2


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("example", [plain_cnn, residual_net])
def test_logits_are_bit_identical_where_float32_is_not_exact(example, bits: int) -> None:
    """Scales with full significands, as foreign models have: rounding happens, and happens the same way."""
    canonical = lively(example(bits))
    rng = np.random.default_rng(3)
    jittered = {
        name: (scale * rng.uniform(0.8, 1.25, scale.shape)).astype(np.float32)
        for name, scale in constants(canonical).items()
        if name.endswith(".scale") and not name.startswith("input.") and "bias" not in name
    }
    canonical = with_constants(canonical, jittered)
    engine = lower(canonical, "onnxruntime")
    images = images_for(engine)

    np.testing.assert_array_equal(run_engine(engine, images), run(engine, images, optimised=True))


def test_one_unit_of_one_bias_is_seen() -> None:
    engine = lower(plain_cnn(4), "onnxruntime")
    images = images_for(engine, 4)
    name = "fc2.bias.codes"
    raised = with_constants(engine, {name: constants(engine)[name] + np.int32(1)})
    assert np.all(run_engine(raised, images) > run_engine(engine, images))
