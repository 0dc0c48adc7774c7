"""White-box attacks on the 8-bit grid: logits from the engine, direction from the attack graph, bytes in and out."""

from hardbit_deploy.attacks.fgsm import fgsm
from hardbit_deploy.attacks.outcome import AttackOutcome, keeps_label, margins
from hardbit_deploy.attacks.pgd import pgd, step_size_255
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.attacks.threat_model import NORMS, Norm, ThreatModel

__all__ = [
    "NORMS",
    "AttackOutcome",
    "Norm",
    "ThreatModel",
    "fgsm",
    "keeps_label",
    "margins",
    "pgd",
    "random_start",
    "step_size_255",
]
