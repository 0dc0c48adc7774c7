"""The page on TensorRT: its example runs, and what it says of targets, GPUs and networks is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

from hardbit import targets
from hardbit.quantize.profiles import PROFILES
from hardbit_deploy.gpu_support import RTX_SUPPORT
from tensorrt_examples import symmetric_cnn

PAGE = (Path(__file__).parents[2] / "docs/tensorrt.md").read_text(encoding="utf-8")


def test_its_targets_and_profiles_exist() -> None:
    named = set(re.findall(r'"(tensorrt[\w-]*)"', PAGE))
    assert named <= {*targets.names(), *PROFILES}
    assert {"tensorrt", "tensorrt_rtx", "tensorrt-signed"} <= named


def test_it_lists_the_gpus_that_the_code_lists() -> None:
    capabilities = re.findall(r"\d+\.\w+", RTX_SUPPORT.partition(";")[0])
    assert all(capability in PAGE for capability in capabilities)
    assert "no Jetson, no 9.0, no plugins" in PAGE


@pytest.mark.tensorrt
def test_its_example_prints_layers_of_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "BUNDLE").mkdir()
    onnx.save(symmetric_cnn(4), tmp_path / "BUNDLE/canonical.onnx")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "docs/tensorrt.md", "exec"), {})  # noqa: S102 - the page of this very repository
    printed = capsys.readouterr().out
    assert printed.count("('int8', 'int8')") == 4
