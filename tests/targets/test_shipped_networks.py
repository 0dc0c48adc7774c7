"""The networks that hardbit ships, as its exporter writes them, in integers and to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from hardbit import nets
from hardbit.graph.export import export_canonical
from hardbit.targets import integer_nodes, lower
from kernels.integer_interpreter import run_engine
from lowering_examples import executed, run
from network_examples import WITH_FLOAT_PARTS, input_shape, tiny_twin
from quantized_examples import random_images


@pytest.mark.parametrize("bits", [4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (8, 7, 3, 2))])
@pytest.mark.parametrize("architecture", [name for name in nets.names() if name not in WITH_FLOAT_PARTS])
def test_every_layer_is_integer_and_the_engine_has_the_bits_of_float_and_of_the_reference(
    architecture: str, bits: int
) -> None:
    shape = input_shape(architecture)
    canonical = export_canonical(tiny_twin(architecture, bits), shape)
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
