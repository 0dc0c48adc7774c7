"""Quantization-aware adversarial training: phases of epochs, a checkpoint after each, the same weights however often
it is killed."""

from hardbit.train.loop import TrainingResult, train
from hardbit.train.plan import Adversary, Phase, TrainingPlan
from hardbit.train.weights import load_twin

__all__ = ["Adversary", "Phase", "TrainingPlan", "TrainingResult", "load_twin", "train"]
