"""Property tests draw the same examples in every run, so that a red build is a change's doing and not chance; tests
that need TensorRT skip where it is missing.

`HYPOTHESIS_PROFILE=explore pytest` draws new ones each time: for looking for what the fixed ones miss.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what builds with TensorRT where there is none, and say so."""
    if find_spec("tensorrt_rtx") is None:
        for item in items:
            if item.get_closest_marker("tensorrt") is not None:
                item.add_marker(pytest.mark.skip(reason="tensorrt_rtx is not installed: pip install tensorrt-rtx"))
