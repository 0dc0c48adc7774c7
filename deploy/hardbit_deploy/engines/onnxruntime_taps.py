"""Layer taps on ONNX Runtime: integer codes of the engine, and of the canonical graph run operator by operator.

A tap makes a tensor of codes a further output of its graph: never a float tensor, for what reads those keeps the
runtime from fusing layers into integer kernels. `kernels_moved` proves that the same kernels run as without taps; but
for changes of memory layout, which every output that leaves the runtime may cost.

Codes are compared by name. The engine graph keeps the names of the canonical graph; signed codes are raised by 128 in
it, which is taken off again. Where codes are cut to fewer bits by a Clip, those behind the Clip are tapped.

Boundary: gives codes; what their differences mean is said in `hardbit_deploy.taps`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hardbit_deploy.bundle import Bundle
from hardbit_deploy.engines.executed_kernels import Kernel, profiled_kernels
from hardbit_deploy.engines.onnx_bytes import Node, further_outputs, read_nodes
from hardbit_deploy.engines.onnxruntime import default_batch, open_session, session_options
from hardbit_deploy.taps import Tap, TappedImages

__all__ = ["OnnxRuntimeTaps", "common_taps"]

# What only moves values between layouts of memory: the runtime adds it where a tensor leaves it.
_LAYOUT = re.compile(r"Transpose|ReorderInput|ReorderOutput")
_NHWC = "Nhwc"  # before the name of a kernel that works on another layout, and gives the same values
_TOKEN = re.compile(r"_token_\d+")  # the optimiser numbers what it writes
# Operators that a quantizer is named after the producer of: they have no codes of their own.
_PASSED = frozenset({"Relu", "Clip", "Identity", "Dropout"})


class OnnxRuntimeTaps:
    """The engine graph with the options of every engine, the canonical graph without any optimisation."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._engine_file = bundle.file(manifest.engine_file)
        canonical = bundle.file(manifest.canonical_file)
        self.taps = common_taps(_nodes(self._engine_file), _nodes(canonical))
        self._outputs = ["logits", *(tap.tensor for tap in self.taps)]
        self._appended = further_outputs(self._outputs[1:])
        plain = session_options(1)
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._canonical = open_session(canonical, plain, self._appended)
        self._engine = open_session(self._engine_file, session_options(1), self._appended)

    def images(self, images: NDArray[np.uint8]) -> TappedImages:
        """Run both graphs on a micro-batch uint8 (n, channels, height, width)."""
        manifest = self._bundle.manifest
        pixels = (images.astype(np.float32) - manifest.input_zero_point) * np.float32(manifest.input_scale)
        engine = self._engine.run(self._outputs, {"image": images})
        canonical = self._canonical.run(self._outputs, {"image": pixels})
        return TappedImages(
            engine[0],
            canonical[0],
            tuple(_in_codes_of(reference, codes) for codes, reference in zip(engine[1:], canonical[1:], strict=True)),
            tuple(codes.astype(np.int32) for codes in canonical[1:]),
        )

    @property
    def batch(self) -> int:
        """How many images to give at a time."""
        return default_batch(self._bundle.manifest.input_shape)

    def kernels_moved(self) -> tuple[str, ...]:
        """Kernels that run with taps and not without, or the other way round; changes of layout are not counted."""
        image = np.ascontiguousarray(self._bundle.images[:1])
        classes = self._bundle.manifest.classes
        without = _computing(profiled_kernels(self._engine_file, image, classes))
        tapped = _computing(profiled_kernels(self._engine_file, image, classes, self._appended, self._outputs))
        return tuple(sorted(f"{op} '{name}'" for op, name in ((without - tapped) + (tapped - without)).elements()))


def common_taps(engine: Sequence[Node], canonical: Sequence[Node]) -> tuple[Tap, ...]:
    """The activation codes that both graphs have, in the order of the canonical graph.

    Each is named by the node whose result was quantized, an activation function passed over: the layer, in the words
    of the network's source.
    """
    made = {name for node in engine for name in node.outputs}
    producers = {name: node for node in canonical for name in node.outputs}
    computed = _computed_from_image(canonical)
    quantized: dict[str, str] = {}  # codes -> what was quantized
    taps: dict[str, Tap] = {}
    for node in canonical:
        if node.op == "QuantizeLinear" and node.inputs[0] in computed:
            quantized[node.outputs[0]] = node.inputs[0]
        elif node.op == "Clip" and node.inputs[0] in quantized:
            quantized[node.outputs[0]] = quantized[node.inputs[0]]
            if node.outputs[0] in made:
                taps.pop(node.inputs[0], None)
        for tensor in node.outputs:
            if tensor in quantized and tensor in made:
                taps[tensor] = Tap(_layer(quantized[tensor], producers), tensor)
    return tuple(taps.values())


def _computed_from_image(nodes: Sequence[Node]) -> set[str]:
    """Tensors that depend on the image: weights may be quantized by nodes of their own."""
    found = {"image"}
    for node in nodes:
        if found.intersection(node.inputs):
            found.update(node.outputs)
    return found


def _layer(tensor: str, producers: dict[str, Node]) -> str:
    node = producers.get(tensor)
    while node is not None and node.op in _PASSED and node.inputs[0] in producers:
        node = producers[node.inputs[0]]
    return tensor if node is None else node.name or tensor


def _nodes(path: Path) -> tuple[Node, ...]:
    return read_nodes(path.read_bytes())


def _in_codes_of(reference: NDArray[np.generic], codes: NDArray[np.generic]) -> NDArray[np.int32]:
    """The engine's codes in the canonical graph's numbers: 128 less where it raised signed codes to unsigned ones."""
    raised = reference.dtype == np.int8 and codes.dtype == np.uint8
    return codes.astype(np.int32) - (128 if raised else 0)


def _computing(kernels: tuple[Kernel, ...]) -> Counter[tuple[str, str]]:
    """What was computed, by operator and node, in whatever layout."""
    return Counter(
        (kernel.op.removeprefix(_NHWC), _TOKEN.sub("", kernel.node))
        for kernel in kernels
        if not _LAYOUT.fullmatch(kernel.op)
    )
