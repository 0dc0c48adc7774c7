"""Auto-PGD: its checkpoints, a plain reference of the paper image by image, and its strength on a shipped network."""

from __future__ import annotations

import numpy as np
import pytest

from hardbit_deploy.attacks import ThreatModel, apgd, deepfool, fab, margins, pgd
from hardbit_deploy.attacks.apgd import checkpoints
from hardbit_deploy.attacks.iterates import L2_SLACK, rounded_inside_l2
from hardbit_deploy.attacks.objectives import CROSS_ENTROPY, DLR, MARGIN, targeted_dlr
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.engines import Engine, Gradient
from strength_examples import Both, shipped_network

SHAPE = (1, 8, 8)
STREAM = 1 << 35


class CurvedEngine(Engine):
    """logits = outer . tanh(inner . (pixels - 128) / 256), and far too much for the label: nothing falls."""

    runtime = "numpy"

    def __init__(self) -> None:
        super().__init__(SHAPE, 5)
        rng = np.random.default_rng(0)
        self.inner, self.outer = rng.normal(size=(12, 64)), rng.normal(size=(5, 12))
        self.seen: list = []

    def activate_impl(self) -> None: ...

    def deactivate_impl(self) -> None: ...

    def infer_impl(self, images):
        self.seen.append(images.copy())
        logits = np.tanh((images.reshape(-1, 64).astype(float) - 128) / 256 @ self.inner.T) @ self.outer.T
        logits[:, 0] += 100
        return logits.astype(np.float32)


class CurvedGradient(Gradient):
    def __init__(self, engine: CurvedEngine) -> None:
        super().__init__(SHAPE, 5)
        self.engine = engine

    def activate_impl(self) -> None: ...

    def deactivate_impl(self) -> None: ...

    def logits_impl(self, images):
        return self.engine.infer_impl(images)

    def gradient_impl(self, images, labels, engine_logits, loss):
        raise NotImplementedError("APGD pulls back the derivatives of its objective")

    def pullback_impl(self, images, seeds):
        hidden = np.tanh((images.reshape(-1, 64).astype(float) - 128) / 256 @ self.engine.inner.T)
        product = (seeds @ self.engine.outer * (1 - hidden**2)) @ self.engine.inner
        return product.reshape(images.shape).astype(np.float32)


def plain_apgd(engine, gradient, image, start, norm: str, eps: float, steps: int, objective):
    """Algorithm 1 of the paper for one image in float64, on positions; returns the bytes that it looks at."""
    label = np.zeros(1, np.int64)
    clean = image.astype(float)

    def project(point):
        if norm == "linf":
            return np.clip(np.clip(point, clean - eps, clean + eps), 0, 255)
        length = np.linalg.norm(point - clean)
        return np.clip(clean + (point - clean) * min(1, eps * L2_SLACK / max(length, 1e-9)), 0, 255)

    def unit(slope):
        return np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope)

    looked = []

    def at(point):
        delta = (point - clean).reshape(1, -1).astype(np.float32)
        rounded = np.rint(delta) if norm == "linf" else rounded_inside_l2(delta, eps)
        shown = (clean + rounded.reshape(clean.shape)).astype(np.uint8)[None]
        looked.append(shown[0])
        logits = engine.infer(shown)
        slope = gradient.pullback(shown, objective.seeds(logits, label))[0].astype(float)
        return objective.values(logits, label)[0], slope

    previous = point = start.astype(float)
    value, slope = at(point)
    history, best = [value], (value, point, slope)
    size, last_check, reduced, best_at_check = 2 * eps, 0, True, value
    windows = [22, 19, 16, 13, 10, 7, 6, 6, 6]
    for step in range(1, steps + 1):
        momentum = point - previous
        ahead = project(point + size * unit(slope))
        share = 0.75 if step > 1 else 1.0
        previous, point = point, project(point + share * (ahead - point) + (1 - share) * momentum)
        value, slope = at(point)
        history.append(value)
        if value > best[0]:
            best = (value, point, slope)
        if step - last_check == windows[0]:
            window = windows.pop(0)
            rises = sum(history[i] > history[i - 1] for i in range(step - window + 1, step + 1))
            halve = rises <= 0.75 * window or (not reduced and best[0] <= best_at_check)
            if halve:
                size /= 2
                _, point, slope = best
            last_check, reduced, best_at_check = step, halve, best[0]
    return np.stack(looked)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", [CROSS_ENTROPY, MARGIN, DLR], ids=lambda each: each.name)
