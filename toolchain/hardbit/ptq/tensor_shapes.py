"""The shapes of a graph's tensors, by ONNX's own inference."""

from __future__ import annotations

import onnx

__all__ = ["Shape", "tensor_shapes"]

Shape = tuple[int | None, ...]  # None where a size is not fixed: the batch


def tensor_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every tensor whose rank is known, initializers included."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        if value.type.tensor_type.HasField("shape"):
            sizes = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)
    return shapes
