"""What a pass is: a rewrite of a graph that states what it requires, what it ensures, and what it keeps."""

from __future__ import annotations

import enum
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import onnx

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit_deploy.errors import HardbitError

__all__ = ["Pass", "PassContractError", "ValuePreserving", "run_passes"]

logger = logging.getLogger(__name__)


class PassContractError(RuntimeError):
    """A pass broke its own promise: a fault of hardbit, whatever the model."""


class ValuePreserving(enum.Enum):
    """On which inputs the rewritten graph computes the very bits of the original one, executed in float."""

    ALWAYS = "on every input"
    ON_BYTES = "on inputs that are bytes"
    UNLESS_REPORTED = "unless the pass reports a change"


class Pass(ABC):
    """One rewrite. Subclasses override `rewrite`, and state their contract in `requires` and `ensures`."""

    name: ClassVar[str]
    value_preserving: ClassVar[ValuePreserving] = ValuePreserving.ALWAYS

    def apply(self, model: onnx.ModelProto, report: Callable[[str], None] | None = None) -> onnx.ModelProto:
        """The rewritten model; `model` itself is not touched. `report` is told of every change of values.

        Raises HardbitError when the model is not what the pass requires, PassContractError when the pass fails to
        deliver what it ensures.
        """
        graph = OnnxGraph(model)
        for problem in self.requires(graph):
            raise HardbitError(problem, where=f"pass {self.name}", remedy="give this pass a graph that meets its terms")
        changes = self.rewrite(graph)
        graph.prune()
        rewritten = graph.to_model()
        for problem in self.ensures(OnnxGraph(rewritten)):
            raise PassContractError(f"pass {self.name} did not deliver what it ensures: {problem}")
        if changes and self.value_preserving is not ValuePreserving.UNLESS_REPORTED:
            raise PassContractError(f"pass {self.name} preserves values, yet reports: {changes[0]}")
        for change in changes:
            logger.info("pass %s: %s", self.name, change)
            if report is not None:
                report(change)
        return rewritten

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        """What is wrong with `graph` as an input of this pass, each problem with the node's name."""
        return ()

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        """What is wrong with `graph` as a result of this pass."""
        return ()

    @abstractmethod
    def rewrite(self, graph: OnnxGraph) -> list[str]:
        """Edit `graph` in place; returns one line for every change of values."""


def run_passes(
    model: onnx.ModelProto,
    passes: Iterable[Pass],
    report: Callable[[str], None] | None = None,
    *,
    check_each: bool = False,
) -> onnx.ModelProto:
    """Apply `passes` in order. The result, or with `check_each` the result of every pass, is checked by onnx.checker.

    Raises PassContractError naming the pass when it wrote an invalid model, and whatever `Pass.apply` raises.
    """
    name = "(none)"
    for step in passes:
        name, model = step.name, step.apply(model, report)
        if check_each:
            _check(model, name)
    _check(model, name)
    return model


def _check(model: onnx.ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PassContractError(f"after pass {name} the model is not valid ONNX: {error}") from error
