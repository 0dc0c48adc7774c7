"""The words by which flags, sidecar files and modules of the import name the same things."""

from __future__ import annotations

from typing import Literal

__all__ = ["IMAGE", "LOGITS", "MINIMUM_OPSET", "OPSET", "Channels", "Layout", "Shape"]

Layout = Literal["auto", "nchw", "nhwc"]
Channels = Literal["rgb", "bgr"]
Shape = tuple[int, int, int]  # channels, height, width
IMAGE, LOGITS = "image", "logits"
MINIMUM_OPSET, OPSET = 7, 18
