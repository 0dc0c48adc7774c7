"""The harness' own proof, for a canonical graph: what ONNX Runtime executes of its engine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit_deploy.engines.base import PrecisionReport
from hardbit_deploy.engines.executed_kernels import judge_kernels, profiled_kernels
from hardbit_deploy.manifest import FloatNode, IntegerNode


def executed_precision_of(canonical: onnx.ModelProto, images: NDArray[np.uint8], classes: int = 10) -> PrecisionReport:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.onnx"
        path.write_bytes(lower(canonical, "onnxruntime").SerializeToString())
        kernels = profiled_kernels(path, np.ascontiguousarray(images[:1]), classes)
    integer = [IntegerNode(**node) for node in integer_nodes(canonical)]
    return judge_kernels(kernels, integer, [FloatNode(**node) for node in float_nodes(canonical)])
