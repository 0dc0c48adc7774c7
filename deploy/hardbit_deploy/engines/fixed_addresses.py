"""Start processes whose memory lies at the same addresses every time.

Compilers that keep things in the order of their addresses number their results by chance: TensorRT for RTX gives other
names inside a plan from one build to the next, as long as Linux draws addresses at random.

Boundary: asks the system; where it does not let processes have that (in some containers), they start as always.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

__all__ = ["fixed_addresses"]

_ASK = 0xFFFFFFFF
_ADDR_NO_RANDOMIZE = 0x0040000


@contextlib.contextmanager
def fixed_addresses() -> Iterator[bool]:
    """For processes that this thread starts meanwhile; yields whether the system lets them have it (see
    `man 2 personality`). The calling process itself keeps its addresses.
    """
    try:
        personality = ctypes.CDLL(None).personality
    except (AttributeError, OSError, TypeError):  # not Linux
        yield False
        return
    personality.argtypes, personality.restype = [ctypes.c_ulong], ctypes.c_int
    before = personality(_ASK)
    fixed = before != -1 and personality(before | _ADDR_NO_RANDOMIZE) != -1
    try:
        yield fixed
    finally:
        if fixed:
            personality(before)
