"""The TensorRT back end against a recording GPU: numbers, the order of calls, addresses, teardown, and what goes wrong.

The networks behind the plans are linear ones in numpy, the kernels of the PGD step the real ones on a CPU.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hardbit_deploy.attacks import ThreatModel, pgd
from hardbit_deploy.engines import base, cuda_context, cuda_graphs, tensorrt
from hardbit_deploy.engines.tensorrt_build import BuildSettings
from hardbit_deploy.errors import HardbitError
from linear_examples import LinearEngine, LinearGradient, linear_logits
from recording_gpu import Machine, Network, install, tensorrt_of

SHAPE, CLASSES, LARGEST = (1, 5, 5), 4, 8
WEIGHTS = np.random.default_rng(0).normal(size=(CLASSES, 25)).astype(np.float32) * 4


def bytes_of(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(int) + 128).astype(np.uint8)


def engine_network(**changes: Any) -> Network:
    tensors = {"image": ("INT8", (-1, *SHAPE), True), "logits": ("FLOAT", (-1, CLASSES), False)}
    settings: dict[str, Any] = {"largest": LARGEST, "workspace": 5000, **changes}
    compute = lambda given: {"logits": linear_logits(WEIGHTS, bytes_of(given["image"]))}  # noqa: E731
    return Network({**tensors, **settings.pop("tensors", {})}, compute, **settings)


def attack_network(largest: int = LARGEST) -> Network:
    per_class = ("FLOAT", (-1, CLASSES), True)
    tensors = {
        "image": ("INT8", (-1, *SHAPE), True),
        "onehot": per_class,
        "engine_logits": per_class,
        "own_logits": ("BOOL", (), True),
        "loss_weights": ("FLOAT", (2,), True),
        "seed": per_class,
        "gradient": ("FLOAT", (-1, *SHAPE), False),
        "logits": ("FLOAT", (-1, CLASSES), False),
        "loss": ("FLOAT", (-1,), False),
    }
    return Network(tensors, attack_outputs, largest)


def attack_outputs(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As an attack graph: rows without a label, which fill up a batch, have only their seed."""
    images = bytes_of(given["image"])
    own = linear_logits(WEIGHTS, images)
    judged = own if given["own_logits"] else given["engine_logits"]
    graph = LinearGradient(WEIGHTS, SHAPE)
    gradient = graph.pullback_impl(images, given["seed"])
    labelled = given["onehot"].any(axis=1)
    labels = given["onehot"].argmax(axis=1)[labelled]
    for weight, loss in zip(given["loss_weights"], ("cross_entropy", "margin"), strict=True):
        if weight and labelled.any():
            gradient[labelled] += weight * graph.gradient_impl(images[labelled], labels, judged[labelled], loss)
    return {"gradient": gradient, "logits": own, "loss": np.zeros(len(images), np.float32)}


