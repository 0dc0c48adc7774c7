"""Trackers get every update and every epoch once, go on after an interruption, and never end a training."""

import sys
import types

import pytest

from hardbit import pipeline
from hardbit.recipe import load_recipe
from hardbit.train.tracking import Tracking, scalars, tracked
from hardbit_deploy.errors import HardbitError
from recipe_examples import write_bars

RECORD = {
    "epoch": 1,
    "adversary": "pgd",
    "adversarial_accuracy": 0.5,
    "loss": 1.25,
    "learning_rate": 0.01,
    "pgd": 0.4,
    "overfitting": False,
    "bits": {"weights": 4, "activations": 8},
}
CURVES = {
    "accuracy/adversarial_accuracy": 0.5,
    "accuracy/pgd": 0.4,
    "training/epoch": 1.0,
    "training/loss": 1.25,
    "training/learning_rate": 0.01,
    "training/overfitting": 0.0,
    "bits/weights": 4.0,
    "bits/activations": 8.0,
}


class Seen:
    """A progress that notes down what it is told."""

    def __init__(self):
        self.calls = []

    def epoch_started(self, *arguments):
        self.calls.append(("started", *arguments))

    def step_done(self, loss):
        self.calls.append(("step", loss))

    def epoch_ended(self, record):
        self.calls.append(("ended", record))


def track(tracking, scratch, remarks, progress=None):
    parameters = {"network": {"architecture": "lenet"}, "phases": [{"epochs": 1}], "shape": [1, 28]}
    return tracked(progress, tracking, name="bars", parameters=parameters, scratch=scratch, remark=remarks.append)


def epoch(observer, number=0, losses=(3.0, 2.0), done=0, record=RECORD):
    observer.epoch_started(number, 2, 2, done)
    for loss in losses:
        observer.step_done(loss)
    observer.epoch_ended(record)


