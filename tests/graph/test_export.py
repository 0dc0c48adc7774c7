"""The canonical graph has the promised form, and says exactly what the PyTorch twin says."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from hardbit.graph.export import export_canonical
from hardbit.quantize import Bits, freeze, quantize
from hardbit.quantize.calibration import calibrate
from hardbit.targets import integer_nodes, lower
from hardbit.train.adversary import centred
from hardbit_deploy.errors import HardbitError
from quantized_examples import calibrated, random_images

SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32), "resnet20": (3, 32, 32)}


def run_canonical(model, images, optimise):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": batch.numpy()})[0] for batch in images.split(250)])


@pytest.mark.parametrize("bits", [8, 7, 4, 3, 2])
@pytest.mark.parametrize(("architecture", "count"), [("lenet", 2000), ("resnet8", 500), ("resnet20", 100)])
def test_labels_and_logits_equal_those_of_the_twin(architecture, count, bits):
    twin = freeze(calibrated(architecture, bits)).eval()
    model = export_canonical(twin, SHAPES[architecture])
    images = centred(torch.from_numpy(random_images(count, SHAPES[architecture], seed=2)))
    with torch.no_grad():
        expected = torch.cat([twin(batch) for batch in images.split(250)]).numpy()
    for optimise in (False, True):
        logits = run_canonical(model, images, optimise)
        assert np.array_equal(logits.argmax(1), expected.argmax(1))
        assert np.abs(logits - expected).max() == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_resnet20_equals_its_twin_on_two_thousand_images(bits):
    twin = freeze(calibrated("resnet20", bits)).eval()
    images = centred(torch.from_numpy(random_images(2000, SHAPES["resnet20"], seed=2)))
    with torch.no_grad():
        expected = torch.cat([twin(batch) for batch in images.split(250)]).numpy()
    assert np.abs(run_canonical(export_canonical(twin, SHAPES["resnet20"]), images, False) - expected).max() == 0.0


@pytest.mark.parametrize("architecture", list(SHAPES))
def test_the_form_of_the_graph(architecture):
    model = export_canonical(freeze(calibrated(architecture, 4)), SHAPES[architecture])
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert next(o.version for o in model.opset_import if o.domain == "") >= 18
    initializers = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    assert [i.name for i in graph.input] == ["image"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {"BatchNormalization", "Constant"}.isdisjoint(n.op_type for n in graph.node)
    producer = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert len(node.input) == 3  # the zero point is written out
            assert np.all(initializers[node.input[2]] == 0)
            assert np.all(initializers[node.input[1]] > 0)
            assert int({p.key: p.value for p in node.metadata_props}["hardbit.bits"]) in (4, 8, 32)
        if node.op_type in ("Conv", "Gemm"):
            weight, bias = producer[node.input[1]], producer[node.input[2]]
            assert initializers[weight.input[0]].dtype == np.int8
            assert initializers[bias.input[0]].dtype == np.int32
    assert len({n.name for n in graph.node}) == len(graph.node)


class Pools(nn.Module):
    """Functional and modular pooling in all its forms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, (3, 5), stride=(1, 2), padding=(1, 2), dilation=(1, 1), groups=2)
        self.relu = nn.ReLU()
        self.average = nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(48, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.relu(self.conv(x)), (3, 2), stride=2, padding=1)
        x = nn.functional.relu(self.conv2(self.average(x)))
        return self.fc(torch.flatten(nn.functional.avg_pool2d(x, 2), 1))


def test_strides_groups_and_pools_survive():
    torch.manual_seed(0)
    module = quantize(Pools(), "onnxruntime", Bits(8, 8))
    images = centred(torch.from_numpy(random_images(32, (2, 16, 20))))
    with torch.no_grad():
        flat = module(images).shape[1]
    assert flat == 5
    calibrate(module, [images])
    twin = freeze(module).eval()
    logits = run_canonical(export_canonical(twin, (2, 16, 20)), images, optimise=False)
    with torch.no_grad():
        assert np.array_equal(logits.argmax(1), twin(images).numpy().argmax(1))
        assert np.abs(logits - twin(images).numpy()).max() < 1e-4


def test_a_module_that_is_not_frozen_is_refused():
    with pytest.raises(HardbitError, match="not frozen"):
        export_canonical(calibrated("lenet", 4), SHAPES["lenet"])