class Board:
    """A machine with its modules in place of the real ones, and a bundle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.networks = {b"engine.onnx plan": engine_network(), b"attack.onnx plan": attack_network()}
        self.faults: dict[str, str] = {}
        self.built: list[tuple[str, BuildSettings, str]] = []
        self._patch = monkeypatch
        install(monkeypatch, self.machine)
        self.use_faults()
        monkeypatch.setattr(tensorrt, "default_folder", lambda: tmp_path / "plans")
        monkeypatch.setattr(tensorrt, "build_plan", self._build)
        for name in ("engine.onnx", "attack.onnx"):
            (tmp_path / name).write_bytes(name.encode())
        manifest = SimpleNamespace(
            name="example",
            target="tensorrt",
            input_shape=SHAPE,
            classes=CLASSES,
            engine_file="engine.onnx",
            attack_file="attack.onnx",
            smooth_attack_file=None,
            integer_nodes=(),
            float_nodes=(),
            files={name: SimpleNamespace(sha256=name) for name in ("engine.onnx", "attack.onnx")},
        )
        self.bundle: Any = SimpleNamespace(manifest=manifest, file=lambda name: tmp_path / name)

    def use_faults(self, **faults: str) -> None:
        self._patch.setitem(sys.modules, "tensorrt", tensorrt_of(self.machine, self.networks, **faults))

    def _build(self, graph: bytes, settings: BuildSettings, module: str) -> Any:
        self.built.append((graph.decode(), settings, module))
        plan = graph + b" plan"
        digests = {"plan": hashlib.sha256(plan).hexdigest()}
        return SimpleNamespace(
            plan=plan, layers=(), log=(), digests=digests, seconds=0.0, settings=settings, timing_cache=b""
        )

    def engine(self) -> tensorrt.TensorRTEngine:
        return tensorrt.open_engine(self.bundle).activate()

    def gradient(self) -> tensorrt.TensorRTGradient:
        return tensorrt.open_gradient(self.bundle).activate()


@pytest.fixture
def board(monkeypatch, tmp_path):
    made = Board(monkeypatch, tmp_path)
    yield made
    cuda_context.open_device.cache_clear()


def images_and_labels(count: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(1).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    return images, linear_logits(WEIGHTS, images).argmax(axis=1).astype(np.int64)


def nothing_is_left(machine: Machine) -> bool:
    gc.collect()
    return not machine.allocations and not machine.graphs and not any(machine.live.values()) and not machine.depth()


class TestResults:
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 21])
    def test_logits_are_those_of_the_network_plainly_and_replayed(self, board, count):
        images, _ = images_and_labels(count)
        with board.engine() as engine:
            for shift in range(4):
                shown = images + np.uint8(shift)
                np.testing.assert_array_equal(engine.infer(shown), linear_logits(WEIGHTS, shown))
        assert "graph launch" in board.machine.names()

    def test_gradients_are_those_of_the_attack_graph(self, board):
        images, labels = images_and_labels(11)
        reference = LinearGradient(WEIGHTS, SHAPE).activate()
        seeds = np.random.default_rng(3).normal(size=(11, CLASSES)).astype(np.float32)
        logits = linear_logits(WEIGHTS, images) + seeds
        with board.gradient() as gradient:
            for loss in ("cross_entropy", "margin"):
                expected = reference.gradient(images, labels, logits, loss)
                np.testing.assert_allclose(gradient.gradient(images, labels, logits, loss), expected, rtol=1e-5)
                own, direction = gradient.ascend(images, labels, loss)
                np.testing.assert_array_equal(own, linear_logits(WEIGHTS, images))
                expected = reference.gradient(images, labels, own, loss)
                np.testing.assert_allclose(direction, expected, rtol=1e-5)
            expected = reference.pullback(images, seeds)
            np.testing.assert_allclose(gradient.pullback(images, seeds), expected, rtol=1e-5)
            np.testing.assert_array_equal(gradient.logits(images), linear_logits(WEIGHTS, images))
            with pytest.raises(ValueError, match="is not one of"):
                gradient.gradient(images, labels, logits, "hinge")

    def test_the_runtime_is_named_with_device_and_plan(self, board):
        with board.engine() as engine:
            assert engine.runtime.startswith("tensorrt 10.3.0 on Recording GPU sm_87, plan ")

    def test_device_time_is_that_between_the_events_summed_over_batches(self, board):
        images, _ = images_and_labels(2 * LARGEST + 1)
        with board.engine() as engine:
            assert engine.device_ms is None
            engine.infer(images)
            assert engine.device_ms == pytest.approx(3 * 1.5)
            engine.infer(images[:1])
            assert engine.device_ms == pytest.approx(1.5)

    def test_every_part_is_built_once_for_its_use(self, board):
        for _ in range(2):
            with board.engine(), board.gradient():
                pass
        largest = tensorrt._largest_batch(SHAPE)
        assert [(graph, settings.batches, module) for graph, settings, module in board.built] == [
            ("engine.onnx", ((1, 1, largest),), "tensorrt"),
            ("attack.onnx", ((1, largest, largest),), "tensorrt"),
        ]
        assert [tensorrt._largest_batch(shape) for shape in ((3, 32, 32), (3, 224, 224), (3, 4096, 4096))] == [
            256,
            16,
            1,
        ]

    def test_precision_is_judged_from_what_the_inspector_tells(self, board):
        board.networks[b"engine.onnx plan"] = engine_network(information='{"Layers": ["only names"]}')
        with pytest.raises(HardbitError, match="names"):
            tensorrt.executed_precision(board.bundle)
        board.networks[b"engine.onnx plan"] = engine_network()
        assert tensorrt.executed_precision(board.bundle).status == "float"
        assert nothing_is_left(board.machine)

    def test_layers_are_not_shown(self, board):
        with pytest.raises(HardbitError, match="codes of its layers"):
            tensorrt.open_taps(board.bundle)


class TestOrder:
    def test_a_query_is_copy_run_copy_wait(self, board):
        image = images_and_labels(1)[0]
        with board.engine() as engine:
            engine.infer(image)
            del board.machine.calls[:]
            engine.infer(image)
            captured = board.machine.names()
            del board.machine.calls[:]
            engine.infer(image)
            replayed = board.machine.calls[:]
        run = ["begin capture", "execute", "end capture", "graph.destroy"]
        assert captured == ["htod", "event.record", *run, "graph launch", "event.record", "dtoh", "synchronize"]
        names = [call[0] for call in replayed]
        assert names == ["htod", "event.record", "graph launch", "event.record", "dtoh", "synchronize"]
        assert len({call[1] for call in replayed if call[0] in ("event.record", "graph launch", "synchronize")}) == 1
        assert [call[-1] for call in replayed if call[0] in ("htod", "dtoh")] == [25, 4 * CLASSES], "no filled-up rows"

    def test_the_stream_does_not_wait_for_the_default_one(self, board):
        with board.engine():
            assert [call[2] for call in board.machine.calls if call[0] == "stream"] == [1]

    def test_running_allocates_nothing(self, board):
        images, _ = images_and_labels(LARGEST)
        with board.engine() as engine:
            assert board.machine.names().count("mem_alloc") == 1, "one arena"
            before = board.machine.used_memory()
            for count in range(1, LARGEST + 1):
                engine.infer(images[:count])
            assert board.machine.used_memory() == before
            assert board.machine.names().count("mem_alloc") == 1

    def test_images_that_fall_meet_a_handful_of_batch_sizes(self, board):
        images, _ = images_and_labels(LARGEST)
        with board.engine() as engine:
            for count in range(LARGEST, 0, -1):
                engine.infer(images[:count])
            assert {call[3] for call in board.machine.calls if call[0] == "execute"} == {1, 2, 4, 8}

    def test_tensors_do_not_overlap(self, board):
        with board.gradient() as gradient:
            gradient.logits(images_and_labels(LARGEST)[0])
            (addresses,) = [call[2] for call in board.machine.calls if call[0] == "execute"]
        plan_sizes = dict.fromkeys(("onehot", "engine_logits", "seed", "logits"), LARGEST * 4 * CLASSES)
        sizes = {**plan_sizes, "image": LARGEST * 25, "gradient": LARGEST * 100, "own_logits": 1}
        sizes |= {"loss_weights": 8, "loss": 4 * LARGEST}
        spans = sorted((address, address + sizes[name]) for name, address in addresses.items())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert all(address % 256 == 0 for address in addresses.values())

    def test_everything_goes_in_order_and_the_context_stays(self, board):
        engine = board.engine()
        for _ in range(2):
            engine.infer(images_and_labels(1)[0])
        del board.machine.calls[:]
        engine.deactivate()
        gone = [name for name in board.machine.names() if name.endswith(("destroy", "free"))]
        order = ["executable", "execution context", "pinned", "pinned", "mem_free", "event", "event", "stream"]
        assert [name.removesuffix(".destroy") for name in gone] == [*order, "engine", "runtime"]
        assert board.machine.names()[0] == "synchronize", "nothing is freed under a running kernel"
        assert nothing_is_left(board.machine)

    def test_the_primary_context_is_taken_once_and_never_left_current(self, board):
        for _ in range(3):
            with board.engine() as engine:
                assert board.machine.depth() == 0
                engine.infer(images_and_labels(1)[0])
        assert board.machine.names().count("retain_primary_context") == 1
        assert board.machine.names().count("init") == 1
        assert "detach" not in board.machine.names(), "not before the process ends"
        assert board.machine.depth() == 0

    def test_it_can_be_opened_again_and_used_and_closed_from_other_threads(self, board):
        image, found = images_and_labels(1)[0], []
        engine = board.engine()
        for work in (lambda: found.append(engine.infer(image)), engine.deactivate):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        np.testing.assert_array_equal(found[0], linear_logits(WEIGHTS, image))
        assert nothing_is_left(board.machine)
        with pytest.raises(RuntimeError, match="deactivate"):
            engine.infer(image)
        with engine:
            np.testing.assert_array_equal(engine.infer(image), found[0])

    def test_what_cannot_be_captured_runs_plainly(self, board):
        board.machine.capture_error = 901
        image = images_and_labels(1)[0]
        with board.engine() as engine:
            for _ in range(4):
                np.testing.assert_array_equal(engine.infer(image), linear_logits(WEIGHTS, image))
            replayed = engine._opened.execution._launches[1].replayed
            assert "cuStreamEndCapture gave error 901" in replayed.refusal
        names = board.machine.names()
        assert names.count("begin capture") == 1, "it is not tried again"
        assert "graph launch" not in names
        assert nothing_is_left(board.machine)


class TestRefusals:
    @pytest.mark.parametrize(
        ("machine", "expected"),
        [
            (Machine(init_error="cuInit failed: no CUDA-capable device is detected"), "no GPU was found.*nvidia-smi"),
            (Machine(devices=0), "there are 0 GPUs"),
            (
                Machine(init_error="cuInit failed: system has unsupported display driver / cuda driver combination"),
                "do not fit together.*update the NVIDIA driver",
            ),
            (Machine(built_for=(13, 0, 0), serves=12060), r"serves CUDA 12\.6, PyCUDA was built for CUDA 13\.0"),
            (Machine(init_error="cuInit failed: unknown error"), "CUDA failed"),
        ],
        ids=["no device", "no such device", "mismatch", "older driver", "unknown"],
    )
    def test_a_device_that_cannot_be_had(self, monkeypatch, tmp_path, machine, expected):
        board = Board(monkeypatch, tmp_path, machine)
        with pytest.raises(HardbitError, match=expected):
            board.engine()
        assert board.built == [], "nothing is built for a device that is not there"

    def test_a_missing_pycuda(self, board, monkeypatch):
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
        with pytest.raises(HardbitError, match=r"PyCUDA cannot be used here.*pip install pycuda"):
            board.engine()

    def test_a_missing_driver_library(self, monkeypatch):
        def missing(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(cuda_graphs.ctypes, "CDLL", missing)
        with pytest.raises(HardbitError, match=r"libcuda\.so\.1.*install the NVIDIA driver"):
            cuda_graphs.load_graph_driver()

    def test_too_little_memory_leaves_nothing_behind(self, board):
        board.machine.memory = 4000
        with pytest.raises(HardbitError, match=r"not enough memory left.*fewer workers"):
            board.engine()
        assert nothing_is_left(board.machine)

    @pytest.mark.parametrize(
        ("fault", "said", "expected"),
        [
            (
                "no_runtime",
                "CUDA initialization failure with error: 35",
                "does not start.*35.*update the NVIDIA driver",
            ),
            ("no_context", "OutOfMemory", "gives no execution context.*OutOfMemory.*fewer workers"),
            ("no_shape", "out of range", "does not take image of shape"),
            ("no_run", "a kernel failed", "does not run it.*a kernel failed"),
        ],
    )
    def test_what_tensorrt_refuses_is_told_in_its_words(self, board, fault, said, expected):
        board.use_faults(**{fault: said})
        with pytest.raises(HardbitError, match=expected) as caught, board.engine() as engine:
            engine.infer(images_and_labels(1)[0])
        assert "never mind" not in str(caught.value)
        del caught
        assert nothing_is_left(board.machine)

    def test_a_plan_that_does_not_load(self, board):
        del board.networks[b"engine.onnx plan"]
        with pytest.raises(HardbitError, match=r"cannot load the plan.*of another version.*build it anew"):
            board.engine()
        assert nothing_is_left(board.machine)

    @pytest.mark.parametrize(
        ("tensors", "expected"),
        [
            ({"image": ("FLOAT", (-1, *SHAPE), True)}, "lacks image int8"),
            ({"logits": ("FLOAT", (-1, CLASSES + 1), False)}, "lacks logits of shape"),
            ({"extra": ("FLOAT", (-1, 2), True)}, "asks for extra"),
            ({"image": ("INT8", (4, *SHAPE), True)}, "takes no batch"),
        ],
    )
    def test_a_plan_of_another_signature(self, board, tensors, expected):
        board.networks[b"engine.onnx plan"] = engine_network(tensors=tensors)
        with pytest.raises(HardbitError, match=expected):
            board.engine()
        assert nothing_is_left(board.machine)


class TestClimbs:
    MODELS = (ThreatModel("linf", 9.0), ThreatModel("l2", 40.0))

    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.norm)
    @pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
    @pytest.mark.parametrize("steps", [1, 4, 7])
    def test_the_device_finds_what_the_host_finds(self, board, model, loss, steps):
        images, labels = images_and_labels(2 * LARGEST + 3)
        settings = {"steps": steps, "restarts": 2, "loss": loss, "seed": 5}
        host = pgd(LinearEngine(WEIGHTS, SHAPE).activate(), LinearGradient(WEIGHTS, SHAPE).activate(), images, labels,
                   model, **settings)  # fmt: skip
        with board.engine() as engine, board.gradient() as gradient:
            device = pgd(engine, gradient, images, labels, model, **settings)
        np.testing.assert_array_equal(device.survived, host.survived)
        assert 0 < host.survived.sum() < len(images)
        np.testing.assert_array_equal(device.logits, linear_logits(WEIGHTS, device.adversarial))
        same = (device.adversarial == host.adversarial).reshape(len(images), -1).all(axis=1)
        assert same.all() if model.norm == "linf" else same.mean() > 0.9
        np.testing.assert_allclose(device.margin, host.margin, atol=0 if model.norm == "linf" else 0.2)

    def test_steps_pass_no_image_and_no_gradient_through_the_host(self, board):
        images, labels = images_and_labels(LARGEST)
        model = self.MODELS[0]
        with board.engine() as engine, board.gradient() as gradient:
            climber = engine.climber(gradient)
            assert climber is engine.climber(gradient)
            given = {"norm": "linf", "eps_255": 9.0, "size_255": 1.0, "loss": "margin"}
            climber.climb(images, images, labels, steps=5, **given)
            del board.machine.calls[:]
            climber.climb(images, images, labels, steps=20, **given)
            names = board.machine.names()
            assert names.count("synchronize") == 1
            copies = [place for place, name in enumerate(names) if name in ("htod", "dtoh")]
            launches = [place for place, name in enumerate(names) if name == "graph launch"]
            assert len(launches) == 20, "one launch a step; the last judgement follows plainly the first time"
            assert not any(launches[0] < place < launches[-1] for place in copies)
            assert names.count("mem_alloc") == 0
            assert pgd(engine, gradient, images, labels, model, steps=3).survived.shape == (LARGEST,)

    def test_buffers_of_iterates_take_turns(self, board):
        images, labels = images_and_labels(LARGEST)
        with board.engine() as engine, board.gradient() as gradient:
            climber = engine.climber(gradient)
            del board.machine.calls[:]
            climber.climb(images, images, labels, norm="linf", eps_255=9.0, steps=2, size_255=1.0, loss="margin")
            calls = board.machine.calls
        runs = [call for call in calls if call[0] in ("execute", "judge", "step_linf")]
        assert [call[0] for call in runs] == ["execute", "judge", "execute", "step_linf"] * 2 + ["execute", "judge"]
        even, odd = runs[0][2]["image"], runs[4][2]["image"]
        assert even != odd
        assert [call[2]["image"] for call in runs if call[0] == "execute"] == [even, even, odd, odd, even]
        moves = [(call[-4], call[-1]) for call in runs if call[0] == "step_linf"]
        assert moves == [(even, odd), (odd, even)]
        engine_logits, attack = runs[0][2]["logits"], runs[2][2]
        assert attack["engine_logits"] == engine_logits, "logits of the engine feed the attack graph on the device"
        assert attack["logits"] != engine_logits
        assert attack["gradient"] == runs[3][3]
        assert runs[1][2] == engine_logits

    def test_objectives_and_other_gradients_go_step_by_step(self, board, monkeypatch):
        from hardbit_deploy.attacks.objectives import DLR

        images, labels = images_and_labels(5)
        other = LinearGradient(WEIGHTS, SHAPE).activate()
        with board.engine() as engine, board.gradient() as gradient:
            assert engine.climber(other) is None
            pgd(engine, gradient, images, labels, self.MODELS[0], steps=2, objective=DLR)
            pgd(engine, other, images, labels, self.MODELS[0], steps=2)
            assert "SourceModule" not in board.machine.names()
        assert base.Engine.climber(engine, gradient) is None

    def test_without_a_compiler_the_host_takes_the_steps_and_the_log_says_so(self, board, monkeypatch, caplog):
        monkeypatch.setattr(tensorrt, "find_nvcc", lambda: None)
        images, labels = images_and_labels(5)
        with board.engine() as engine, board.gradient() as gradient:
            found = pgd(engine, gradient, images, labels, self.MODELS[0], steps=2)
        assert found.survived.shape == (5,)
        assert caplog.text.count("no nvcc was found") == 1

    def test_a_source_that_does_not_compile_is_told(self, board):
        board.machine.compile_error = True
        refused = pytest.raises(HardbitError, match=r"pgd_step\.cu: nvcc cannot compile it.*planted")
        with board.engine() as engine, board.gradient() as gradient, refused:
            engine.climber(gradient)
        del refused  # it holds the frames of what failed
        assert nothing_is_left(board.machine)

    def test_too_little_memory_for_climbs(self, board):
        with board.engine() as engine, board.gradient() as gradient:
            board.machine.memory = board.machine.used_memory() + 1000
            with pytest.raises(HardbitError, match="not enough memory left"):
                engine.climber(gradient)
        assert nothing_is_left(board.machine)

    @pytest.mark.parametrize("first", ["engine", "gradient"])
    def test_it_goes_with_whichever_of_both_goes_first(self, board, first):
        images, labels = images_and_labels(3)
        engine, gradient = board.engine(), board.gradient()
        climber = engine.climber(gradient)
        given = {"norm": "l2", "eps_255": 9.0, "size_255": 1.0, "loss": "margin", "steps": 3}
        for _ in range(3):
            climber.climb(images, images, labels, **given)
        parts = [engine, gradient] if first == "engine" else [gradient, engine]
        del board.machine.calls[:]
        parts[0].deactivate()
        names = [name.removesuffix(".destroy") for name in board.machine.names() if "synchronize" not in name]
        assert names.index("executable") < names.index("execution context") < names.index("mem_free")
        assert names.index("mem_free") < names.index("module") < names.index("stream") < names.index("engine")
        with pytest.raises(RuntimeError, match="closed"):
            climber.climb(images, images, labels, **given)
        parts[1].deactivate()
        del climber
        assert nothing_is_left(board.machine)

    def test_an_attack_graph_of_smaller_batches_decides_how_many_it_takes(self, board):
        board.networks[b"attack.onnx plan"] = attack_network(largest=4)
        images, labels = images_and_labels(LARGEST)
        with board.engine() as engine, board.gradient() as gradient:
            climber = engine.climber(gradient)
            assert climber.images_in_flight == 4
            with pytest.raises(ValueError, match="takes 1 to 4"):
                climber.climb(images, images, labels, norm="l2", eps_255=9.0, size_255=1.0, loss="margin", steps=3)
            assert pgd(engine, gradient, images, labels, self.MODELS[1], steps=2).survived.shape == (LARGEST,)


def test_a_gpu_that_tensorrt_for_rtx_does_not_serve_is_refused_before_anything_is_built(board: Board) -> None:
    board.bundle.manifest.target = "tensorrt_rtx"
    for use in (board.engine, board.gradient, lambda: tensorrt.executed_precision(board.bundle)):
        with pytest.raises(HardbitError, match=r"does not serve Recording GPU \(compute capability 8\.7\)") as caught:
            use()
        assert caught.value.where == "target tensorrt_rtx"
    assert board.built == []
