"""Quantised rows and their product against the definition, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from naive_fp8 import quantized, round_e4m3

from segue.kernels.contracts import FP8_STEP
from segue.kernels.fp8 import FP8, FP8_MAX, Fp8Rows, fp8_linear, fp8_linear_scaled_mm, quantize_rows

SHAPES = [(2, 1, 16), (1, 63, 48), (3, 5, 192), (1, 7, 1152)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def generator(seed):
    return torch.Generator().manual_seed(seed)


def layer(generator, outputs: int, inputs: int, dtype=torch.float32):
    """A quantised weight [E, D] and a bias [E]."""
    weight = quantize_rows(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
    return *weight, torch.randn(outputs, generator=generator).to(dtype)


def test_every_finite_number_of_the_format_is_its_own_rounding():
    """The definition of the oracle and PyTorch's type are the same 253 numbers; between them both round alike."""
    every = torch.arange(256, dtype=torch.uint8).view(FP8).double()
    finite = every[every.isfinite()].unique()
    assert len(finite) == 253 and finite.max() == FP8_MAX
    assert torch.equal(round_e4m3(finite), finite)
    between = torch.cat([finite, (finite[1:] + finite[:-1]) / 2, finite * 1.01]).clamp(-FP8_MAX, FP8_MAX)
    assert torch.equal(round_e4m3(between), between.float().to(FP8).double())


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_rounded_to_their_own_scale(shape, dtype, gelu, generator):
    x = (torch.randn(shape, generator=generator) * torch.logspace(-3, 3, shape[1])[:, None]).to(dtype)
    values, scale = quantize_rows(x, gelu)
    truth = F.gelu(x.double(), approximate="tanh") if gelu else x.double()
    assert values.dtype == FP8 and scale.shape == shape[:-1] and values.float().isfinite().all()
    assert torch.allclose(scale.double(), truth.abs().amax(-1) / FP8_MAX, rtol=1e-6)
    error = (values.double() * scale[..., None].double() - truth).abs()
    assert (error <= FP8_STEP * torch.maximum(truth.abs(), 2**-6 * scale[..., None].double())).all()


def test_a_row_of_zeros_stays_zero_and_an_extreme_row_stays_finite():
    x = torch.tensor([[0.0] * 16, [3e38] + [0.0] * 15, [1e-30] * 16])
    values, scale = quantize_rows(x)
    assert torch.equal(values.float()[0], torch.zeros(16)) and torch.equal(values.float()[2], torch.zeros(16))
    assert values.float()[1, 0] == FP8_MAX and scale.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_product_against_fp64(shape, dtype, generator):
    """Products of e4m3 numbers are exact in fp32: the sum of D of them errs by D roundings, then the result is rounded."""
    x = torch.randn(shape, generator=generator)
    weight, weight_scale, bias = layer(generator, 32, shape[-1], dtype)
    exact = F.linear(quantized(x), weight.double() * weight_scale[:, None].double(), bias.double())
    out = fp8_linear(*quantize_rows(x), weight, weight_scale, bias)
    assert out.dtype == dtype and out.shape == (*shape[:-1], 32)
    bound = (shape[-1] + 4) * 2**-24 + torch.finfo(dtype).eps
    assert (out.double() - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
    reason="on the CPU, PyTorch before 2.12 scales fp8 products by one number for a whole tensor only",
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_vendors_product_takes_the_same_operands(shape, dtype, generator):
    """PyTorch's own row-wise product, here that of the CPU: the launcher's strides and scales mean what the reference does."""
    weight, weight_scale, bias = layer(generator, 32, shape[-1], dtype)
    larger = torch.randn(shape[0] + 1, *shape[1:], generator=generator)
    rows = Fp8Rows(*(part[: shape[0]] for part in quantize_rows(larger)))  # a row prefix of a buffer
    ours, reference = (product(*rows, weight, weight_scale, bias) for product in (fp8_linear_scaled_mm, fp8_linear))
    assert ours.shape == reference.shape and ours.dtype == dtype
    bound = 2 * (shape[-1] + 4) * 2**-24 + 2 * torch.finfo(dtype).eps
    assert (ours.double() - reference.double()).abs().max() <= bound * reference.abs().max()


def test_rows_do_not_depend_on_each_other(generator):
    x = torch.randn(4, 9, 48, generator=generator)
    for whole, part in zip(quantize_rows(x), quantize_rows(x[1:3, :5]), strict=True):
        assert torch.equal(whole[1:3, :5].float(), part.float())