def points(folder):
    """What TensorBoard itself reads: (step, value) by tag."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_record_becomes_one_curve_a_number():
    assert scalars(RECORD) == CURVES


def test_tensorboard_reads_every_update_and_every_epoch(tmp_path):
    remarks, seen = [], Seen()
    with track(Tracking(tmp_path / "curves"), tmp_path, remarks, seen) as observer:
        epoch(observer)
        epoch(observer, 1, losses=(1.0, 0.5))
    found = points(tmp_path / "curves")
    assert found["update/loss"] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.5)]
    for name, value in CURVES.items():
        assert found[name] == [(1, pytest.approx(value)), (3, pytest.approx(value))]
    assert [call[0] for call in seen.calls] == ["started", "step", "step", "ended"] * 2
    assert remarks == []


def test_what_is_trained_twice_is_drawn_once(tmp_path):
    """Killed after the first update of the second epoch, gone on from the checkpoint after the first epoch."""
    with track(Tracking(tmp_path / "curves"), tmp_path, []) as observer:
        epoch(observer)
        observer.epoch_started(1, 2, 2, 0)
        observer.step_done(99.0)
    with track(Tracking(tmp_path / "curves"), tmp_path, []) as observer:
        epoch(observer, 1, losses=(1.0, 0.5))
    assert points(tmp_path / "curves")["update/loss"] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.5)]


def test_an_epoch_that_goes_on_in_its_middle_goes_on_there(tmp_path):
    with track(Tracking(tmp_path / "curves"), tmp_path, []) as observer:
        epoch(observer, 1, losses=(0.5,), done=1)
    assert points(tmp_path / "curves")["update/loss"] == [(3, 0.5)]


def test_without_tensorboard_there_is_one_remark(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    remarks, seen = [], Seen()
    with track(Tracking(tmp_path / "curves"), tmp_path, remarks, seen) as observer:
        epoch(observer)
    assert remarks == ["no curves for TensorBoard: 'pip install tensorboard' adds them"]
    assert len(seen.calls) == 4


def test_a_tracker_that_fails_is_given_up_with_one_remark(tmp_path):
    (tmp_path / "curves").write_text("a file where the folder should be")
    remarks, seen = [], Seen()
    with track(Tracking(tmp_path / "curves"), tmp_path, remarks, seen) as observer:
        epoch(observer)
        epoch(observer, 1)
    assert len(remarks) == 1
    assert remarks[0].startswith("TensorBoard is given up, training goes on: ")
    assert len(seen.calls) == 8


class Server:
    """What an MLflow server keeps, and a client of it as `mlflow.MlflowClient` is one."""

    def __init__(self):
        self.experiments, self.runs, self.is_down = {}, {}, False

    def client(self, tracking_uri):
        assert tracking_uri == "http://server"
        return self

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = types.SimpleNamespace(experiment_id="7")
        return "7"

    def create_run(self, experiment_id, run_name):
        if self.is_down:
            raise ConnectionError("no route")
        run = {"experiment": experiment_id, "name": run_name, "status": "RUNNING", "params": {}, "metrics": []}
        self.runs[f"run{len(self.runs)}"] = run
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run{len(self.runs) - 1}"))

    def update_run(self, run_id, status):
        self.runs[run_id]["status"] = status

    def log_param(self, run_id, key, value):
        self.runs[run_id]["params"][key] = value

    def log_metric(self, run_id, key, value, step):
        if self.is_down:
            raise ConnectionError("no route")
        self.runs[run_id]["metrics"].append((key, value, step))

    def set_terminated(self, run_id, status):
        if self.is_down:
            raise ConnectionError("no route")
        self.runs[run_id]["status"] = status


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=server.client))
    return server


def test_mlflow_gets_parameters_and_epochs(tmp_path, server):
    with track(Tracking(mlflow="http://server"), tmp_path, []) as observer:
        epoch(observer)
    (run,) = server.runs.values()
    assert run["params"] == {"network.architecture": "lenet", "phases.0.epochs": 1, "shape": [1, 28]}
    assert sorted(run["metrics"]) == sorted((name, value, 1) for name, value in CURVES.items())
    assert (run["experiment"], run["name"], run["status"]) == ("7", "bars", "FINISHED")
    with track(Tracking(mlflow="http://server"), tmp_path / "..", []):
        pass
    assert list(server.experiments) == ["hardbit"]


@pytest.mark.parametrize(("ending", "status"), [(KeyboardInterrupt, "KILLED"), (HardbitError, "FAILED")])
def test_an_interrupted_training_goes_on_in_the_same_run_of_mlflow(tmp_path, server, ending, status):
    interrupted = track(Tracking(mlflow="http://server"), tmp_path, [])
    epoch(interrupted.__enter__())
    with pytest.raises(ending):
        interrupted.gen.throw(ending("stop"))
    assert server.runs["run0"]["status"] == status
    with track(Tracking(mlflow="http://server"), tmp_path, []) as observer:
        assert server.runs["run0"]["status"] == "RUNNING"
        epoch(observer, 1, record={**RECORD, "epoch": 2})
    assert [run["status"] for run in server.runs.values()] == ["FINISHED"]
    assert [step for name, _, step in server.runs["run0"]["metrics"] if name == "training/loss"] == [1, 2]


def test_mlflow_that_is_asked_for_and_not_there_is_an_error_before_training(tmp_path, server, monkeypatch):
    server.is_down = True
    with pytest.raises(
        HardbitError, match=r"^http://server: MLflow does not take the run \(no route\); check --mlflow"
    ):
        track(Tracking(mlflow="http://server"), tmp_path, []).__enter__()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(HardbitError, match="--mlflow: MLflow is not installed; 'pip install mlflow-skinny' installs"):
        track(Tracking(mlflow="http://server"), tmp_path, []).__enter__()


def test_a_server_that_goes_away_while_training_is_given_up(tmp_path, server):
    remarks = []
    with track(Tracking(mlflow="http://server"), tmp_path, remarks) as observer:
        server.is_down = True
        epoch(observer)
        epoch(observer, 1)
    assert remarks == ["MLflow is given up, training goes on: no route"]


def test_training_a_recipe_leaves_curves_in_its_folder_unless_they_are_not_wanted(tmp_path, server):
    recipe = load_recipe(write_bars(tmp_path))
    options = pipeline.RunOptions(mlflow="http://server")
    pipeline.run(recipe, tmp_path / "run", until="train", options=options)
    (curves,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert curves.name == recipe.training_digest()[:8]
    found = points(curves)
    assert len(found["update/loss"]) == 2 * (224 // 16)
    assert [value for _, value in found["training/epoch"]] == [1.0, 2.0]
    assert server.runs["run0"]["params"]["training.phases.1.adversary"] == "pgd"
    pipeline.run(recipe, tmp_path / "none", until="train", options=pipeline.RunOptions(tensorboard=False))
    assert not (tmp_path / "none" / "tensorboard").exists()