def test_it_looks_where_the_paper_looks(norm, objective):
    engine = CurvedEngine().activate()
    gradient = CurvedGradient(engine).activate()
    images = np.random.default_rng(1).integers(30, 226, (6, *SHAPE)).astype(np.uint8)
    labels = np.zeros(6, np.int64)
    model = ThreatModel(norm, {"linf": 16.0, "l2": 70.0}[norm])
    apgd(engine, gradient, images, labels, model, steps=100, objective=objective)
    looked = np.stack(engine.seen)
    assert looked.shape[0] == 101
    starts = random_start(images, model, seed=0, stream=STREAM, indices=np.arange(6))
    for row in range(6):
        expected = plain_apgd(engine, gradient, images[row], starts[row], norm, model.eps_255, 100, objective)
        difference = np.abs(looked[:, row].astype(int) - expected.astype(int))
        assert difference.max() <= 4  # float32 and float64 round a few positions to neighbouring bytes
        assert (difference == 0).mean() > 0.99


def test_checkpoints_are_those_of_the_paper():
    """p_0 = 0, p_1 = 0.22, then p_j + max(p_j - p_(j-1) - 0.03, 0.06)."""
    points = [0.0, 0.22]
    while points[-1] < 1:
        points.append(points[-1] + max(points[-1] - points[-2] - 0.03, 0.06))
    expected = [round(100 * point) for point in points[1:] if point <= 1]
    assert list(checkpoints(100)) == expected
    assert list(checkpoints(1)) == [1]
    assert list(checkpoints(0)) == []


def test_targets_are_tried_in_the_order_of_the_clean_logits():
    engine = CurvedEngine().activate()
    gradient = CurvedGradient(engine).activate()
    images = np.random.default_rng(1).integers(30, 226, (3, *SHAPE)).astype(np.uint8)
    labels = np.zeros(3, np.int64)
    model = ThreatModel("linf", 16.0)
    apgd(engine, gradient, images, labels, model, steps=5, targets=2)
    looked, logits = np.stack(engine.seen), engine.infer(images)
    assert looked.shape[0] == 1 + 2 * 6
    np.testing.assert_array_equal(looked[0], images)
    order = np.argsort(-logits[:, 1:], axis=1) + 1
    for climb in range(2):
        start = random_start(images, model, seed=0, stream=STREAM + climb, indices=np.arange(3))
        np.testing.assert_array_equal(looked[1 + 6 * climb], start)
        slope = gradient.pullback(start, targeted_dlr(order[:, climb]).seeds(engine.infer(start), labels))
        first = np.clip(start + 32 * np.sign(slope), images.astype(int) - 16, images.astype(int) + 16)
        np.testing.assert_array_equal(looked[2 + 6 * climb], np.clip(first, 0, 255))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return shipped_network(tmp_path_factory.mktemp("w4a4"), 120, "fashion-cnn-w4a4")


@pytest.mark.parametrize(("norm", "eps"), [("linf", 25.0), ("l2", 382.5)])
def test_on_the_shipped_integer_engine_it_is_as_strong_as_pgd(shipped, norm, eps):
    at, model = (shipped.engine, shipped.gradient, shipped.images, shipped.labels), ThreatModel(norm, eps)
    reference = pgd(*at, model, steps=30).survived
    found = apgd(*at, model, steps=30)
    again = shipped.engine.infer(found.adversarial)
    np.testing.assert_array_equal(again.argmax(axis=1) == shipped.labels, found.survived)
    np.testing.assert_array_equal(margins(again, shipped.labels), found.margin)
    assert found.survived.sum() <= reference.sum() + 1
    # what looks for the nearest boundary finds about the same by another way
    assert fab(*at, model, steps=15, targets=3).survived.sum() <= reference.sum() + 3
    assert deepfool(*at, model, steps=20).survived.sum() < len(shipped.labels) * 0.95
