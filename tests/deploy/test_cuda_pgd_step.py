"""The CUDA source of a PGD step: compiled by nvcc where it is installed, and run on a CPU against numpy."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest

from hardbit_deploy.attacks import ThreatModel
from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.iterates import L2_SLACK, iterates_from
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.engines.cuda_pgd import COMPILER_OPTIONS, SOURCE, find_nvcc
from hardbit_deploy.engines.device_pgd import SETTINGS, settings_of
from hardbit_deploy.engines.tensorrt_plan import as_codes
from host_kernels import host_kernels

SHAPE = (3, 7, 5)
THREADS = 4  # of a block; on a device 256
ARCHITECTURES = ("sm_75", "sm_87", "sm_89", "sm_110", "sm_120")
FORMATS = {
    "begin_climb": "PPPi",
    "begin_linf": "PPi",
    "begin_l2": "PPPi",
    "judge": "PPPiiPPPP",
    "step_linf": "PPPPPiPP",
    "step_l2": "PPPPPiPP",
}


def launch(name: str, grid: tuple[int, int], *arguments: np.ndarray | int) -> None:
    """Arrays stand for their addresses."""
    given = [value.ctypes.data if isinstance(value, np.ndarray) else value for value in arguments]
    host_kernels().launch(name, grid, THREADS, FORMATS[name], *given)


class Climb:
    """The buffers of a climb in this process's memory, moved by the kernels."""

    def __init__(self, images: np.ndarray, start: np.ndarray, model: ThreatModel, size_255: float) -> None:
        self.rows, self.values = len(images), int(np.prod(images.shape[1:]))
        self.pixels, self.norm = images.copy(), model.norm
        self.settings = settings_of(self.rows, model.norm, model.eps_255, size_255)
        self.iterate, self.following = as_codes(start).copy(), np.full(images.shape, 77, np.int8)
        self.shadow = np.zeros((self.rows, self.values), np.int16 if model.norm == "linf" else np.float32)
        self.standing, self.margin = np.zeros(self.rows, np.uint8), np.zeros(self.rows, np.float32)
        launch("begin_climb", (1 + self.rows // THREADS, 1), self.settings, self.margin, self.standing, self.rows)
        if model.norm == "linf":
            launch("begin_linf", self.each_value, self.iterate, self.shadow, self.values)
        else:
            launch("begin_l2", self.each_value, self.iterate, self.pixels, self.shadow, self.values)

    @property
    def each_value(self) -> tuple[int, int]:
        return -(-self.values // THREADS), self.rows

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """The bytes after a step, which take the place of the iterate."""
        name, grid = ("step_linf", self.each_value) if self.norm == "linf" else ("step_l2", (self.rows, 1))
        moved = self.settings, gradient, self.pixels, self.standing, self.iterate
        launch(name, grid, *moved, self.values, self.shadow, self.following)
        self.iterate, self.following = self.following, self.iterate
        return self.iterate.view(np.uint8) ^ np.uint8(128)


def images_and_start(model: ThreatModel, rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (rows, *SHAPE)).astype(np.uint8)
    images[0], images[1] = 0, 255  # at the walls of the box
    return images, random_start(images, model, seed=1, stream=2, indices=np.arange(rows))


def gradients(count: int, rows: int = 6) -> list[np.ndarray]:
    """Of all magnitudes, with zeros, a row without a direction, and rows with values that are not finite."""
    rng = np.random.default_rng(9)
    made = [(rng.normal(size=(rows, *SHAPE)) * 10.0 ** rng.integers(-30, 30, (rows, 1, 1, 1))) for _ in range(count)]
    made = [gradient.astype(np.float32) for gradient in made]
    for gradient in made:
        gradient[2] = 0
        gradient[3, 0, 0] = (np.nan, np.inf, -np.inf, 0, -0.0)
        gradient[4, 1] *= rng.random((7, 5)) > 0.5
    return made


def test_nvcc_compiles_it_for_every_device_that_is_served(tmp_path):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    known = [architecture for architecture in ARCHITECTURES if architecture in listed]
    assert len(known) >= 4, f"nvcc knows {listed}"
    for architecture in known:
        output = tmp_path / f"{architecture}.cubin"
        command = [nvcc, "-cubin", f"-arch={architecture}", "-Werror", "all-warnings", "-Xptxas", "-v"]
        compiled = subprocess.run(
            [*command, *COMPILER_OPTIONS, str(SOURCE), "-o", str(output)], capture_output=True, text=True, check=False
        )
        assert compiled.returncode == 0, compiled.stderr
        spills = re.findall(r"(\d+) bytes spill", compiled.stderr)
        assert spills, "ptxas tells of every kernel"
        assert set(spills) == {"0"}
        symbols = output.read_bytes()
        assert all(b".text." + name.encode() in symbols for name in FORMATS), "extern C, so that they are found by name"


def test_the_settings_lie_as_the_compiler_lays_them():
    """Of ClimbSettings: four values of four bytes, then doubles at multiples of eight."""
    assert [SETTINGS.fields[name][1] for name in SETTINGS.names] == [0, 4, 8, 12, 16, 24]
    assert SETTINGS.itemsize == 32


@pytest.mark.parametrize("eps_255", [0.9, 2.7, 8.0, 300.0])
@pytest.mark.parametrize("size_255", [0.004, 0.2, 1.0, 400.0])
def test_steps_in_a_box_are_the_hosts_to_the_bit(eps_255, size_255):
    model = ThreatModel("linf", eps_255)
    images, start = images_and_start(model)
    climb, host = Climb(images, start, model, size_255), iterates_from(images, start, model)
    for gradient in gradients(5):
        host.step(gradient.copy(), size_255)
        np.testing.assert_array_equal(climb.step(gradient), host.bytes)
    assert not np.array_equal(host.bytes, start) or eps_255 < 1 or size_255 < 0.1


@pytest.mark.parametrize(("eps_255", "size_255"), [(0.4, 0.1), (5.0, 1.0), (40.0, 20.0), (4000.0, 900.0)])
def test_steps_in_a_euclidean_ball_are_the_hosts_but_for_the_order_of_sums(eps_255, size_255):
    model = ThreatModel("l2", eps_255)
    images, start = images_and_start(model)
    climb, host = Climb(images, start, model, size_255), iterates_from(images, start, model)
    for gradient in gradients(8):
        host.step(gradient.copy(), size_255)
        moved = climb.step(gradient)
        differences = np.abs(moved.astype(int) - host.bytes)
        assert differences.max() <= 1
        assert np.count_nonzero(differences) <= 0.01 * differences.size
        lengths = ((moved.astype(int) - images).reshape(len(images), -1) ** 2).sum(axis=1)
        assert (lengths <= eps_255**2).all(), "exactly inside the ball"


def test_steps_in_a_euclidean_ball_are_those_of_numpy_in_the_same_order():
    model, size_255 = ThreatModel("l2", 30.0), 9.0
    images, start = images_and_start(model)
    climb = Climb(images, start, model, size_255)
    delta = (start.astype(np.float32) - images).reshape(len(images), -1)
    for gradient in gradients(6):
        delta, expected = twin_of_l2_step(images, delta, gradient.reshape(len(images), -1), 30.0, size_255)
        np.testing.assert_array_equal(climb.step(gradient), expected.reshape(images.shape))
        np.testing.assert_array_equal(climb.shadow, delta)


def twin_of_l2_step(
    images: np.ndarray, delta: np.ndarray, gradient: np.ndarray, eps: float, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """One step in numpy: the new delta float32 (n, values) and the bytes uint8 (n, values)."""
    pixels = images.reshape(delta.shape).astype(np.float32)
    slope = np.where(np.isfinite(gradient), gradient, np.float32(0))
    norm = np.sqrt(block_sums(slope))
    divisor = np.where(norm > 0, norm, 1).astype(np.float32)[:, None]
    delta = delta + slope / divisor * np.float32(size)
    squares, inside = block_sums(delta), eps * L2_SLACK
    shorter = np.where(squares > inside**2, inside / np.sqrt(np.maximum(squares, 1e-30)), 1).astype(np.float32)
    delta = np.clip(delta * shorter[:, None], -pixels, 255 - pixels)
    moved = np.empty_like(delta)
    for row, position in enumerate(delta):
        scale = 1.0
        for _ in range(8):
            moved[row] = np.rint(position * np.float32(scale))
            length = float((moved[row].astype(np.float64) ** 2).sum())
            if length <= eps**2:
                break
            scale *= eps / np.sqrt(length)
        else:
            moved[row] = np.rint(position * np.float32(scale))
            if float((moved[row].astype(np.float64) ** 2).sum()) > eps**2:
                moved[row] = np.trunc(position)
    return delta, (pixels + moved).astype(np.uint8)


def block_sums(rows: np.ndarray) -> np.ndarray:
    """Squared norms in float64, summed as a block of threads does: each thread its own, then by halves."""
    own = np.zeros((len(rows), THREADS))
    for value in range(rows.shape[1]):
        own[:, value % THREADS] += rows[:, value].astype(np.float64) * rows[:, value]
    while own.shape[1] > 1:
        half = own.shape[1] // 2
        own = own[:, :half] + own[:, half:]
    return own[:, 0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fallen_images_stay_where_they_are(norm):
    model = ThreatModel(norm, 40.0)
    images, start = images_and_start(model)
    climb = Climb(images, start, model, 20.0)
    climb.standing[[1, 4]] = 0
    moved = climb.step(np.ones_like(gradients(1)[0]))
    np.testing.assert_array_equal(moved[[1, 4]], start[[1, 4]])
    assert all((moved[row] != start[row]).any() for row in (0, 2, 3, 5))


def judged_logits(rng: np.random.Generator, labels: np.ndarray, classes: int) -> np.ndarray:
    """Ties, infinities, NaNs and huge values among ordinary logits, of which the label's is often the largest."""
    logits = rng.integers(-3, 4, (len(labels), classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 4
    strange = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42], np.float32)
    places = rng.random(logits.shape) < 0.15 / classes
    logits[places] = rng.choice(strange, np.count_nonzero(places))
    return logits


@pytest.mark.parametrize("classes", [2, 3, 10, 37])
def test_an_iterate_is_judged_as_on_the_host(classes):
    rng, rows = np.random.default_rng(classes), 24
    images = rng.integers(0, 256, (rows, *SHAPE)).astype(np.uint8)
    labels = rng.integers(0, classes, rows)
    climb = Climb(images, images, ThreatModel("linf", 8.0), 1.0)
    best_logits, best = np.zeros((rows, classes), np.float32), np.zeros(images.shape, np.int8)
    host = BestIterates(images, classes)
    for _ in range(5):
        iterates = rng.integers(0, 256, images.shape).astype(np.uint8)
        logits = judged_logits(rng, labels, classes)
        left = np.flatnonzero(host.outcome.survived)
        host.judge(left, iterates[left], logits[left], labels[left])
        given = logits, labels.astype(np.int32), as_codes(iterates)
        sizes = classes, climb.values
        launch("judge", (rows, 1), *given, *sizes, climb.standing, climb.margin, best_logits, best)
        np.testing.assert_array_equal(climb.standing.astype(bool), host.outcome.survived)
        np.testing.assert_array_equal(climb.margin, host.outcome.margin)
        np.testing.assert_array_equal(best_logits, host.outcome.logits)
        np.testing.assert_array_equal(best.view(np.uint8) ^ 128, host.outcome.adversarial)
    assert 0 < host.outcome.survived.sum() < rows


def test_rows_that_fill_up_a_batch_are_no_images():
    settings = settings_of(3, "linf", 8.0, 1.0)
    margin, standing = np.zeros(5, np.float32), np.full(5, 9, np.uint8)
    launch("begin_climb", (2, 1), settings, margin, standing, 5)
    assert standing.tolist() == [1, 1, 1, 0, 0]
    assert np.isposinf(margin).all()
