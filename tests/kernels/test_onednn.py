"""oneDNN's linear layers against fp64: layouts, odd sizes, weights that change, numbers that are not finite; and where they
must leave the work to PyTorch: under autocast, between dtypes, and where derivatives are taken.
"""

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


def called(operation, x, weight, bias, module=onednn):
    """One output of an operation; those of two streams are called with the same stream twice."""
    if operation == "project_slices":
        return mlp.with_biases(module.project_slices)(x, weight, bias, x, weight, bias)[1]
    return getattr(module, operation)(x, weight, bias)


EVERY = (*OPERATIONS, "project_slices")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", EVERY)
def test_autocast_takes_pytorch_s_own(operation, dtype, normal):
    """Also where a state has its dtype already, as attention gives it, and a weight is fp32."""
    x, weight, bias = normal(2, 5, 16).to(dtype), normal(24, 16), normal(24)
    with torch.autocast("cpu", torch.bfloat16):
        ours, eager = (called(operation, x, weight, bias, module) for module in (onednn, mlp))
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, eager)


@pytest.mark.parametrize("operation", EVERY)
def test_two_dtypes_are_refused_in_pytorch_s_words(operation, normal):
    with pytest.raises(RuntimeError, match="same dtype, but got BFloat16 and Float"):
        called(operation, normal(2, 5, 16).bfloat16(), normal(24, 16), normal(24))


@pytest.mark.parametrize("differentiated", range(3))
@pytest.mark.parametrize("operation", EVERY)
def test_gradients_are_those_of_pytorch_s_own_operations(operation, differentiated, normal):
    operands = [normal(2, 5, 16), normal(24, 16) / 4, normal(24)]
    operands[differentiated].requires_grad_(True)
    cotangent = normal(2, 5, 24)

    def gradient(module):
        return torch.autograd.grad(called(operation, *operands, module), operands[differentiated], cotangent)[0]

    found, wanted = gradient(onednn), gradient(mlp)
    assert wanted.abs().max() > 0.1
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("differentiated", range(3))
@pytest.mark.parametrize("operation", EVERY)
def test_tangents_are_those_of_pytorch_s_own_operations(operation, differentiated, normal):
    operands = [normal(2, 5, 16), normal(24, 16) / 4, normal(24)]
    tangent = normal(*operands[differentiated].shape)

    def along(module):
        def varied(operand):
            return called(operation, *operands[:differentiated], operand, *operands[differentiated + 1 :], module)

        return torch.func.jvp(varied, (operands[differentiated],), (tangent,))[1]

    assert along(mlp).abs().max() > 0.1
    assert torch.allclose(along(onednn), along(mlp), rtol=1e-5, atol=1e-5)


def test_weights_of_a_network_in_training_are_served_where_nothing_is_recorded(normal):
    x, weight, bias = normal(2, 5, 16), normal(16, 16).requires_grad_(True), normal(16)
    with torch.no_grad(), Passes() as passes:
        onednn.linear(x, weight, bias)
    assert passes.names == ["_linear_pointwise"]


def test_switched_off_it_is_no_choice_and_a_request_is_refused():
    cpu = torch.device("cpu")
    with torch.backends.mkldnn.flags(enabled=False):
        assert select_kernels(cpu, torch.float32).chosen["linear"][0] == "reference"
        with pytest.raises(ValueError, match="linear='onednn' cannot work: oneDNN is switched off"):
            select_kernels(cpu, torch.float32, overrides={"linear": "onednn"})
