"""The board's own environment: numpy, ONNX Runtime and hardbit's two board packages, nothing else; the same verdict.

The environment is kept under build/ and renewed when what it is made of changes, so only the first run is slow.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bundle_examples
from hardbit_deploy import results
from hardbit_deploy.bundle import Bundle
from hardbit_deploy.check import CheckOptions, check

ROOT = Path(__file__).parents[2]
PACKAGES = ("kernels", "deploy")


@pytest.fixture(scope="module")
def board() -> Path:
    """The Python of a fresh environment with the board's packages, installed from this tree as wheels."""
    requirements = [ROOT / "constraints.txt", *(ROOT / package / "pyproject.toml" for package in PACKAGES)]
    folder = ROOT / "build" / f"board-{_digest(requirements)}"
    python, stamp = folder / "bin" / "python", folder / "installed-sources"
    if not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), "numpy", "onnxruntime")
    sources = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*")) if _is_source(path)]
    if not stamp.exists() or stamp.read_text() != _digest(sources):
        stamp.unlink(missing_ok=True)
        _install_sources(python, folder / "sources")
        stamp.write_text(_digest(sources))
    return python


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "plain"
    return bundle_examples.build_bundle(path, count=100, gate={"robust": {"reference": 0.66}})


@pytest.mark.parametrize("module", ["torch", "brevitas", "onnx", "hardbit", "pydantic", "rich", "jinja2"])
def test_the_board_has_nothing_of_the_host(board: Path, module: str) -> None:
    finished = _call(board, "-c", f"import {module}")
    assert finished.returncode == 1
    assert f"No module named '{module}'" in finished.stderr


def test_the_board_gives_the_host_s_verdict_and_counts(board: Path, bundle: Bundle, tmp_path: Path) -> None:
    host = check(bundle.path, None, tmp_path / "host", CheckOptions(latency=None))
    program = board.parent / "hardbit-deploy"
    finished = _call(program, "check", bundle.path, "--quick-latency", "--out", tmp_path / "board")
    assert finished.returncode == host["verdict"]["exit_code"], finished.stderr
    deployed = results.load_result(tmp_path / "board")
    assert deployed["verdict"] == host["verdict"]
    for part in ("agreement", "eps_curve", "alarms", "gate"):
        assert deployed[part] == host[part]
    assert [(a["name"], a["survivors"]) for a in deployed["attacks"]] == [
        (a["name"], a["survivors"]) for a in host["attacks"]
    ]
    assert deployed["latency"]["protocol"] == "latency-v1-short"
    ours, theirs = (results.load_records(tmp_path / who, doc) for who, doc in (("host", host), ("board", deployed)))
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


def test_the_board_s_doctor_says_what_is_missing_for_the_rest(board: Path) -> None:
    finished = _call(board.parent / "hardbit-deploy", "doctor", "--json", "-")
    assert finished.returncode == 0, finished.stderr
    findings = {finding["name"]: finding for finding in json.loads(finished.stdout)["findings"]}
    assert findings["hardbit"]["status"] == "optional"
    assert findings["onnxruntime"]["status"] == "found"


def test_schemas_travel_with_the_package(board: Path) -> None:
    program = "from hardbit_deploy.results import load_schema; print(load_schema('result-v1')['title'])"
    assert _call(board, "-c", program).stdout.startswith("hardbit result")


def _is_source(path: Path) -> bool:
    made = {"build", "__pycache__"}
    return path.is_file() and not made & set(path.parts[len(ROOT.parts) :]) and ".egg-info" not in str(path)


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in paths:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _install_sources(python: Path, copy: Path) -> None:
    """Install from a copy: building in the tree would leave folders there, and take up what older builds left."""
    for package in PACKAGES:
        shutil.rmtree(copy / package, ignore_errors=True)
        ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    _run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", *(str(copy / p) for p in PACKAGES))


def _run(*command: str | Path) -> None:
    finished = _call(*command)
    assert finished.returncode == 0, f"{' '.join(map(str, command))}\n{finished.stdout}\n{finished.stderr}"


def _call(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run without this environment's packages in sight, from a folder that holds none."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
