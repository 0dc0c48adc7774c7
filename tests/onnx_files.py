"""Two image sets and trained-looking networks for tests that convert an ONNX file to a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from importing_examples import CLASSES, Array, model_of, node, weights

SIZE = 8


def write_blobs(folder: Path, train: int = 64, test: int = 60) -> Path:
    """An npz of images with a bright quarter, which is the class."""
    generator = np.random.default_rng(11)
    arrays: dict[str, Array] = {}
    for split, count in (("train", train), ("test", test)):
        labels = generator.integers(0, CLASSES, count)
        images = generator.integers(0, 90, (count, SIZE, SIZE, 3))
        for image, label in zip(images, labels, strict=True):
            top, left = divmod(int(label), 2)
            image[4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 60
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    path = folder / "blobs.npz"
    np.savez(path, **arrays)
    return path


def quarters(batch: int | str = 1, *, binary: bool = False) -> onnx.ModelProto:
    """A network that sees which quarter is bright, with BatchNormalization and a Softmax; of opset 11."""
    kernel = np.zeros((6, 3, 1, 1), np.float32)
    kernel[:3] = np.abs(weights(3, 3, 1, 1)) + 0.5
    kernel[3:] = -kernel[:3]
    read = np.zeros((CLASSES, 6, 2, 2), np.float32)
    for label in range(CLASSES):
        top, left = divmod(label, 2)
        read[label, :3] = -0.1
        read[label, :3, top, left] = 1
    first = [node("Conv", ["x", "w"], "h"), node("BatchNormalization", ["h", "s", "b", "m", "v"], "n")]
    if binary:
        activation = [
            node("Sign", ["n"], "s1"),
            node("Add", ["s1", "tenth"], "s2"),
            node("Sign", ["s2"], "r"),
        ]
    else:
        activation = [node("Relu", ["n"], "r")]
    nodes = [
        *first,
        *activation,
        node("AveragePool", ["r"], "p", kernel_shape=[4, 4], strides=[4, 4]),
        node("Reshape", ["p", "flat"], "f"),
        node("Gemm", ["f", "u", "c"], "z", transB=1),
        node("Softmax", ["z"], "y"),
    ]
    statistics = {
        "s": np.full(6, 2.0),
        "b": np.zeros(6),
        "m": np.concatenate([kernel[:3].sum((1, 2, 3)) * 0.26, -kernel[:3].sum((1, 2, 3)) * 0.26]),
        "v": np.full(6, 0.05),
        "tenth": np.array(0.1),
        "c": np.zeros(CLASSES),
    }
    constants: dict[str, Array] = {name: value.astype(np.float32) for name, value in statistics.items()}
    constants |= {"w": kernel, "u": read.reshape(CLASSES, -1), "flat": np.array([1, 24])}
    return model_of(nodes, constants, {"x": [batch, 3, SIZE, SIZE]}, opset=11)


def attention(batch: int | str = "n") -> onnx.ModelProto:
    """Patches, LayerNormalization, attention of two heads with a class token, GELU: as exporters write them."""
    width, heads = 8, 2
    nodes = [
        node("Conv", ["x", "patch"], "p", strides=[4, 4]),
        node("Reshape", ["p", "map"], "m"),
        node("Transpose", ["m"], "t", perm=[0, 2, 1]),
        node("Shape", ["x"], "size"),
        node("Slice", ["size", "zero", "one"], "batch"),
        node("Concat", ["batch", "rest"], "target", axis=0),
        node("Expand", ["token", "target"], "cls"),
        node("Concat", ["cls", "t"], "c", axis=1),
        node("Add", ["c", "places"], "e"),
        node("LayerNormalization", ["e", "gain", "offset"], "l", axis=-1),
        node("MatMul", ["l", "qkv"], "j"),
        node("Split", ["j", "thirds"], "q", axis=-1),
        *_heads("q", "qh", [0, 2, 1, 3]),
        *_heads("k", "kh", [0, 2, 3, 1]),
        *_heads("v", "vh", [0, 2, 1, 3]),
        node("MatMul", ["qh", "kh"], "scores"),
        node("Div", ["scores", "root"], "scaled"),
        node("Softmax", ["scaled"], "shares", axis=-1),
        node("MatMul", ["shares", "vh"], "mixed"),
        node("Transpose", ["mixed"], "back", perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "joined"], "a"),
        node("Add", ["a", "e"], "g"),
        node("MatMul", ["g", "up"], "u"),
        node("Div", ["u", "sqrt2"], "u1"),
        node("Erf", ["u1"], "u2"),
        node("Add", ["u2", "unit"], "u3"),
        node("Mul", ["u", "u3"], "u4"),
        node("Mul", ["u4", "half"], "u5"),
        node("Gather", ["u5", "first"], "o", axis=1),
        node("Gemm", ["o", "head", "bias"], "y", transB=1),
    ]
    nodes[11].output.extend(["k", "v"])
    constants: dict[str, Array] = {
        "patch": weights(width, 3, 4, 4),
        "map": np.array([0, width, -1]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "rest": np.array([1, width]),
        "token": weights(1, 1, width),
        "places": weights(1, 5, width, seed=1),
        "gain": np.ones(width, np.float32),
        "offset": np.zeros(width, np.float32),
        "qkv": weights(width, 3 * width, seed=2),
        "thirds": np.array([width] * 3),
        "split": np.array([0, 0, heads, width // heads]),
        "root": np.float32((width / heads) ** 0.5),
        "joined": np.array([0, 0, width]),
        "up": weights(width, width, seed=3),
        "sqrt2": np.float32(2**0.5),
        "unit": np.float32(1),
        "half": np.float32(0.5),
        "first": np.array(0),
        "head": weights(CLASSES, width, seed=4),
        "bias": weights(CLASSES, seed=5),
    }
    return model_of(nodes, constants, {"x": [batch, 3, SIZE, SIZE]}, opset=17)


def _heads(source: str, target: str, order: list[int]) -> list[onnx.NodeProto]:
    return [
        node("Reshape", [source, "split"], f"{target}.split"),
        node("Transpose", [f"{target}.split"], target, perm=order),
    ]
