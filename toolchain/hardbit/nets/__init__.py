"""Plain PyTorch architectures. Nothing about quantization lives here: it is applied to them from outside.

A network takes centred pixels, float32 of shape (n, *input_shape) in [-0.5, 0.5), and gives logits (n, classes).
"""

from hardbit.nets.registry import build, names, register

__all__ = ["build", "names", "register"]
