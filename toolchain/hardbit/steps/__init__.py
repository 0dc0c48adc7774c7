"""The named steps from a recipe to a verdict, one module each, in the order in which they run."""

from hardbit.steps import bundle, check, differentiate, export, lower, report, train, transfer
from hardbit.steps.step import Step

__all__ = ["STEPS", "Step", "step_names"]

STEPS: tuple[Step, ...] = (
    train.STEP,
    export.STEP,
    lower.STEP,
    differentiate.STEP,
    transfer.STEP,
    bundle.STEP,
    check.STEP,
    report.STEP,
)


def step_names() -> list[str]:
    """The names of the steps, in order."""
    return [step.name for step in STEPS]
