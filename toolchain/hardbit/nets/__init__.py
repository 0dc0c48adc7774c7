"""Plain PyTorch architectures. Nothing about quantization lives here: it is applied to them from outside.

A network takes centred pixels, float32 of shape (n, *input_shape) in [-0.5, 0.5), and gives logits (n, classes).
"""

from hardbit.nets.registry import build, default_input_shape, names, register

__all__ = ["build", "default_input_shape", "names", "register"]
