"""The pipeline's promises about steps: order, skipping, going on after a kill, one run a folder.

Steps are stand-ins here that leave small files; what the real ones do is in tests/steps.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest

from hardbit import pipeline
from hardbit.recipe import parse_recipe
from hardbit.steps.step import Step
from hardbit_deploy.errors import HardbitError
from recipe_examples import RECIPE


class Steps:
    """Three stand-in steps, a -> b -> c; c also reads a. Counts how often each ran."""

    def __init__(self, monkeypatch):
        self.ran: list[str] = []
        self.body = {name: lambda work: None for name in "abc"}
        self.libraries = dict.fromkeys("abc", ())
        steps = (
            Step("a", "first", (), (), lambda recipe, options: {"eps": recipe.threat_model.eps_255}, self.run("a")),
            Step("b", "second", ("a",), (), lambda recipe, options: {}, self.run("b")),
            Step("c", "third", ("a", "b"), (), lambda recipe, options: {"gate": recipe.gate.document()}, self.run("c")),
        )
        self.install(monkeypatch, steps)

    def install(self, monkeypatch, steps):
        self.steps = steps
        monkeypatch.setattr(pipeline, "STEPS", steps)
        monkeypatch.setattr(pipeline, "step_names", lambda: [step.name for step in steps])

    def run(self, name):
        def body(work):
            self.ran.append(name)
            self.body[name](work)
            text = "".join((folder / "out.txt").read_text() for folder in work.inputs.values())
            (work.folder / "out.txt").write_text(text + f"{name}{work.recipe.threat_model.eps_255:g} ")
            return f"{name} is done"

        return body


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


@pytest.fixture
def recipe():
    return parse_recipe(RECIPE)


def with_eps(recipe, eps):
    return recipe.model_copy(update={"threat_model": recipe.threat_model.model_copy(update={"eps_255": eps})})


def with_gate(recipe, reference):
    return parse_recipe(RECIPE + f"[gate.clean]\nreference = {reference}\n")


def test_steps_run_in_order_from_what_the_others_left(steps, recipe, tmp_path):
    result = pipeline.run(recipe, tmp_path / "run")
    assert steps.ran == ["a", "b", "c"]
    assert (result.folder("c") / "out.txt").read_text() == "a8 a8 b8 c8 "
    assert [(step.name, step.note, step.skipped) for step in result.steps] == [
        ("a", "a is done", False),
        ("b", "b is done", False),
        ("c", "c is done", False),
    ]


def test_the_resolved_recipe_lies_beside_the_results(steps, recipe, tmp_path):
    pipeline.run(recipe, tmp_path)
    assert parse_recipe((tmp_path / "recipe.toml").read_text()) == recipe


def test_nothing_runs_twice(steps, recipe, tmp_path):
    first = pipeline.run(recipe, tmp_path)
    second = pipeline.run(recipe, tmp_path)
    assert steps.ran == ["a", "b", "c"]
    assert [replace(step, skipped=False) for step in second.steps] == list(first.steps)
    assert all(step.skipped for step in second.steps)


def test_a_change_runs_what_depends_on_it(steps, recipe, tmp_path):
    pipeline.run(recipe, tmp_path)
    steps.ran.clear()
    pipeline.run(with_gate(recipe, 0.5), tmp_path)
    assert steps.ran == ["c"]
    steps.ran.clear()
    pipeline.run(with_eps(recipe, 4.0), tmp_path)
    assert steps.ran == ["a", "b", "c"]


def test_a_step_that_runs_again_to_the_same_result_spares_those_after_it(steps, recipe, tmp_path):
    pipeline.run(recipe, tmp_path)
    (tmp_path / ".steps" / "a.json").unlink()
    steps.ran.clear()
    pipeline.run(recipe, tmp_path)
    assert steps.ran == ["a"]


def test_results_that_were_tampered_with_are_made_again(steps, recipe, tmp_path):
    pipeline.run(recipe, tmp_path)
    (tmp_path / "b" / "out.txt").write_text("something else")
    (tmp_path / "c" / "extra.txt").write_text("")
    steps.ran.clear()
    pipeline.run(recipe, tmp_path)
    assert steps.ran == ["b", "c"]
    assert not (tmp_path / "c" / "extra.txt").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_damaged_record_counts_as_none(steps, recipe, tmp_path, content):
    pipeline.run(recipe, tmp_path)
    (tmp_path / ".steps" / "c.json").write_text(content)
    steps.ran.clear()
    pipeline.run(recipe, tmp_path)
    assert steps.ran == ["c"]


def test_a_new_version_of_a_library_runs_the_steps_that_use_it(steps, recipe, tmp_path, monkeypatch):
    a, b, c = steps.steps
    steps.install(monkeypatch, (a, replace(b, libraries=("onnx",)), c))
    pipeline.run(recipe, tmp_path)
    steps.ran.clear()
    versions = pipeline.version
    monkeypatch.setattr(pipeline, "version", lambda name: "99" if name == "onnx" else versions(name))
    pipeline.run(recipe, tmp_path)
    assert steps.ran == ["b"], "its result is the same, so c need not run"


def test_until_stops_there_and_from_begins_there(steps, recipe, tmp_path):
    result = pipeline.run(recipe, tmp_path, until="b")
    assert steps.ran == ["a", "b"]
    assert [step.name for step in result.steps] == ["a", "b"]
    steps.ran.clear()
    pipeline.run(recipe, tmp_path, start="b")
    assert steps.ran == ["b", "c"]


def test_from_also_runs_what_is_missing_before_it(steps, recipe, tmp_path):
    pipeline.run(recipe, tmp_path, start="c")
    assert steps.ran == ["a", "b", "c"]


def test_unknown_steps_and_impossible_ranges_are_refused(steps, recipe, tmp_path):
    with pytest.raises(HardbitError, match="there is no step 'd'; the steps are a, b, c"):
        pipeline.run(recipe, tmp_path, until="d")
    with pytest.raises(HardbitError, match="step 'c' comes after step 'a'; the order is a, b, c"):
        pipeline.run(recipe, tmp_path, until="a", start="c")


def test_a_step_that_fails_leaves_its_last_result_and_what_it_may_go_on_from(steps, recipe, tmp_path):
    pipeline.run(recipe, tmp_path)

    def fail_once(work):
        (work.folder / "half.txt").write_text("half")
        attempts = work.scratch / "attempts"
        attempts.write_text(attempts.read_text() + "x" if attempts.exists() else "x")
        if attempts.read_text() == "x":
            raise KeyboardInterrupt

    steps.body["b"] = fail_once
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(recipe, tmp_path, start="b")
    assert (tmp_path / "b" / "out.txt").read_text() == "a8 b8 "
    assert not list(tmp_path.glob(".b.*"))
    steps.ran.clear()
    pipeline.run(recipe, tmp_path, start="b")
    assert steps.ran == ["b", "c"]
    assert not (tmp_path / ".work" / "b").exists(), "what it went on from is not needed any more"


def test_scratch_of_another_recipe_is_not_gone_on_from(steps, recipe, tmp_path):
    seen = []

    def look(work):
        seen.append(sorted(file.name for file in work.scratch.iterdir()))
        (work.scratch / "state").write_text("")
        raise KeyboardInterrupt

    steps.body["a"] = look
    for eps in (8.0, 4.0, 8.0):
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(with_eps(recipe, eps), tmp_path)
    assert seen == [[], [], ["state"]]


def _run_and_hang(recipe, folder):
    pipeline.run(recipe, folder)


def test_kill_minus_nine_in_a_step(steps, recipe, tmp_path):
    def hang(work):
        (work.folder / "half.txt").write_text("half")
        time.sleep(60)

    steps.body["b"] = hang
    process = multiprocessing.get_context("fork").Process(target=_run_and_hang, args=(recipe, tmp_path))
    process.start()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob(".b.*/half.txt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(HardbitError, match="another hardbit run works in this folder; wait, or give --run-dir"):
        pipeline.run(recipe, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    steps.body["b"] = lambda work: None
    result = pipeline.run(recipe, tmp_path)
    assert steps.ran == ["b", "c"], "a was finished before the kill"
    assert (result.folder("c") / "out.txt").read_text() == "a8 a8 b8 c8 "
    assert not list(tmp_path.glob(".b.*"))


def test_progress_is_told_of_every_step(steps, recipe, tmp_path):
    class Log(list):
        def step_started(self, name, title):
            self.append((name, title))

        def step_ended(self, name, note, seconds, *, skipped):
            self.append((name, note, skipped))

        def training(self):
            return contextlib.nullcontext()

        checking = training

    pipeline.run(recipe, tmp_path, until="a")
    log = Log()
    pipeline.run(recipe, tmp_path, until="b", progress=log)
    assert log == [("a", "a is done", True), ("b", "second"), ("b", "b is done", False)]


def test_records_are_readable(steps, recipe, tmp_path):
    pipeline.run(recipe, tmp_path)
    record = json.loads((tmp_path / ".steps" / "b.json").read_text())
    assert record["note"] == "b is done"
    assert list(record["files"]) == ["out.txt"]
    assert record["seconds"] >= 0
