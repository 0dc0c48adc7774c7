"""Black and white are the outermost codes of an image's quantizer, and not saturated: digits are made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hardbit.graph.gradient import build_attack_graph
from hardbit.importing import Preprocessing, import_network
from hardbit.ptq import quantize_network
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeGradient
from importing_examples import model_of, node, pixels, saved, weights


@pytest.mark.parametrize(
    "given",
    [
        Preprocessing(),
        Preprocessing(mean=(0.5,), std=(0.5,)),
        Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)),
    ],
)
def test_their_derivatives_are_those_of_all_other_pixels(given: Preprocessing, tmp_path: Path) -> None:
    """Of a linear network, whose derivative is the same everywhere: its weights over the deviation."""
    model = model_of(
        [node("Flatten", ["x"], "f"), node("Gemm", ["f", "v"], "y", transB=1)],
        {"v": weights(4, 48)},
        {"x": ["n", 3, 4, 4]},
    )
    network = import_network(saved(model, tmp_path), preprocessing=given)
    canonical = quantize_network(network.model, pixels(20, (3, 4, 4)))
    (tmp_path / "attack.onnx").write_bytes(build_attack_graph(canonical).SerializeToString())
    images = np.stack([np.full((3, 4, 4), level, np.uint8) for level in (0, 1, 128, 254, 255)])
    with OnnxRuntimeGradient(tmp_path / "attack.onnx", (3, 4, 4), 4) as gradient:
        found = gradient.pullback(images, np.tile(np.eye(4, dtype=np.float32)[1], (5, 1)))
    std = np.array(given.std or (1.0,)).reshape(-1, 1, 1)
    expected = weights(4, 48)[1].reshape(3, 4, 4) * (256 / 255) / std
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=0.01 * np.abs(expected).max())
