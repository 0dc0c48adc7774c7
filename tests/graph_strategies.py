"""Random small canonical graphs for property tests of passes and lowering."""

from __future__ import annotations

import onnx
from hypothesis import strategies as st

from canonical_examples import INPUT_SCALE, CanonicalBuilder
from lowering_examples import WIDTHS, lively


@st.composite
def small_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Two convolutions with every choice that lowering looks at: widths, signs, groups, pooling, residual, head."""
    builder = CanonicalBuilder(draw(st.integers(0, 10_000)))
    bits, channels, image_side = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from([2, 4])), draw(st.integers(5, 8))
    scale = 2.0 ** -draw(st.integers(2, 5))
    x = builder.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    x, side = _convolution(draw, builder, x, "conv1", (channels, 1), INPUT_SCALE, 8, image_side)
    x, signed = _activation(draw, builder, x, "act1", scale, bits)
    if draw(st.booleans()) and side >= 3:
        pads = draw(st.sampled_from([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]))
        x = builder.node("MaxPool", [x], "pool.out", "pool", kernel_shape=[2, 2], strides=[2, 2], pads=pads)
        side = _pooled(side, pads)
    if draw(st.booleans()):
        y = builder.conv(x, "conv2", (channels, channels, 3, 3), scale, bits, strides=[1, 1], pads=[1, 1, 1, 1])
        y = builder.quantize(y, "branch", scale * 2, bits, signed=True)
        operands = [y, x] if draw(st.booleans()) else [x, y]
        x = builder.node("Add", operands, "add.out", "add")
    else:
        x, side = _convolution(draw, builder, x, "conv2", (channels, channels), scale, bits, side)
    x, signed = _activation(draw, builder, x, "act2", scale, bits)
    if draw(st.booleans()):
        x = builder.node("GlobalAveragePool", [x], "mean.out", "mean")
        x = builder.quantize(x, "mean.act", scale / 4, 8, signed=signed)
        scale, side = scale / 4, 1
    x = builder.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    x = builder.gemm(x, "fc", (3, channels * side * side), scale, draw(st.sampled_from([bits, 8])))
    return lively(builder.model(x, (1, image_side, image_side), 3))


def _convolution(
    draw: st.DrawFn,
    builder: CanonicalBuilder,
    x: str,
    name: str,
    channels: tuple[int, int],
    scale: float,
    bits: int,
    side: int,
) -> tuple[str, int]:
    outputs, inputs = channels
    kernel, stride, pad = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2])), draw(st.sampled_from([0, 1]))
    kernel = kernel if side + 2 * pad >= kernel else 1
    group = draw(st.sampled_from([1, inputs])) if inputs == outputs else 1
    x = builder.conv(
        x,
        name,
        (outputs, inputs // group, kernel, kernel),
        scale,
        bits,
        strides=[stride, stride],
        pads=[pad] * 4,
        group=group,
    )
    return x, (side + 2 * pad - kernel) // stride + 1


def _activation(
    draw: st.DrawFn, builder: CanonicalBuilder, x: str, name: str, scale: float, bits: int
) -> tuple[str, bool]:
    """ReLU and unsigned codes, or signed codes."""
    signed = draw(st.booleans())
    if not signed:
        x = builder.node("Relu", [x], f"{name}.relu.out", f"{name}.relu")
    return builder.quantize(x, name, scale, bits, signed=signed), signed


def _pooled(side: int, pads: list[int]) -> int:
    return (side + pads[0] + pads[2] - 2) // 2 + 1
