"""IDX: what the format says, and refusal of everything else."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hardbit.data.idx import parse_idx
from hardbit_deploy.errors import HardbitError


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    """An IDX file written from its description, independently of the parser."""
    return bytes([0, 0, kind, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape) + array.tobytes()


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)))
def test_what_is_written_is_read(array):
    parsed = parse_idx(idx_bytes(array), "here")
    assert parsed.shape == array.shape
    assert np.array_equal(parsed, array)


@given(st.integers(1, 4 + 12 + 24))
def test_a_truncated_file_is_refused_by_name(kept):
    content = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))[: kept - 1]
    with pytest.raises(HardbitError, match=r"^broken\.idx: "):
        parse_idx(content, "broken.idx")


@given(st.binary(max_size=200))
def test_garbage_is_an_array_of_its_declared_size_or_a_user_error(content):
    try:
        array = parse_idx(content, "garbage")
    except HardbitError:
        return
    assert array.size == len(content) - 4 - 4 * content[3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08\x00", "does not begin with two zero bytes"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", r"numbers of type 0x0d"),
        (b"\x00\x00\x08\x00", "declares 0 dimensions"),
        (b"\x00\x00\x08\x09" + bytes(36), "declares 9 dimensions"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "and holds 0"),
        (idx_bytes(np.zeros(3, np.uint8)) + b"x", "declares 3 bytes of shape .3,. and holds 4"),
    ],
)
def test_each_defect_is_named(content, message):
    with pytest.raises(HardbitError, match=message):
        parse_idx(content, "file")
