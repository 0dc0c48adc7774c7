"""`hardbit doctor`: what is here, what is not, and what would bring it."""

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

from hardbit import cli, diagnosis
from hardbit.data.load import PUBLISHED


def findings(capsys):
    code = cli.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    return code, document["ready"], {finding["name"]: finding for finding in document["findings"]}


def test_a_machine_with_everything_it_needs(capsys):
    code, ready, found = findings(capsys)
    assert (code, ready) == (0, True)
    assert found["torch"]["status"] == "found"
    assert set(found) >= {
        "python",
        "onnxruntime",
        "processor",
        "timing",
        "fashion-mnist",
        "chromium",
        "nvcc",
        "tensorrt",
    }


def test_a_missing_package_is_named_with_the_command_that_brings_it(capsys, monkeypatch):
    version = diagnosis.version

    def without_brevitas(name):
        if name == "brevitas":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(diagnosis, "version", without_brevitas)
    code, ready, found = findings(capsys)
    assert (code, ready) == (1, False)
    assert found["brevitas"]["status"] == "missing"
    assert found["brevitas"]["remedy"].startswith("pip install 'brevitas>=")
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "-> pip install 'brevitas" in text
    assert text.endswith("not ready for 'hardbit run'\n")


def test_tools_and_data_that_are_absent_are_optional(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(diagnosis, "_NVCC", tmp_path / "nvcc")
    monkeypatch.delenv("HARDBIT_DATA", raising=False)
    for name, data_set in PUBLISHED.items():
        monkeypatch.setitem(PUBLISHED, name, replace(data_set, system_folder=None))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path)
    code, _, found = findings(capsys)
    assert code == 0
    assert {name for name, finding in found.items() if finding["status"] == "optional"} >= {
        "mnist",
        "fashion-mnist",
        "cifar10",
        "gtsrb",
        "chromium",
        "nvcc",
    }
    assert "apt-get install dataset-fashion-mnist" in found["fashion-mnist"]["remedy"]
    assert found["fashion-mnist"]["detail"].startswith("for hardbit train; the demo carries its own")


def test_a_wrong_data_folder_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path / "nowhere"))
    _, _, found = findings(capsys)
    assert "this folder does not exist" in found["fashion-mnist"]["detail"]
