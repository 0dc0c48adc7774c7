"""What quantization, export and attack would make something else of is refused by its place, before any training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardbit.quantize import Bits, quantize
from hardbit_deploy.errors import HardbitError


class Network(nn.Module):
    """A convolution `a`, whatever `middle` makes of its output, a second convolution `b`, and a linear head."""

    def __init__(self, middle=None, ending=None, **convolution):
        super().__init__()
        self.middle, self.ending = middle, ending
        self.a = nn.Conv2d(1, 4, 3, **convolution)
        self.b = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.indices = nn.MaxPool2d(2, return_indices=True)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.good = nn.BatchNorm2d(4)
        self.layer = nn.LayerNorm((3, 3))
        self.rows = nn.BatchNorm1d(4)
        self.matrix = nn.Parameter(torch.zeros(3, 3))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.a(x)
        x = self.middle(self, x) if self.middle else x
        x = torch.flatten(F.adaptive_avg_pool2d(self.b(x), 1), 1)
        return self.ending(self, x) if self.ending else self.fc(x)


def discarded(network, x):
    network.relu(x)
    return x


MIDDLES = {
    "a layer twice": (lambda n, x: n.b(x), r"^b: a layer with weights is called twice"),
    "a ReLU's input after it was overwritten": (lambda n, x: n.relu(x) + x, r"^add: .*'relu' has overwritten in place"),
    "the same by another name": (
        lambda n, x: (lambda y: n.relu(x) + y)(n.same(x)),
        r"^add: .*'relu' has overwritten in place",
    ),
    "an overwriting function": (lambda n, x: F.relu(x, inplace=True) + x, r"^add: .*'relu' has overwritten in place"),
    "a result that is dropped": (discarded, r"^relu: its result is not used"),
    "an Add with a factor": (lambda n, x: torch.add(x, F.relu(x), alpha=2), r"^add: an Add must have two different"),
    "an Add of a value to itself": (lambda n, x: x + x, r"^add: an Add must have two different"),
    "an Add of a number": (lambda n, x: 1 + x, r"^add: an Add must have two different"),
    "a pool that rounds up": (lambda n, x: F.max_pool2d(x, 2, ceil_mode=True), r"^max_pool2d: pooling with ceil_mode"),
    "a pool with a divisor": (lambda n, x: F.avg_pool2d(x, 2, divisor_override=3), "pooling with divisor_override"),
    "a pool's indices": (lambda n, x: n.indices(x)[0], r"^getitem: .*does not know the operation 'getitem'"),
    "statistics of the batch": (lambda n, x: n.norm(x), r"^norm: a BatchNorm without running statistics"),
    "a view": (lambda n, x: x.view(-1, 4, 3, 3), r"^view: .*'view'; reshape by torch.flatten"),
    "a reshape": (lambda n, x: x.reshape(x.shape[0], -1), r"'getattr'; reshape by torch.flatten"),
    "concatenation": (lambda n, x: torch.cat([x, x], 1), r"^cat: .*does not know the operation 'cat'"),
    "Hardswish": (lambda n, x: F.hardswish(x), r"^hardswish: .*does not know the operation 'hardswish'"),
    "the batch transposed": (lambda n, x: x.transpose(0, 1), r"^transpose: Transpose along axes 0, 1 is not supported"),
    "the batch permuted": (lambda n, x: x.permute(1, 0, 2, 3), r"^permute: Transpose along axes 1, 0, 2, 3 .*axis 0"),
    "the batch split": (lambda n, x: x.unflatten(0, (1, -1)), r"^unflatten: Reshape along axes 0 .*leave axis 0"),
    "a mean of everything": (lambda n, x: x.mean(), r"^mean: ReduceMean along axes None is not supported"),
    "a mean over the batch": (lambda n, x: x.mean((0, 2)), r"^mean: ReduceMean along axes 0, 2 .*leave axis 0"),
    "a softmax along any axis": (lambda n, x: F.softmax(x), r"^softmax: Softmax along axes None .*by numbers"),
    "a tanh GELU": (lambda n, x: F.gelu(x, approximate="tanh"), r"^gelu: GELU approximated by tanh is not supported"),
    "LayerNorm of images": (lambda n, x: n.layer(x), r"^layer: LayerNorm over 2 axes .*the last axis alone"),
    "weights outside of a layer": (lambda n, x: x @ n.matrix, r"^matmul: a matrix of weights .*write nn.Linear"),
    "a product with an option": (lambda n, x: torch.mul(x, other=2), r"^mul: a Mul must have two operands"),
    "a BatchNorm twice": (lambda n, x: n.good(F.relu(n.good(x))), r"^good: a BatchNorm is called twice"),
}

ENDINGS = {
    "no batch axis left": (lambda n, x: n.fc(torch.flatten(x)), r"^flatten_1: flattening axes 0 to -1"),
    "a method that flattens all": (lambda n, x: n.fc(x.flatten()), r"^flatten_1: flattening axes 0 to -1"),
    "a BatchNorm1d alone": (lambda n, x: n.fc(n.rows(F.relu(x))), r"^rows: a BatchNorm1d must follow one Linear"),
    "no Linear at the end": (lambda n, x: x, r"^flatten: the logits must come straight from the last Linear"),
    "two results": (lambda n, x: (n.fc(x), x), r"^Network: forward\(\) must return the logits alone"),
    "a dictionary": (lambda n, x: {"logits": n.fc(x)}, r"^Network: forward\(\) must return the logits alone"),
}


@pytest.mark.parametrize(
    ("network", "message"),
    [pytest.param(Network(middle), message, id=name) for name, (middle, message) in MIDDLES.items()]
    + [pytest.param(Network(ending=ending), message, id=name) for name, (ending, message) in ENDINGS.items()]
    + [
        pytest.param(Network(padding="same"), r"^a: padding 'same' is not supported", id="padding by name"),
        pytest.param(Network(padding=1, padding_mode="reflect"), r"^a: padding 'reflect'", id="padding by reflection"),
    ],
)
def test_refused_by_place(network, message):
    with pytest.raises(HardbitError, match=message):
        quantize(network, "onnxruntime", Bits(4, 4))


@pytest.mark.parametrize(
    "middle",
    [None, lambda n, x: n.relu(x), lambda n, x: (lambda y: y + F.max_pool2d(y, 3, 1, 1))(n.relu(x))],
    ids=["plain", "in place", "in place, and only the result is read"],
)
def test_not_refused(middle):
    module = quantize(Network(middle, padding=1), "onnxruntime", Bits(4, 4))
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