class Tutorial(nn.Module):
    """The shapes that beginners write: pooling before the ReLU, one pool in two places, layers with odd names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.image = nn.Conv2d(6, 8, 3)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.drop = nn.Dropout2d()
        self.pool = nn.MaxPool2d(2)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.logits = nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.relu(self.pool(self.conv1(x)))
        x = self.pool(self.drop(self.norm(self.image(x)))).relu()
        return self.logits(torch.flatten(nn.functional.adaptive_avg_pool2d(self.squeeze(x), [1, 1]), 1))


class Branches(nn.Module):
    """What one layer gives is read by a ReLU, by a pool and by an Add; three summands; the image as a summand."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.b = nn.Conv2d(3, 3, 3, padding=1)
        self.c = nn.Conv2d(3, 3, 3, padding=2, dilation=2, groups=3)
        self.fc = nn.Linear(3 * 49, 5, bias=False)

    def forward(self, x):
        y = nn.functional.max_pool2d(self.a(x), 3, stride=1, padding=1)
        z = self.b(y) + y.relu() + x
        return self.fc(torch.flatten(nn.functional.avg_pool2d(self.c(z), 2), 1))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("network", "shape"), [(Tutorial, (1, 18, 18)), (Branches, (3, 14, 14))])
def test_networks_that_users_bring_run_in_integers_as_their_twins_say(network, shape, bits):
    torch.manual_seed(0)
    plain = network()
    layers = {name for name, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    module = quantize(plain, "onnxruntime", Bits(bits, bits))
    pixels = random_images(200, shape)
    images = centred(torch.from_numpy(pixels))
    calibrate(module, images.split(50))
    with torch.no_grad():
        for batch in images.split(50):
            module(batch)
    twin = freeze(module.eval()).eval()
    model = export_canonical(twin, shape)
    with torch.no_grad():
        expected, plain_logits = twin(images).numpy(), plain.eval()(images).numpy()
    engine = lower(model, "onnxruntime")
    assert {node["name"].removesuffix("_1") for node in integer_nodes(model)} == layers
    for logits in (run_canonical(model, images, False), run_canonical(engine, torch.from_numpy(pixels), True)):
        assert np.array_equal(logits.argmax(1), expected.argmax(1))
        assert np.abs(logits - expected).max() <= 1e-4
    if bits == 8 and network is Branches:  # without BatchNorm, whose statistics the plain network lacks
        assert np.corrcoef(expected.ravel(), plain_logits.ravel())[0, 1] > 0.99


class Rows(nn.Module):
    """A Linear layer on the rows of an image, and one on all of it."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(8, 4)
        self.fc = nn.Linear(32, 2)

    def forward(self, x):
        return self.fc(torch.flatten(self.rows(x), 1))


def test_a_linear_layer_on_rows_of_an_image_is_a_gemm_of_all_rows():
    torch.manual_seed(0)
    module = quantize(Rows(), "onnxruntime", Bits(4, 4))
    pixels = random_images(50, (1, 8, 8))
    images = centred(torch.from_numpy(pixels))
    calibrate(module, [images])
    twin = freeze(module).eval()
    model = export_canonical(twin, (1, 8, 8))
    with torch.no_grad():
        expected = twin(images).numpy()
    assert integer_nodes(model) == [{"name": "rows", "op": "Gemm"}, {"name": "fc", "op": "Gemm"}]
    assert np.array_equal(run_canonical(model, images, False), expected)
    engine = lower(model, "onnxruntime")
    assert np.array_equal(run_canonical(engine, torch.from_numpy(pixels), True), expected)


class BatchLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 2)

    def forward(self, x):
        return self.fc(torch.flatten(x.permute(0, 3, 1, 2).transpose(-1, -4), 1))


def test_images_of_another_shape_and_a_batch_that_moves_are_refused_by_place():
    with pytest.raises(HardbitError, match=r"^fc1: the network does not take images of shape \(1, 20, 20\)"):
        export_canonical(freeze(calibrated("lenet", 4)), (1, 20, 20))
    odd = freeze(quantize(BatchLast(), "onnxruntime", Bits(8, 8)))
    with pytest.raises(HardbitError, match=r"^transpose: Transpose gives .*\(8, 8, 1, 5\) for 5 images; leave"):
        export_canonical(odd, (1, 8, 8))
