"""Attacks on the 8-bit grid: bytes in and out, logits from the engine, directions from an attack graph or none."""

from hardbit_deploy.attacks.apgd import apgd
from hardbit_deploy.attacks.carlini_wagner import carlini_wagner
from hardbit_deploy.attacks.corruptions import corrupt
from hardbit_deploy.attacks.deepfool import deepfool
from hardbit_deploy.attacks.fab import fab
from hardbit_deploy.attacks.fgsm import fgsm
from hardbit_deploy.attacks.hopskipjump import hopskipjump
from hardbit_deploy.attacks.nes import nes
from hardbit_deploy.attacks.outcome import AttackOutcome, keeps_label, margins
from hardbit_deploy.attacks.pgd import pgd, step_size_255
from hardbit_deploy.attacks.random_search import random_search
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.attacks.spsa import spsa
from hardbit_deploy.attacks.square import square
from hardbit_deploy.attacks.threat_model import NORMS, Norm, ThreatModel

__all__ = [
    "NORMS",
    "AttackOutcome",
    "Norm",
    "ThreatModel",
    "apgd",
    "carlini_wagner",
    "corrupt",
    "deepfool",
    "fab",
    "fgsm",
    "hopskipjump",
    "keeps_label",
    "margins",
    "nes",
    "pgd",
    "random_search",
    "random_start",
    "spsa",
    "square",
    "step_size_255",
]
