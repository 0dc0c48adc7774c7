"""What a model's tensors are on given images: it is run, unoptimised, with every tensor as an output."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.importing.stand_ins import without_qonnx

__all__ = ["ProbeError", "blamed_node", "open_model", "random_pixels", "tensors_of"]

_SEED = 20150325
_BLAMED = re.compile(
    r"[Nn]ame:\s?'([^']*)'|[Nn]ode \(([^()\"]*)\)|node with name '([^']*)'|In Node, \(\"([^\"]*)\"|Node:(\S+)"
)


class ProbeError(Exception):
    """The runtime's own words why a model could not be run."""


def random_pixels(count: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """`count` images of noise, the same whenever they are asked for."""
    return np.random.default_rng(_SEED).integers(0, 256, (count, *shape), np.uint8)


def open_model(model: onnx.ModelProto) -> Any:
    """An onnxruntime.InferenceSession without optimisations. Raises ProbeError where the runtime refuses the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a class of its own for every status code
        raise ProbeError(str(error).splitlines()[0]) from None


def tensors_of(model: onnx.ModelProto, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every tensor that a node makes, by name, for the inputs `feed`.

    QONNX operators, which the runtime does not know, pass their input on: what is asked for are shapes, and they keep
    them. Raises ProbeError where the model does not run.
    """
    watched = without_qonnx(model)
    del watched.graph.value_info[:]
    del watched.graph.output[:]
    names = [name for node in watched.graph.node for name in node.output if name]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_model(watched)
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:  # as above
        raise ProbeError(str(error).splitlines()[0]) from None


def blamed_node(error: ProbeError) -> str:
    """The name of the node that the runtime's words accuse, or ""."""
    match = _BLAMED.search(str(error))
    return next((name for name in match.groups() if name), "") if match else ""
