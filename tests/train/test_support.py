"""Whether bfloat16 pays is read from what the processor says of itself."""

import pytest

from hardbit.train.fused import support, supports_bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\nmodel name\t: avx512_bf16\n", False),
        (None, False),
    ],
)
def test_bfloat16_pays_where_the_processor_multiplies_it(monkeypatch, tmp_path, text, expected):
    processor = tmp_path / "cpuinfo"
    if text is not None:
        processor.write_text(text)
    monkeypatch.setattr(support, "_PROCESSOR", processor)
    assert supports_bfloat16() is expected
