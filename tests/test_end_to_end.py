"""From a recipe to a verdict through the real steps, by the command that a user gives, on a network of seconds."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import numpy as np
import pytest

from hardbit import cli
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.results import load_result, load_schema
from recipe_examples import RECIPE, write_bars

STEPS = ["train", "export", "lower", "differentiate", "transfer", "bundle", "check", "report"]


def hardbit(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "hardbit", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the recipe has been run to its end, and what the command printed."""
    folder = tmp_path_factory.mktemp("whole")
    write_bars(folder)
    return folder, hardbit(folder, "run", "recipe.toml", "--latency", "short")


def test_it_prints_a_line_for_every_step_and_ends_in_verdict_and_report(finished):
    folder, done = finished
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split() and line.split()[0] in STEPS] == STEPS
    verdict = load_result(folder / "runs" / "bars" / "check")["verdict"]
    assert verdict["name"] in ("PASS", "INCONCLUSIVE")
    assert done.returncode == verdict["exit_code"]
    assert verdict["name"] in done.stdout
    assert lines[-1] == "Report      runs/bars/report/report.html"
    assert "Traceback" not in done.stderr
    assert "training: there is no weights.safetensors" in done.stdout
    assert "256 images: bars.npz train" in done.stdout


def test_the_bundle_is_whole_and_says_where_it_comes_from(finished):
    folder, _ = finished
    bundle = load_bundle(folder / "runs" / "bars" / "bundle")
    assert bundle.images.shape == (64, 1, 28, 28)
    assert bundle.manifest.suite.steps == 3
    assert [node.name for node in bundle.manifest.integer_nodes] == ["conv1", "conv2", "fc1", "fc2"]
    provenance = bundle.manifest.provenance
    assert provenance["recipe"]["training"]["batch_size"] == 16
    assert provenance["training"]["source"] == "trained"
    assert provenance["training"]["epochs"] == 2
    jsonschema.validate(dict(bundle.manifest.document), load_schema("manifest-v1"))


def test_the_engine_is_integer_and_agrees_with_the_twin_on_every_image(finished):
    folder, _ = finished
    document = load_result(folder / "runs" / "bars" / "check")
    assert document["precision"]["status"] == "integer"
    assert all(node["integer"] for node in document["precision"]["nodes"])
    assert {row["name"]: row["label_flips"] for row in document["agreement"] if row["name"].startswith("twin")} == {
        "twin_clean": 0,
        "twin_adversarial": 0,
    }
    rates = {attack["name"]: attack["rate"] for attack in document["attacks"]}
    assert rates["worst_case"] <= rates["clean"]
    twin = np.load(folder / "runs" / "bars" / "export" / "twin_clean_logits.npy")
    labels = np.load(folder / "runs" / "bars" / "export" / "labels.npy")
    assert rates["clean"] == pytest.approx((twin.argmax(1) == labels).mean())


def test_given_again_it_does_nothing_and_says_the_same(finished):
    folder, first = finished
    again = hardbit(folder, "run", "recipe.toml", "--latency", "short", "--json")
    document = json.loads(again.stdout)
    assert [step["name"] for step in document["steps"]] == STEPS
    assert all(step["skipped"] for step in document["steps"])
    assert again.returncode == first.returncode == document["verdict"]["exit_code"]
    assert document["result"]["format"] == "hardbit-result"
    assert (folder / document["report"]).read_text().startswith("<!")


def test_the_resolved_recipe_runs_alike(finished):
    folder, _ = finished
    (folder / "resolved.toml").write_text((folder / "runs" / "bars" / "recipe.toml").read_text())
    again = hardbit(folder, "run", "resolved.toml", "--latency", "short", "--json")
    assert all(step["skipped"] for step in json.loads(again.stdout)["steps"])


