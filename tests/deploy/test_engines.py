"""The engine protocol, the ONNX Runtime engine behind it, and the proof of what it executes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import canonical_examples
from bundle_examples import build_bundle, smooth_images
from hardbit.targets import lower
from hardbit_deploy import engines
from hardbit_deploy.engines import executed_precision, open_engine, open_target
from hardbit_deploy.engines.executed_kernels import Kernel, judge_kernels, profiled_kernels
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeGradient, default_batch
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.manifest import FloatNode, IntegerNode
from hardbit_deploy.summary import precision_table
from linear_examples import linear_target

NETWORKS = {"plain": canonical_examples.plain_cnn, "residual": canonical_examples.residual_net}


@pytest.fixture(scope="module", params=NETWORKS)
def bundle(request, tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp(request.param) / "bundle", NETWORKS[request.param](), count=12)


def float_convolution(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The engine graph with one layer's weights as a float constant, as a careless exporter leaves them."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    layer = next(node for node in model.graph.node if node.name == name)
    producer = next(node for node in model.graph.node if layer.input[1] in node.output)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    codes, scale = constants[producer.input[0]], constants[producer.input[1]]
    weights = codes.astype(np.float32) * scale.reshape(-1, *[1] * (codes.ndim - 1))
    model.graph.initializer.append(numpy_helper.from_array(weights, "careless"))
    layer.input[1] = "careless"
    return model


class TestProtocol:
    def test_use_before_activation_and_after_is_refused(self):
        target = linear_target()
        images = smooth_images(2, (1, 12, 12))
        assert target.engine.infer(images).shape == (2, 10)
        target.deactivate()
        with pytest.raises(RuntimeError, match="LinearEngine is used before activate"):
            target.engine.infer(images)
        with pytest.raises(RuntimeError, match="LinearGradient"):
            target.gradient.logits(images)
        with target as again:
            assert again.engine.infer(images).shape == (2, 10)
        assert not target.engine.is_active

    @pytest.mark.parametrize(
        "images",
        [np.zeros((2, 1, 12, 12), np.float32), np.zeros((2, 1, 12, 13), np.uint8), np.zeros((1, 12, 12), np.uint8)],
    )
    def test_images_of_another_type_or_shape_are_refused(self, images):
        with pytest.raises(ValueError, match="not uint8"):
            linear_target().engine.infer(images)

    def test_labels_and_logits_must_fit_the_images(self):
        gradient, images = linear_target().gradient, smooth_images(2, (1, 12, 12))
        with pytest.raises(ValueError, match="2 images with labels"):
            gradient.gradient(images, np.zeros(3, np.int64), np.zeros((2, 10), np.float32), "margin")
        with pytest.raises(ValueError, match="2 images with labels"):
            gradient.gradient(images, np.zeros(2, np.int64), np.zeros((2, 9), np.float32), "margin")
        for seeds in (np.zeros((2, 9), np.float32), np.zeros((3, 10), np.float32), np.zeros((2, 10))):
            with pytest.raises(ValueError, match="2 images with seeds"):
                gradient.pullback(images, seeds)

    def test_a_back_end_that_answers_in_another_type_is_found_out(self, monkeypatch):
        target = linear_target()
        monkeypatch.setattr(target.engine, "infer_impl", lambda images: np.zeros((len(images), 10)))
        with pytest.raises(RuntimeError, match="gave logits float64"):
            target.engine.infer(smooth_images(2, (1, 12, 12)))

    def test_no_images_give_no_logits(self):
        target, nothing = linear_target(), np.zeros((0, 1, 12, 12), np.uint8)
        assert target.engine.infer(nothing).shape == (0, 10)
        assert target.gradient.logits(nothing).shape == (0, 10)
        empty = target.gradient.gradient(nothing, np.zeros(0, np.int64), np.zeros((0, 10), np.float32), "margin")
        assert empty.shape == nothing.shape
        assert target.gradient.pullback(nothing, np.zeros((0, 10), np.float32)).shape == nothing.shape

    def test_views_that_are_not_contiguous_are_taken(self):
        images = smooth_images(6, (1, 12, 12))
        engine = linear_target().engine
        np.testing.assert_array_equal(engine.infer(images[::2]), engine.infer(images[::2].copy()))


class TestRegistry:
    def test_importing_it_imports_no_runtime(self):
        code = "import sys, hardbit_deploy.engines; sys.exit('onnxruntime' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_an_unknown_target_is_refused_with_the_known_ones(self, tmp_path):
        bundle = build_bundle(tmp_path / "bundle", count=2, target="toaster")
        for opened in (open_target, open_engine, executed_precision):
            with pytest.raises(HardbitError, match=r"target 'toaster' is not known; this version runs .*onnxruntime"):
                opened(bundle)

    def test_a_missing_runtime_is_one_sentence_of_help(self, bundle, monkeypatch):
        def missing(name: str):
            raise ModuleNotFoundError(f"No module named {name!r}")

        monkeypatch.setattr(importlib, "import_module", missing)
        with pytest.raises(HardbitError, match=r"cannot be used here .*; pip install onnxruntime"):
            open_target(bundle)

    def test_targets_are_listed(self):
        assert engines.targets() == ("onnxruntime", "tensorrt", "tensorrt_rtx")


class TestOnnxRuntime:
    def test_engine_and_attack_graph_agree_with_the_recorded_twin(self, bundle):
        with open_target(bundle) as target:
            np.testing.assert_array_equal(target.engine.infer(np.array(bundle.images)), bundle.twin_clean_logits)
            np.testing.assert_array_equal(target.gradient.logits(np.array(bundle.images)), bundle.twin_clean_logits)
            assert target.engine.runtime == f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"

    @pytest.mark.parametrize("batch", [1, 5, 8, 64])
    def test_micro_batches_change_nothing(self, bundle, batch):
        images, labels = np.array(bundle.images), np.array(bundle.labels)
        manifest = bundle.manifest
        settings = {"input_shape": manifest.input_shape, "classes": 10, "batch": batch}
        with (
            open_target(bundle) as usual,
            OnnxRuntimeEngine(bundle.file("engine.onnx"), **settings) as engine,
            OnnxRuntimeGradient(bundle.file("attack.onnx"), **settings) as gradient,
        ):
            logits = usual.engine.infer(images)
            np.testing.assert_array_equal(engine.infer(images), logits)
            for loss in ("cross_entropy", "margin"):
                expected = usual.gradient.gradient(images, labels, logits, loss)
                found = gradient.gradient(images, labels, logits, loss)
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())

    @pytest.mark.parametrize("batch", [1, 5, 64])
    def test_a_pullback_starts_from_any_derivative_by_the_logits(self, bundle, batch):
        images, labels = np.array(bundle.images), np.array(bundle.labels)
        rows = np.arange(len(images))
        shape = bundle.manifest.input_shape
        with (
            open_target(bundle) as target,
            OnnxRuntimeGradient(bundle.file("attack.onnx"), shape, 10, batch=batch) as gradient,
        ):
            logits = target.engine.infer(images)
            expected = target.gradient.gradient(images, labels, logits, "margin")
            seeds = np.zeros_like(logits)
            logits[rows, labels] = -np.inf
            seeds[rows, logits.argmax(axis=1)] = 1
            seeds[rows, labels] -= 1
            found = gradient.pullback(images, seeds)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
            doubled = gradient.pullback(images, -2 * seeds)
            np.testing.assert_allclose(doubled, -2 * found, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
            assert not gradient.pullback(images, np.zeros_like(seeds)).any()

    def test_losses_give_different_directions_and_unknown_ones_are_refused(self, bundle):
        images, labels = np.array(bundle.images), np.array(bundle.labels)
        with open_target(bundle) as target:
            logits = target.engine.infer(images)
            entropy, margin = (target.gradient.gradient(images, labels, logits, x) for x in ("cross_entropy", "margin"))
            assert np.isfinite(entropy).all()
            assert not np.array_equal(entropy, margin)
            with pytest.raises(ValueError, match="'hinge' is not one of cross_entropy, margin"):
                target.gradient.gradient(images, labels, logits, "hinge")

    def test_a_file_that_is_no_graph_is_a_mistake_of_the_user(self, tmp_path):
        (tmp_path / "engine.onnx").write_bytes(b"nonsense")
        with pytest.raises(HardbitError, match=r"engine\.onnx: ONNX Runtime cannot load it"):
            OnnxRuntimeEngine(tmp_path / "engine.onnx", (1, 12, 12), 10).activate()

    def test_a_graph_that_takes_floats_is_no_engine(self, tmp_path):
        onnx.save(canonical_examples.plain_cnn(), tmp_path / "engine.onnx")
        with pytest.raises(HardbitError, match=r"lacks image tensor\(uint8\) among its inputs"):
            OnnxRuntimeEngine(tmp_path / "engine.onnx", (1, 12, 12), 10).activate()

    def test_a_graph_of_other_classes_or_images_is_no_engine_of_this_bundle(self, bundle):
        for input_shape, classes, expected in (
            (bundle.manifest.input_shape, 11, r"lacks logits of shape \(any, 11\) \(its own is \(batch, 10\)\)"),
            ((1, 9, 9), 10, r"lacks image of shape \(any, 1, 9, 9\)"),
        ):
            with pytest.raises(HardbitError, match=expected):
                OnnxRuntimeEngine(bundle.file("engine.onnx"), input_shape, classes).activate()
            with pytest.raises(HardbitError, match="lacks "):
                OnnxRuntimeGradient(bundle.file("attack.onnx"), input_shape, classes).activate()
        with pytest.raises(HardbitError, match="of shape"):
            profiled_kernels(bundle.file("engine.onnx"), np.array(bundle.images[:1]), 11)

    def test_an_engine_for_one_image_at_a_time_is_refused(self, bundle, tmp_path):
        model = onnx.load(bundle.file("engine.onnx"))
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, tmp_path / "engine.onnx")
        with pytest.raises(HardbitError, match=r"image of shape \(any, .*its own is \(1, "):
            OnnxRuntimeEngine(tmp_path / "engine.onnx", bundle.manifest.input_shape, 10).activate()

    def test_the_proof_of_precision_refuses_what_is_no_engine_in_one_sentence(self, bundle):
        for name in ("attack.onnx", "canonical.onnx"):
            with pytest.raises(HardbitError, match=r"image|asks for"):
                profiled_kernels(bundle.file(name), np.array(bundle.images[:1]), 10)

    def test_weights_outside_of_the_graph_are_not_followed(self, bundle, tmp_path):
        """A reference to another file leads to where no digest of the bundle reaches."""
        model = onnx.load(bundle.file("engine.onnx"))
        folder = tmp_path / "bundle"
        folder.mkdir()
        onnx.save(model, folder / "engine.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        with pytest.raises(HardbitError, match="cannot load it"):
            OnnxRuntimeEngine(folder / "engine.onnx", bundle.manifest.input_shape, 10).activate()

    def test_an_engine_is_no_attack_graph(self, bundle):
        with pytest.raises(HardbitError, match=r"lacks .*onehot"):
            OnnxRuntimeGradient(bundle.file("engine.onnx"), bundle.manifest.input_shape, 10).activate()

    def test_another_provider_is_refused(self, bundle, monkeypatch):
        monkeypatch.setattr(
            onnxruntime.InferenceSession, "get_providers", lambda _: ["Surprise", "CPUExecutionProvider"]
        )
        with pytest.raises(HardbitError, match="the session runs on Surprise"):
            open_engine(bundle)

    def test_opening_an_engine_leaves_the_process_its_floating_point_mode(self, bundle):
        code = (
            "import sys, numpy as np; from hardbit_deploy.bundle import load_bundle;"
            "from hardbit_deploy.engines import open_target; open_target(load_bundle(sys.argv[1]));"
            "sys.exit(int(np.float32(1e-38) / np.float32(8) == 0))"
        )
        assert subprocess.run([sys.executable, "-c", code, str(bundle.path)], check=False).returncode == 0

    @pytest.mark.parametrize(
        ("shape", "batch"),
        [((1, 12, 12), 32), ((1, 28, 28), 16), ((3, 32, 32), 8), ((3, 64, 64), 2), ((3, 224, 224), 1)],
    )
    def test_micro_batches_shrink_as_images_grow(self, shape, batch):
        assert default_batch(shape) == batch


class TestExecutedPrecision:
    def test_every_declared_layer_runs_on_an_integer_kernel(self, bundle):
        report = executed_precision(bundle)
        assert report.status == "integer"
        assert report.problems == ()
        assert [row.name for row in report.nodes] == [node.name for node in bundle.manifest.integer_nodes]
        for row in report.nodes:
            assert row.integer
            assert row.executed == ("QLinearConv" if row.op == "Conv" else "QGemm")
            assert row.operand_types == ("uint8", "int8")
            assert row.provider == "CPUExecutionProvider"

    def test_the_profile_tells_what_the_optimised_graph_tells(self, bundle, tmp_path):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        path = bundle.file("engine.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        saved = sorted((node.name, node.op_type) for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
        kernels = profiled_kernels(path, np.array(bundle.images[:1]), 10)
        assert sorted((kernel.node, kernel.op) for kernel in kernels) == saved

    @pytest.mark.parametrize("layer", ["conv2", "fc1"])
    def test_a_layer_that_falls_back_to_float_is_named(self, tmp_path, layer):
        canonical = canonical_examples.plain_cnn()
        engine = float_convolution(lower(canonical, "onnxruntime"), layer)
        bundle = build_bundle(tmp_path / "bundle", canonical, count=2, engine=engine)
        report = executed_precision(bundle)
        assert report.status == "wrong"
        assert [row.name for row in report.nodes if not row.integer] == [layer]
        assert len(report.problems) == 1
        assert report.problems[0].startswith(f"{layer} is declared integer and runs as ")
        assert "float" in report.problems[0]
        assert report.to_document()["problems"] == list(report.problems)

    def test_heavy_float_that_nobody_declared_is_a_problem(self, tmp_path):
        canonical = canonical_examples.plain_cnn()
        engine = float_convolution(lower(canonical, "onnxruntime"), "conv2")
        declared = {"file": "engine.onnx", "integer_nodes": [{"name": "conv1", "op": "Conv"}]}
        undeclared = build_bundle(tmp_path / "a", canonical, count=2, engine=engine, engine_section=declared)
        assert executed_precision(undeclared).status == "wrong"
        assert "conv2 runs as" in " ".join(executed_precision(undeclared).problems)
        assert "is not declared at all" in " ".join(executed_precision(undeclared).problems)
        allowed = build_bundle(
            tmp_path / "b", canonical, count=2, engine=engine, engine_section={**declared, "float_nodes": ["conv2"]}
        )
        report = executed_precision(allowed)
        assert report.status == "integer"
        (layer,) = report.declared_float  # said aloud: "1 of 1 layers" must not hide it
        assert layer.startswith("conv2 runs as ")
        assert f"declared float: {layer}" in precision_table(report.to_document())

    def test_nothing_is_left_behind_by_profiling(self, bundle, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        executed_precision(bundle)
        assert list(Path().iterdir()) == []


class TestJudgingKernels:
    PACKED = ("uint8", "float", "uint8", "float", "int8", "float", "uint8", "int32")  # the weight itself is not listed

    def integer(self, name: str) -> Kernel:
        return Kernel(name, "QLinearConv", "CPUExecutionProvider", self.PACKED)

    def real(self, name: str, op: str = "FusedConv") -> Kernel:
        return Kernel(name, op, "CPUExecutionProvider", ("float", "float", "float"))

    def judge(self, kernels, names, float_nodes=()):
        return judge_kernels(
            kernels, [IntegerNode(name, "Conv") for name in names], [FloatNode(*node) for node in float_nodes]
        )

    def test_names_that_begin_alike_are_told_apart(self):
        kernels = [self.integer("conv1_token_7"), self.real("conv10_token_8"), self.integer("conv1_1_token_9")]
        report = self.judge(kernels, ["conv1", "conv10", "conv1_1"])
        assert [row.integer for row in report.nodes] == [True, False, True]

    def test_a_layer_that_was_split_needs_all_its_parts_in_integers(self):
        report = self.judge([self.integer("conv1_token_1"), self.real("conv1_nchwc")], ["conv1"])
        assert report.nodes[0].executed == "FusedConv"
        assert report.status == "wrong"

    def test_a_layer_that_was_not_executed_is_a_problem(self):
        report = self.judge([], ["conv1"])
        assert report.problems == ("conv1 is declared integer, and no kernel of that name was executed",)

    def test_an_integer_kernel_with_float_operands_is_none(self):
        mixed = Kernel("fc", "MatMulIntegerToFloat", "CPUExecutionProvider", ("float", "int8", "float"))
        assert not self.judge([mixed], ["fc"]).nodes[0].integer

    def test_another_provider_is_a_problem(self):
        kernel = Kernel("conv1", "QLinearConv", "SurpriseProvider", self.PACKED)
        assert "by SurpriseProvider" in self.judge([kernel], ["conv1"]).problems[0]

    @pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
    def test_control_flow_that_could_run_something_else_on_the_next_image_is_a_problem(self, op):
        branch = Kernel("branch", op, "CPUExecutionProvider", ("bool",))
        assert "branch runs as" in self.judge([self.integer("conv1"), branch], ["conv1"]).problems[0]

    @pytest.mark.parametrize("op", ["Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"])
    def test_every_heavy_float_kernel_counts(self, op):
        assert self.judge([self.real("anything", op)], []).status == "wrong"

    @pytest.mark.parametrize("op", ["Relu", "Clip", "Transpose", "QLinearAdd", "MaxPool", "DequantizeLinear"])
    def test_light_kernels_do_not(self, op):
        assert self.judge([self.integer("conv1"), self.real("anything", op)], ["conv1"]).status == "integer"

    def test_a_layer_that_is_declared_float_is_told_with_its_reason(self):
        declared = [("fc", "its input is a float")]
        report = self.judge([self.integer("conv1"), self.real("fc_token_3", "Gemm")], ["conv1"], declared)
        assert report.status == "integer"
        assert report.declared_float == ("fc_token_3 runs as Gemm on float and float: its input is a float",)

    def test_float_layers_run_under_the_names_of_what_they_are_fused_with(self):
        """The names that ONNX Runtime 1.32 gives to a float Conv and Gemm with a ReLU behind each."""
        kernels = [self.real("relu1.out_nchwc", "Conv"), self.real("fused fc1", "FusedGemm")]
        declared = [("conv1", "its weights are float"), ("fc1", "its weights are float")]
        report = self.judge(kernels, [], declared)
        assert (report.status, report.problems) == ("float", ())
        assert report.declared_float == (
            "relu1.out_nchwc runs as Conv on float and float: fused, one of conv1, fc1",
            "fused fc1 runs as FusedGemm on float and float: fused, one of conv1, fc1",
        )
        assert self.judge(kernels, [], declared[:1]).status == "wrong", "one of the two is declared nowhere"

    def test_a_fused_float_layer_hides_no_integer_layer_that_fell_back(self):
        kernels = [self.real("relu1.out_nchwc", "Conv"), self.real("relu2.out_nchwc", "Conv")]
        report = self.judge(kernels, ["conv2"], [("conv1", "its weights are float")])
        assert report.status == "wrong"
        assert "conv2 is declared integer, and no kernel of that name was executed" in report.problems

    def test_control_flow_is_no_fused_layer(self):
        loop = Kernel("relu1", "Loop", "CPUExecutionProvider", ("bool",))
        assert self.judge([loop], [], [("conv1", "its weights are float")]).status == "wrong"

    def test_a_network_that_is_all_float_is_called_so(self):
        report = self.judge([self.real("conv1"), self.real("fc", "Gemm")], [], [("conv1",), ("fc",)])
        assert (report.status, report.nodes, report.problems) == ("float", (), ())
        assert "the network runs in float" in precision_table(report.to_document())
        assert self.judge([self.real("conv1"), self.real("fc", "Gemm")], [], [("conv1",)]).status == "wrong"


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_one_run_gives_logits_and_the_gradient_at_them(tmp_path, loss):
    bundle = build_bundle(tmp_path / "b", count=40)
    images, labels = np.array(bundle.images), np.arange(40) % 10
    with open_target(bundle) as target:
        logits, gradient = target.gradient.ascend(images, labels, loss)
        np.testing.assert_array_equal(logits, target.gradient.logits(images))
        np.testing.assert_array_equal(gradient, target.gradient.gradient(images, labels, logits, loss))
        empty = target.gradient.ascend(images[:0], labels[:0], loss)
    assert [part.shape for part in empty] == [(0, 10), (0, *images.shape[1:])]
