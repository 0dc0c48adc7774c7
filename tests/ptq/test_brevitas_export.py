"""A network of Brevitas, exported as QONNX, gives the logits of PyTorch and runs in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from executed_precision import executed_precision_of
from hardbit.ptq import canonical_from_quantized
from lowering_examples import images_for, run


class Network(nn.Module):
    """Widths of 3, 4 and 8 bits, scales by tensor and by channel, quantized biases."""

    def __init__(self) -> None:
        super().__init__()
        import brevitas.nn as qnn
        from brevitas.quant import Int32Bias

        self.pixels = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
        options = {"bias_quant": Int32Bias, "weight_scaling_per_output_channel": True, "return_quant_tensor": True}
        self.conv1 = qnn.QuantConv2d(3, 8, 3, stride=2, weight_bit_width=4, bias=True, **options)
        self.relu1 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.conv2 = qnn.QuantConv2d(8, 8, 3, weight_bit_width=3, bias=False)
        self.relu2 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc = qnn.QuantLinear(200, 10, bias=True, weight_bit_width=8, bias_quant=Int32Bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.conv1(self.pixels(images)))
        return self.fc(self.relu2(self.conv2(x)).flatten(1))


@pytest.mark.slow
def test_an_export_of_brevitas(tmp_path: Path) -> None:
    pytest.importorskip("onnxoptimizer", reason="Brevitas exports QONNX with onnxoptimizer")
    from brevitas.export import export_qonnx

    torch.manual_seed(0)
    network = Network().train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.rand(16, 3, 16, 16) - 0.5)
    network.eval()
    path = tmp_path / "brevitas.onnx"
    export_qonnx(
        network,
        args=torch.zeros(2, 3, 16, 16),
        export_path=str(path),
        input_names=["image"],
        output_names=["logits"],
        opset_version=18,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    source = onnx.load(path)
    assert "Quant" in {node.op_type for node in source.graph.node}
    canonical = canonical_from_quantized(source)
    images = images_for(canonical, 32)
    with torch.no_grad():
        logits = network((torch.from_numpy(images).float() - 128) / 256).numpy()
    np.testing.assert_allclose(run(canonical, images), logits, atol=1e-6)
    report = executed_precision_of(canonical, images)
    assert (report.status, len(report.nodes), report.problems) == ("integer", 3, ())