def test_convert_gives_the_bundle_of_trained_weights(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    weights = "runs/bars/train/weights.safetensors"
    command = ["convert", weights, "--recipe", "recipe.toml", "--run-dir", "converted", "--out", "my.bundle", "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == "my.bundle"
    mine, original = load_bundle("my.bundle"), load_bundle("runs/bars/bundle")
    for name in ("engine.onnx", "canonical.onnx", "attack.onnx", "twin_clean_logits.npy"):
        assert mine.manifest.files[name] == original.manifest.files[name]
    assert mine.manifest.provenance["training"]["source"] == "given"


def test_convert_takes_what_the_same_recipe_was_trained_to(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    assert cli.main(["convert", "recipe.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == "runs/bars/bundle"


def test_convert_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(write_bars(tmp_path).parent)
    assert cli.main(["convert", "recipe.toml"]) == 64
    assert "is not trained: there is no weights.safetensors; 'hardbit train' trains it" in capsys.readouterr().err


def test_convert_to_a_target_that_the_recipe_is_not_for(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished[0])
    assert cli.main(["convert", "recipe.toml", "--target", "tensorrt"]) == 64
    assert capsys.readouterr().err.startswith(
        "--target: the recipe's network is trained for target 'onnxruntime', not 'tensorrt'; "
    )


def test_report_makes_the_same_page_from_the_result_alone(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    assert cli.main(["report", "runs/bars/check", "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "Report      page.html\n"
    assert (folder / "page.html").read_text() == (folder / "runs/bars/report/report.html").read_text()


def test_the_page_of_report_leaves_the_run_as_it_is(finished, tmp_path, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(folder / "runs/bars/check")]) == 0
    assert capsys.readouterr().out == "Report      report.html\n"
    monkeypatch.chdir(folder)
    cli.main(["run", "recipe.toml", "--latency", "short", "--json"])
    assert all(step["skipped"] for step in json.loads(capsys.readouterr().out)["steps"])


def test_a_verdict_that_is_not_published_is_shown_all_the_same(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    code = cli.main(
        ["run", "recipe.toml", "--latency", "off", "--images", "32", "--publish", "--run-dir", "unpublished"]
    )
    captured = capsys.readouterr()
    assert code == 64
    assert "worst case of all attacks" in captured.out
    assert "only a PASS is published" in captured.err or "leave out --images" in captured.err


def test_check_keeps_the_results_of_two_runs_apart(finished, tmp_path, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(folder / "runs/bars/bundle", tmp_path / name / "bundle")
        cli.main(["check", f"{name}/bundle", "--no-latency", "--images", "8", "--quiet"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()) == ["one-check", "two-check"]


def test_check_of_the_bundle_says_what_the_run_said(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    outputs = ["--json", "out.json", "--junit", "out.xml", "--html", "out.html"]
    code = cli.main(["check", "runs/bars/bundle", "--no-latency", *outputs])
    document, of_run = json.loads((folder / "out.json").read_text()), load_result(folder / "runs/bars/check")
    assert code == document["verdict"]["exit_code"]
    survivors = [[(attack["name"], attack["survivors"]) for attack in d["attacks"]] for d in (document, of_run)]
    assert survivors[0] == survivors[1]
    assert (folder / "out.xml").read_text().startswith("<?xml")
    assert (folder / "out.html").read_text().startswith("<!")
    assert document["verdict"]["name"] in capsys.readouterr().out


def test_bench_of_two_bundles_gives_a_table_a_page_and_a_picture(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    shutil.copytree("runs/bars/bundle", "other.bundle", dirs_exist_ok=True)
    outputs = ["--quick-latency", "--html", "bench.html", "--svg", "bench.svg"]
    assert cli.main(["bench", "runs/bars/bundle", "other.bundle", *outputs]) == 0
    assert "other.bundle" in capsys.readouterr().out
    assert (folder / "bench.html").read_text().startswith("<!")
    assert (folder / "bench.svg").read_text().startswith("<svg")


def heed_interrupts():
    """As a terminal starts it: a shell's background job ignores Ctrl-C, and so does whatever it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def training(folder, epochs):
    """`hardbit train` in a process of its own, once it has written its first checkpoint."""
    write_bars(folder, RECIPE.replace('epochs = 1\nadversary = "fgsm"', f'epochs = {epochs}\nadversary = "fgsm"'))
    process = subprocess.Popen(
        [sys.executable, "-m", "hardbit", "train", "recipe.toml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("runs/bars/.work/train/*/checkpoint.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_kill_minus_nine_in_training_resumes_to_the_same_weights(tmp_path, capsys, monkeypatch):
    process = training(tmp_path, epochs=30)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "runs/bars/train").exists()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "recipe.toml", "--out", "resumed.safetensors"]) == 0
    assert "epoch   1 " not in capsys.readouterr().out, "the first epoch was finished before the kill"
    assert cli.main(["train", "recipe.toml", "--run-dir", "whole", "--out", "whole.safetensors"]) == 0
    assert "epoch   1 " in capsys.readouterr().out

    def tensors(name):
        """Without the header, which also holds how long each epoch took."""
        content = (tmp_path / name).read_bytes()
        return content[8 + int.from_bytes(content[:8], "little") :]

    assert tensors("resumed.safetensors") == tensors("whole.safetensors")


def test_ctrl_c_in_training_is_one_sentence(tmp_path):
    process = training(tmp_path, epochs=100_000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from the last finished piece of work"
    assert "Traceback" not in errors
