"""Quantization-aware adversarial training: phases of epochs, a checkpoint after each, the same weights however often
it is killed."""

from hardbit.train.loop import TrainingResult, train
from hardbit.train.plan import Adversary, InitialWeights, Phase, Teacher, TrainingPlan
from hardbit.train.weights import load_twin, read_initial_weights, write_weights

__all__ = [
    "Adversary",
    "InitialWeights",
    "Phase",
    "Teacher",
    "TrainingPlan",
    "TrainingResult",
    "load_twin",
    "read_initial_weights",
    "train",
    "write_weights",
]
