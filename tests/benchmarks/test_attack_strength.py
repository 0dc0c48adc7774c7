"""How strong the attacks are beside their authors' own, at the same budget, on the same float network and images.

Peers work in floats, ours on bytes; eps is a whole number of grey levels in L-inf. Every comparison is paired: images
that one fells and the other does not, with McNemar's exact test. An attack must not be weaker than its peer beyond
noise. Peers that are not installed are skipped, visibly: `pip install "hardbit[peers]"`, or see the README here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hardbit_deploy.attacks import ThreatModel, apgd, carlini_wagner, deepfool, fab, pgd, square
from hardbit_deploy.attacks.objectives import DLR, TEMPERED
from hardbit_deploy.statistics import compare_paired
from strength_examples import Both, keeps, shipped_network

pytestmark = pytest.mark.slow

IMAGES = 500
STEPS, TARGETS, QUERIES = 100, 9, 1000
MODELS = {"linf": ThreatModel("linf", 25.0), "l2": ThreatModel("l2", 1.5 * 255)}
NOISE = 0.01  # one-sided: a sound attack fails one comparison in a hundred

Survived = NDArray[np.bool_]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return shipped_network(tmp_path_factory.mktemp("float"), IMAGES)


def ours(both: Both, norm: str) -> dict[str, Callable[[], Survived]]:
    at, model = (both.engine, both.gradient, both.images, both.labels), MODELS[norm]
    found: dict[str, Callable[[], Survived]] = {
        "apgd-ce": lambda: apgd(*at, model, steps=STEPS).survived,
        "apgd-dlr": lambda: apgd(*at, model, steps=STEPS, objective=DLR).survived,
        "apgd-t": lambda: apgd(*at, model, steps=STEPS, targets=TARGETS).survived,
        "fab-t": lambda: fab(*at, model, steps=STEPS, targets=TARGETS).survived,
        "square": lambda: square(both.engine, both.images, both.labels, model, queries=QUERIES).survived,
    }
    return found


def auto_attack(both: Both, norm: str) -> dict[str, Callable[[], Survived]]:
    """The attacks of auto-attack, by the names of ours."""
    pytest.importorskip("pyautoattack")
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    settings = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": MODELS[norm].eps_255 / 255, "device": "cpu"}
    steps = {**settings, "n_iter": STEPS, "seed": 0}
    attacks = {
        "apgd-ce": APGDAttack(both.module, loss="ce", **steps),
        "apgd-dlr": APGDAttack(both.module, loss="dlr", **steps),
        "apgd-t": APGDAttack_targeted(both.module, n_target_classes=TARGETS, **steps),
        "fab-t": FABAttack_PT(both.module, targeted=True, n_target_classes=TARGETS, **steps),
        "square": SquareAttack(both.module, n_queries=QUERIES, seed=0, **settings),
    }
    return {
        name: lambda attack=attack: survivors(both, norm, attack.perturb(both.floats, both.truth))
        for name, attack in attacks.items()
    }


def survivors(both: Both, norm: str, points: torch.Tensor) -> Survived:
    """Images whose points keep the label, or leave the ball by more than float32 makes of it."""
    change = (points - both.floats).flatten(1)
    length = change.abs().amax(dim=1) if norm == "linf" else change.norm(dim=1)
    inside = (length <= MODELS[norm].eps_255 / 255 + 1e-5).numpy()
    assert inside.all()
    return keeps(both.module, points, both.truth)


def compare(name: str, mine: Survived, peer: Survived, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the pair of counts; fail where ours is weaker beyond noise."""
    found = compare_paired(peer, mine)
    with capsys.disabled():
        print(
            f"  {name:22s} ours {mine.mean():6.1%}  peer {peer.mean():6.1%}   ours alone fells {found.lost:3d},"
            f" peer alone {found.gained:3d}, p = {found.p_value:.3f}"
        )
    assert found.gained <= found.lost or found.p_value / 2 > NOISE, f"{name}: {found.gained} to {found.lost}"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("norm", list(MODELS))
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "square", "fab-t"])
def test_auto_attack(both: Both, name: str, norm: str, capsys: pytest.CaptureFixture[str]) -> None:
    peer = auto_attack(both, norm)[name]
    compare(f"{name}, {norm}", ours(both, norm)[name](), peer(), capsys)


@pytest.mark.timeout(1800)
def test_carlini_and_wagner_of_foolbox(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    """The same number of weights and steps; the peer's first weight is 1, which suits the logits of this network."""
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(both.module, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=STEPS, initial_const=1.0)
    _, _, success = attack(model, both.floats, both.truth, epsilons=[MODELS["l2"].eps_255 / 255])
    at = both.engine, both.gradient, both.images, both.labels
    mine = carlini_wagner(*at, MODELS["l2"], steps=STEPS, binary_steps=5)
    compare("carlini-wagner, l2", mine.survived, ~success[0].numpy(), capsys)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("norm", list(MODELS))
def test_deepfool_of_foolbox(both: Both, norm: str, capsys: pytest.CaptureFixture[str]) -> None:
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(both.module, bounds=(0, 1), device="cpu")
    kind = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}[norm]
    attack = kind(steps=50, candidates=10, overshoot=0.02)
    _, _, success = attack(model, both.floats, both.truth, epsilons=[MODELS[norm].eps_255 / 255])
    mine = deepfool(both.engine, both.gradient, both.images, both.labels, MODELS[norm], steps=50)
    compare(f"deepfool, {norm}", mine.survived, ~success[0].numpy(), capsys)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("norm", list(MODELS))
def test_each_attack_beside_pgd(both: Both, norm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What it finds that PGD with as many steps does not: auto-PGD on cross-entropy is no weaker, in either norm."""
    at, model = (both.engine, both.gradient, both.images, both.labels), MODELS[norm]
    reference = pgd(*at, model, steps=STEPS).survived
    compare(f"apgd-ce for pgd, {norm}", ours(both, norm)["apgd-ce"](), reference, capsys)
    tempered = pgd(*at, model, steps=STEPS, objective=TEMPERED).survived
    compare(f"tempered for pgd, {norm}", tempered, reference, capsys)
