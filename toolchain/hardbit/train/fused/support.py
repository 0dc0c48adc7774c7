"""Which precisions pay on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["supports_bfloat16"]

_PROCESSOR = Path("/proc/cpuinfo")
_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def supports_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether `device` multiplies bfloat16 in hardware: AVX512-BF16, AMX or Arm's BF16 on a CPU.

    Without such instructions PyTorch emulates bfloat16, more slowly than float32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        lines = _PROCESSOR.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    words = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return bool(words & _FEATURES)
