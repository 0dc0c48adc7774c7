"""The curves of a training, for TensorBoard and MLflow. Both observe as `hardbit.train.loop.Progress` does.

A tracker that fails while a network trains is given up with one remark: hours of training are not lost to a full disk
or a server that is gone. Both go on where an interrupted training goes on, without points that were trained twice.

Boundary: tracks, and decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import write_atomically

if TYPE_CHECKING:
    from hardbit.train.loop import Progress

__all__ = ["MLflowRun", "TensorBoardCurves", "Tracking", "scalars", "tracked"]

_ACCURACIES = ("adversarial_accuracy", "clean", "fgsm", "pgd")


@dataclass(frozen=True)
class Tracking:
    """Where the curves go: a folder of TensorBoard's (None for none), and the URI of an MLflow server."""

    tensorboard: Path | None = None
    mlflow: str | None = None


@contextmanager
def tracked(
    progress: Progress | None,
    tracking: Tracking,
    *,
    name: str,
    parameters: Mapping[str, Any],
    scratch: Path,
    remark: Callable[[str], None],
) -> Iterator[Progress]:
    """In the body, what `progress` is told goes to the trackers too.

    `name` and `parameters` (any nesting) describe the training; `scratch` is a folder that is the same when the
    training goes on. Without the package `tensorboard` there is a remark; raises HardbitError where MLflow was asked
    for and is not installed or does not answer.
    """
    observers: list[Progress] = [] if progress is None else [progress]
    with ExitStack() as stack:
        if tracking.tensorboard is not None:
            try:
                curves = TensorBoardCurves(tracking.tensorboard)
            except ImportError:
                remark("no curves for TensorBoard: 'pip install tensorboard' adds them")
            else:
                observers.append(_Expendable("TensorBoard", stack.enter_context(curves), remark))
        if tracking.mlflow is not None:
            run = stack.enter_context(MLflowRun(tracking.mlflow, name, parameters, scratch))
            observers.append(_Expendable("MLflow", run, remark))
        yield _Together(observers)


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's record, by the name of their curve: accuracies in one group, the rest in another."""
    curves: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            curves |= {f"{key}/{part}": float(number) for part, number in value.items()}
        elif isinstance(value, int | float):
            curves[f"{'accuracy' if key in _ACCURACIES else 'training'}/{key}"] = float(value)
    return curves


class TensorBoardCurves:
    """Event files for TensorBoard in `folder`. Use as a context manager; raises ImportError without tensorboard.

    The axis is the number of updates. The loss of every update is there, and every epoch's record at its last update.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[[int], Any] = lambda step: SummaryWriter(str(folder), purge_step=step)
        self._writer: Any = None
        self._step = 0

    def __enter__(self) -> TensorBoardCurves:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def epoch_started(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        self._step = epoch * steps + done
        if self._writer is None:
            self._writer = self._open(self._step)

    def step_done(self, loss: float) -> None:
        self._writer.add_scalar("update/loss", loss, self._step)
        self._step += 1

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, self._step - 1)
        self._writer.flush()


class MLflowRun:
    """A run of the experiment "hardbit" on an MLflow server. Use as a context manager; the axis is the epoch."""

    def __init__(self, uri: str, name: str, parameters: Mapping[str, Any], scratch: Path) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise HardbitError(
                "MLflow is not installed", where="--mlflow", remedy="'pip install mlflow-skinny' installs it"
            ) from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._run_id = self._begin_or_go_on(uri, name, parameters, scratch / "mlflow.json")
        except Exception as error:
            raise HardbitError(f"MLflow does not take the run ({error})", where=uri, remedy="check --mlflow") from error

    def __enter__(self) -> MLflowRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        with suppress(Exception):  # a server that is gone has been remarked on, or misses this word only
            self._client.set_terminated(self._run_id, status)

    def epoch_started(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        pass

    def step_done(self, loss: float) -> None:
        pass

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record).items():
            self._client.log_metric(self._run_id, name, value, step=record["epoch"])

    def _begin_or_go_on(self, uri: str, name: str, parameters: Mapping[str, Any], note: Path) -> str:
        """The run of an interrupted training, or a new one, noted down for the case that this one is interrupted."""
        if note.is_file():
            noted: dict[str, str] = json.loads(note.read_text())
            if noted["uri"] == uri:
                self._client.update_run(noted["run_id"], status="RUNNING")
                return noted["run_id"]
        experiment = self._client.get_experiment_by_name("hardbit")
        number = experiment.experiment_id if experiment else self._client.create_experiment("hardbit")
        run_id: str = self._client.create_run(number, run_name=name).info.run_id
        for key, value in _flat(parameters):
            self._client.log_param(run_id, key, value)
        write_atomically(note, json.dumps({"uri": uri, "run_id": run_id}))
        return run_id


class _Together:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Progress]) -> None:
        self._observers = observers

    def epoch_started(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        for observer in self._observers:
            observer.epoch_started(epoch, epochs, steps, done)

    def step_done(self, loss: float) -> None:
        for observer in self._observers:
            observer.step_done(loss)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        for observer in self._observers:
            observer.epoch_ended(record)


class _Expendable:
    """An observer that may fail: then it is told nothing more, and the user once."""

    def __init__(self, name: str, observer: Progress, remark: Callable[[str], None]) -> None:
        self._name, self._remark = name, remark
        self._observer: Progress | None = observer

    def epoch_started(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        self._tell(lambda observer: observer.epoch_started(epoch, epochs, steps, done))

    def step_done(self, loss: float) -> None:
        self._tell(lambda observer: observer.step_done(loss))

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        self._tell(lambda observer: observer.epoch_ended(record))

    def _tell(self, message: Callable[[Progress], None]) -> None:
        if self._observer is None:
            return
        try:
            message(self._observer)
        except Exception as error:
            self._observer = None
            self._remark(f"{self._name} is given up, training goes on: {error}")


def _flat(parameters: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and lists, under the names of the way to them."""
    if isinstance(parameters, Mapping):
        parts = parameters.items()
    elif isinstance(parameters, list | tuple) and any(isinstance(part, Mapping) for part in parameters):
        parts = {str(number): part for number, part in enumerate(parameters)}.items()
    else:
        yield prefix, parameters
        return
    for key, part in parts:
        yield from _flat(part, f"{prefix}.{key}" if prefix else str(key))
