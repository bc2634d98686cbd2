"""oneDNN's linear layers against fp64: layouts, odd sizes, weights that change, numbers that are not finite."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segue.kernels import mlp, onednn
from segue.kernels.dispatch import select_kernels
from segue.kernels.judgement import FACTOR, FLOOR

pytestmark = pytest.mark.skipif(bool(onednn.obstacle(torch.device("cpu"), torch.float32)), reason="needs a PyTorch with oneDNN")
# (R, L, D, E): no token, one, odd sizes in every dimension; the width of SD3.5-large
SHAPES = [(2, 0, 8, 16), (1, 1, 64, 64), (2, 63, 72, 200), (1, 199, 48, 33), (3, 333, 64, 96), (1, 3, 2432, 64)]
OPERATIONS = ("linear", "linear_gelu")


@pytest.fixture
def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def exactly(operation, x, weight, bias):
    y = F.linear(x.double(), weight.double(), bias.double())
    return F.gelu(y, approximate="tanh") if operation == "linear_gelu" else y


def check(operation, x, weight, bias):
    """An error of at most twice that of PyTorch's own operations, and a contiguous result."""
    ours, eager = (getattr(module, operation)(x, weight, bias) for module in (onednn, mlp))
    truth = exactly(operation, x, weight, bias)
    assert ours.shape == truth.shape and ours.is_contiguous()
    if truth.numel():
        floor = FLOOR * torch.finfo(torch.float32).eps * truth.abs().max()
        assert (ours - truth).abs().max() <= FACTOR * (eager - truth).abs().max() + floor


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_against_fp64(operation, shape, normal):
    rows, tokens, inputs, outputs = shape
    check(operation, 2 * normal(rows, tokens, inputs), normal(outputs, inputs) / inputs**0.5, normal(outputs))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_layout_of_the_operands(operation, normal):
    """A slice of tokens, transposed states and weights, and a bias of every other number, whose stride oneDNN ignores."""
    x, weight, bias = normal(3, 9, 24), normal(40, 24) / 5, normal(40)
    check(operation, normal(3, 17, 24)[:, 4:13], weight, bias)
    check(operation, normal(3, 24, 9).transpose(1, 2), weight, bias)
    check(operation, x, normal(24, 40).t() / 5, bias)
    check(operation, x, normal(40, 48)[:, ::2] / 5, bias)
    check(operation, x, weight, normal(80)[::2])


@pytest.mark.parametrize("gelu", [False, True])
def test_two_streams(gelu, normal):
    streams = [(normal(2, tokens, 24), normal(40, 24) / 5, normal(40)) for tokens in (7, 33)]
    one = onednn.linear_gelu if gelu else onednn.linear
    made = onednn.grouped_linear(*streams[0], *streams[1], gelu)
    assert all(torch.equal(y, one(*stream)) for y, stream in zip(made, streams, strict=True))


def test_a_layer_follows_its_weights(normal):
    """No packed copy is kept: weights may be shared with a live pipeline."""
    x, weight, bias = normal(2, 5, 16), normal(16, 16), normal(16)
    before = onednn.linear(x, weight, bias)
    weight.mul_(2)
    assert torch.allclose(onednn.linear(x, weight, bias) - bias, 2 * (before - bias), atol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_row_does_not_depend_on_the_rows_beside_it(operation, normal):
    x, weight, bias = normal(8, 64, 48), normal(32, 48), normal(32)
    function = getattr(onednn, operation)
    assert torch.allclose(function(x, weight, bias)[:3], function(x[:3].clone(), weight, bias), atol=1e-5)


def test_a_number_that_is_not_finite_reaches_the_output(normal):
    x, weight, bias = normal(1, 3, 16), normal(8, 16), normal(8)
    x[0, 1, 15] = float("nan")
    y = onednn.linear_gelu(x, weight, bias)
    assert y[0, 1].isnan().all() and y[0, ::2].isfinite().all()


class Passes(TorchDispatchMode):
    """The operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_product_bias_and_gelu_are_one_operation(normal):
    with Passes() as passes:
        onednn.linear_gelu(normal(2, 5, 16), normal(16, 16), normal(16))
    assert [name for name in passes.names if "randn" not in name] == ["_linear_pointwise"]


def test_switched_off_it_is_no_choice_and_a_request_is_refused():
    cpu = torch.device("cpu")
    with torch.backends.mkldnn.flags(enabled=False):
        assert select_kernels(cpu, torch.float32).chosen["linear"][0] == "reference"
        with pytest.raises(ValueError, match="linear='onednn' cannot work: oneDNN is switched off"):
            select_kernels(cpu, torch.float32, overrides={"linear": "onednn"})
