"""The page on ONNX files: its flags and keys are those of the code."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import tomllib

from hardbit.cli import convert
from hardbit.importing.request import TABLES, ConversionRequest, read_request

PAGE = (Path(__file__).parents[2] / "docs/onnx.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(--[\w-]+)[^|]*` \| `(\w+)\.(\w+)`[^|]*\| ([^|]+) \| ([^|]+) \|$", PAGE, re.M)


def flags() -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    convert.add_arguments(parser)
    return {flag for action in parser._actions for flag in action.option_strings}


def test_every_flag_of_onnx_files_and_every_key_has_its_row() -> None:
    others = {"--target", "--out", "--json", "--recipe", "--run-dir"}
    assert {flag for flag, *_ in ROWS} == flags() - others
    assert {(table, key) for _, table, key, *_ in ROWS} == {(t, key) for t, keys in TABLES.items() for key in keys}


def test_the_defaults_are_those_of_the_code() -> None:
    said = {key: default for _, _, key, _, default in ROWS}
    request = ConversionRequest(Path("x.onnx"), "mnist", "mnist")
    for key in ("calibration_count", "bits", "calibration", "norm", "eps_255", "sign", "split"):
        value = getattr(request, key)
        assert said[key] == (f"{value:g}" if isinstance(value, float) else str(value))
    assert said["count"].startswith("1,000")


def test_the_sidecar_on_the_page_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    assert tomllib.loads(text)
    (tmp_path / "net.toml").write_text(text)
    request = read_request(tmp_path / "net.onnx", {})
    assert (request.calibrate, request.eps_255, len(request.preprocessing.std)) == ("cifar10", 2.0, 3)
