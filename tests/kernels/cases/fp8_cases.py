"""The kernel that quantises rows, alone and with the GELU."""

import pytest
import torch

from segue.kernels import judgement
from segue.kernels.contracts import FP8_STEP
from segue.kernels.fp8 import FP8, fp8_linear, quantize_rows, quantize_rows_triton
from segue.kernels.triton_runtime import interpreting, observe_launches

# [R, L, D]: odd token counts; hidden widths and the width between the layers of an MLP
SHAPES = [(2, 1, 64), (1, 63, 192), (3, 5, 1152), (1, 3, 9728)]


def check(values, scale, x, gelu):
    """Scales to fp32 rounding; values equal, or one e4m3 step apart where a value sits on a rounding boundary."""
    _, expected = quantize_rows(x, gelu)
    assert values.dtype == FP8 and values.shape == x.shape and scale.shape == expected.shape
    # the GELU is computed by another formula: a few roundings of fp32, relative to the largest value of a row
    assert torch.allclose(scale, expected, rtol=1e-5)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh") if gelu else x.double()
    truth = exact / expected[..., None].double()
    wrong = (values.double() - truth).abs() > FP8_STEP * truth.abs().clamp_min(2**-6)
    if interpreting():
        # the interpreter truncates subnormals, and drops the carry of a mantissa that rounds up to a power of two
        wrong &= (torch.frexp(truth.abs())[0] < 1 - 2**-5) & (truth.abs() > 2**-6)
    else:
        assert judgement.bias(values.double(), truth).passed
    assert not wrong.any()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(shape, gelu, dtype, normal):
    x = normal(*shape, dtype=dtype) * 3
    check(*quantize_rows_triton(x, gelu), x, gelu)


@pytest.mark.parametrize("gelu", [False, True])
def test_rows_whose_scale_is_set_by_outlier_channels(gelu, dtype, normal):
    """Three channels 30 to 100 times as large: the others keep their three bits, at a hundredth of the range."""
    x = normal(2, 33, 192, dtype=dtype)
    x[..., [3, 96, 190]] *= torch.tensor([30.0, 100.0, 60.0], device=x.device).to(dtype)
    values, scale = quantize_rows_triton(x, gelu)
    check(values, scale, x, gelu)
    assert (scale * 448 > 20).sum() > scale.numel() / 2


def test_strided_rows_are_read_in_place(dtype, normal):
    """The attention output of one stream is a slice of the joint one, of a row prefix of a buffer."""
    joint = normal(4, 9, 48, dtype=dtype)
    for x in (joint[:2, :7], joint[1:, 7:], joint[..., ::2]):
        check(*quantize_rows_triton(x), x, False)


def test_a_row_of_zeros_stays_zero(device):
    values, scale = quantize_rows_triton(torch.zeros(1, 3, 32, device=device))
    assert not values.float().any() and scale.isfinite().all()


def test_it_is_one_launch(normal):
    with observe_launches() as launches:
        quantize_rows_triton(normal(2, 3, 16), gelu=True)
    assert [launch.name for launch in launches] == ["quantize_kernel"]


def test_a_row_too_wide_is_refused(normal):
    with pytest.raises(ValueError, match="at most 16384 channels, got 16385"):
        quantize_rows_triton(normal(1, 1, 16385))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_number_that_is_not_finite_reaches_the_product(value, gelu, normal):
    """As in the reference: the row that holds it gives nothing finite, every other row stays as it was."""
    x, weight = normal(1, 5, 48), quantize_rows(normal(32, 48))
    clean = quantize_rows_triton(x, gelu)
    x[0, 2, 31] = value
    rows, expected = quantize_rows_triton(x, gelu), quantize_rows(x, gelu)
    product, wanted = (fp8_linear(*each, *weight, torch.zeros(32, device=x.device)) for each in (rows, expected))
    assert not wanted[0, 2].isfinite().any() and not product[0, 2].isfinite().any()
    others = [0, 1, 3, 4]
    assert torch.equal(rows.scale[0, others], clean.scale[0, others])
    assert torch.equal(rows.values[0, others].float(), clean.values[0, others].float())
