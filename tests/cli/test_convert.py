"""`hardbit convert` of ONNX files: what it prints, what it refuses, and that its result can be checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from hardbit.cli import main
from hardbit_deploy.bundle import load_bundle
from importing_examples import saved
from onnx_files import quarters, write_blobs
from tensorrt_examples import run_engine


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `net.onnx` and `blobs.npz`."""
    write_blobs(tmp_path)
    saved(quarters(), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_file_to_a_verdict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "net.onnx",
        "--target",
        "onnxruntime",
        "--calibrate",
        "npz:blobs.npz",
        "--suite",
        "quick",
        "--eps",
        "4",
    ]
    assert main(["convert", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Float       60 of 60 right: 100.0%" in lines
    assert "Attacker    linf, eps 4/255" in lines
    assert lines[-1] == "Bundle      net.bundle"
    assert main(["check", "net.bundle", "--no-latency", "--images", "20"]) in (0, 75)


def test_the_same_as_one_object(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "net.onnx",
        "--calibrate",
        "npz:blobs.npz",
        "--suite",
        "quick",
        "--out",
        "b",
        "--count",
        "20",
        "--json",
    ]
    assert main(["convert", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["bundle"], document["images"], document["float_right"]) == ("b", 20, 20)
    assert load_bundle("b").manifest_sha256 == document["manifest_sha256"]


def test_the_sidecar_beside_the_file_is_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "net.toml").write_text(
        '[data]\ncalibrate = "npz:blobs.npz"\ncount = 12\n[suite]\nname = "quick"\n[network]\nname = "four"\n'
    )
    (place / "names.txt").write_text("a\nb\n\nc\nd\n")
    assert main(["convert", "net.onnx", "--classes-file", "names.txt", "--norm", "l2", "--eps", "64"]) == 0
    manifest = load_bundle("four.bundle").manifest
    assert (manifest.image_count, manifest.class_names) == (12, ("a", "b", "c", "d"))
    assert (manifest.threat_model.norm, manifest.threat_model.eps_255) == ("l2", 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["net.onnx"], "--calibrate"),
        (["other.onnx", "--calibrate", "mnist"], "no such file"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--recipe", "r.toml"], "--recipe says nothing"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--layout", "nhwc"], "[1, 3, 8, 8]"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--std", "0"], "positive"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--bits", "9"], "9 bits"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--target", "abacus"], "'abacus'"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--suite", "endless"], "'endless'"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--classes-file", "none.txt"], "no such file"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--count", "0"], "count is 0"),
        (["net.onnx", "--calibrate", "shapes"], "no data set 'shapes'"),
        (["recipe.toml", "--eps", "2"], "--eps says nothing"),
        (["net.pb"], "neither a recipe"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--scale", "x"], "no numbers"),
        (["net.onnx", "--calibrate", "npz:blobs.npz", "--image-shape", "3,8"], "CHANNELS,HEIGHT,WIDTH"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *arguments]) == 64
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("bits", ["8", "4"])
def test_a_file_becomes_a_bundle_for_tensorrt(place: Path, bits: str) -> None:
    given = ["net.onnx", "--target", "tensorrt", "--calibrate", "npz:blobs.npz", "--suite", "quick", "--bits", bits]
    assert main(["convert", *given, "--out", "b"]) == 0
    bundle = load_bundle("b")
    assert bundle.manifest.target == "tensorrt"
    engine, attack = (onnx.load(bundle.path / f"{name}.onnx") for name in ("engine", "attack"))
    assert {model.graph.input[0].type.tensor_type.elem_type for model in (engine, attack)} == {onnx.TensorProto.INT8}
    said = np.load(bundle.path / "twin_clean_logits.npy")
    np.testing.assert_array_equal(run_engine(engine, np.array(bundle.images)), said)
    assert len(bundle.manifest.integer_nodes) > 0
