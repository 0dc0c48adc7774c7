"""The networks that hardbit ships, as its exporter writes them, in integers and to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from hardbit import nets
from hardbit.graph.export import export_canonical
from hardbit.quantize import freeze
from hardbit.targets import integer_nodes, lower
from kernels.integer_interpreter import run_engine
from lowering_examples import executed, run
from quantized_examples import calibrated, random_images


@pytest.mark.parametrize("bits", [4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (8, 7, 3))])
@pytest.mark.parametrize("architecture", nets.names())
def test_every_layer_is_integer_and_the_engine_has_the_bits_of_float_and_of_the_reference(
    architecture: str, bits: int
) -> None:
    shape = nets.build(architecture).input_shape
    canonical = export_canonical(freeze(calibrated(architecture, bits)), shape)
    changes: list[str] = []
    engine = lower(canonical, "onnxruntime", changes.append)
    assert changes == []

    ran = executed(engine)
    declared = integer_nodes(canonical)
    assert len(declared) == sum(node.op_type in ("Conv", "Gemm") for node in canonical.graph.node)
    assert {ran[node["name"]] for node in declared} == {"QLinearConv", "QGemm"}

    images = random_images(16, shape)
    logits = run(engine, images, optimised=True)
    np.testing.assert_array_equal(logits, run(canonical, images))
    np.testing.assert_array_equal(logits[:4], run_engine(engine, images[:4]))
    assert len(np.unique(logits, axis=0)) > 1
