"""What the tests of passes, targets and kernels share: lively networks, images, and ONNX Runtime as an executor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

WIDTHS = [8, 7, 4, 3, 2]


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def constants(model: onnx.ModelProto) -> dict[str, NDArray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_constants(model: onnx.ModelProto, values: dict[str, object]) -> onnx.ModelProto:
    """A copy of `model` with some initializers replaced, or added."""
    changed = copy_of(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in values]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    changed.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in values.items())
    return changed


def lively(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with biases of a few units: at 2 bits the examples' biases saturate whatever the image."""
    biases = {name: codes // 16 for name, codes in constants(model).items() if name.endswith("bias.codes")}
    return with_constants(model, biases)


def images_for(model: onnx.ModelProto, count: int = 24, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of grey with some noise, uint8 (count, channels, height, width) of the model's input shape."""
    channels, height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, channels, -(-height // 4), -(-width // 4)))
    blocks = np.kron(coarse, np.ones((1, 1, 4, 4), np.int64))[:, :, :height, :width]
    return np.clip(blocks + rng.integers(-20, 21, blocks.shape), 0, 255).astype(np.uint8)


def run(model: onnx.ModelProto, images: NDArray[np.uint8], *, optimised: bool = False) -> NDArray[np.float32]:
    """Logits by ONNX Runtime: float node by node, or optimised. Float models read (pixel - 128) / 256."""
    if model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT:
        return run_on(model, ((images.astype(np.float32) - 128) / 256).astype(np.float32), optimised=optimised)
    return run_on(model, images, optimised=optimised)


def run_on(model: onnx.ModelProto, tensor: NDArray, *, optimised: bool = False) -> NDArray[np.float32]:
    session = _session(model, optimised)
    return session.run(None, {model.graph.input[0].name: tensor})[0]


def executed(model: onnx.ModelProto) -> dict[str, str]:
    """Node name to operator in the graph that ONNX Runtime's optimiser makes, without its `_token_7` suffixes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        _session(model, True, path)
        optimised = onnx.load(path)
    return {node.name.rpartition("_token_")[0] or node.name: node.op_type for node in optimised.graph.node}


def _session(model: onnx.ModelProto, optimised: bool, path: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    if path is not None:
        options.optimized_model_filepath = str(path)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
