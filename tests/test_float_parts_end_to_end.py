"""A vision transformer from recipe to verdict: integer layers proved, float parts listed with reasons."""

import json

import pytest

from hardbit import cli
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.results import load_result
from recipe_examples import RECIPE, write_bars

VIT = """\
architecture = "vit"
width = 16
depth = 1
heads = 2
patch = 7
input_shape = [1, 28, 28]
"""


@pytest.mark.timeout(200)
def test_a_vision_transformer_reaches_a_verdict_and_its_float_parts_travel_along(tmp_path, monkeypatch, capsys):
    recipe = RECIPE.replace('architecture = "lenet"\nchannels = [4, 4]\nhidden = 8\n', VIT)
    monkeypatch.chdir(write_bars(tmp_path, recipe).parent)
    code = cli.main(["run", "recipe.toml", "--latency", "short", "--json"])
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert verdict["name"] in ("PASS", "INCONCLUSIVE")
    assert verdict["exit_code"] == code

    manifest = load_bundle("runs/bars/bundle").manifest
    assert len(manifest.integer_nodes) == 8
    reasons = {node.name: node.reason for node in manifest.float_nodes}
    assert reasons["softmax"].startswith("exponentials")
    assert reasons["blocks.0.norm1"].startswith("every row is divided by")

    precision = load_result("runs/bars/check")["precision"]
    assert precision["status"] == "integer"
    assert all(node["integer"] for node in precision["nodes"])
    assert [line.split()[0].split("/")[0] for line in precision["declared_float"]] == ["matmul", "matmul_1"]
