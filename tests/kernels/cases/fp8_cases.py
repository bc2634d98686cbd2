"""The kernel that quantises rows, alone and with the GELU, of one stream and of several."""

import pytest
import torch
from fp8_rows import check_rows, same_bits

from segue.kernels import judgement
from segue.kernels.fp8 import fp8_linear, quantize_rows, quantize_rows_triton, quantize_streams_triton
from segue.kernels.launch import RowLaunch
from segue.kernels.launch_lookup import using
from segue.kernels.triton_runtime import interpreting, observe_launches

# [R, L, D]: odd token counts; hidden widths and the width between the layers of an MLP
SHAPES = [(2, 1, 64), (1, 63, 192), (3, 5, 1152), (1, 3, 9728)]


def check(rows, x, gelu):
    """Against fp64; where fp8 is rounded as the format says, there is no bias either."""
    scaled = check_rows(rows, torch.nn.functional.gelu(x.double(), approximate="tanh") if gelu else x.double())
    assert interpreting() or judgement.bias(rows.values.double(), scaled).passed


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(shape, gelu, dtype, normal):
    x = normal(*shape, dtype=dtype) * 3
    check(quantize_rows_triton(x, gelu), x, gelu)


@pytest.mark.parametrize("gelu", [False, True])
def test_rows_whose_scale_is_set_by_outlier_channels(gelu, dtype, normal):
    """Three channels 30 to 100 times as large: the others keep their three bits, at a hundredth of the range."""
    x = normal(2, 33, 192, dtype=dtype)
    x[..., [3, 96, 190]] *= torch.tensor([30.0, 100.0, 60.0], device=x.device).to(dtype)
    rows = quantize_rows_triton(x, gelu)
    check(rows, x, gelu)
    assert (rows.scale * 448 > 20).sum() > rows.scale.numel() / 2


def test_strided_rows_are_read_in_place(dtype, normal):
    """The attention output of one stream is a slice of the joint one, of a row prefix of a buffer."""
    joint = normal(4, 9, 48, dtype=dtype)
    for x in (joint[:2, :7], joint[1:, 7:], joint[..., ::2]):
        check(quantize_rows_triton(x), x, False)


@pytest.mark.parametrize("per_program", [1, 4])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_streams_equal_each_alone_to_the_bit(count, gelu, per_program, dtype, normal):
    """Slices of a joint sequence and a stream of other rows; programs that begin in one row and end in the next."""
    joint = normal(3, 9, 200, dtype=dtype)
    streams = (joint[1:, :7], joint[:, 7:], normal(1, 5, 200, dtype=dtype))[:count]
    with using("quantise", "d512 m512", RowLaunch(per_program, 1)), observe_launches() as launches:
        made = quantize_streams_triton(gelu, *streams)
    assert [launch.arguments["TOKENS"] for launch in launches] == [per_program]
    for rows, x in zip(made, streams, strict=True):
        check(rows, x, gelu)
        assert same_bits(rows, quantize_rows_triton(x, gelu))


def test_a_row_of_zeros_stays_zero(device):
    values, scale = quantize_rows_triton(torch.zeros(1, 3, 32, device=device))
    assert not values.float().any() and scale.isfinite().all()


def test_it_is_one_launch(normal):
    with observe_launches() as launches:
        quantize_rows_triton(normal(2, 3, 16), gelu=True)
        quantize_streams_triton(False, normal(2, 3, 16), normal(1, 2, 16))
    assert [launch.name for launch in launches] == 2 * ["quantize_kernel"]


def test_a_row_too_wide_is_refused(normal):
    with pytest.raises(ValueError, match="at most 16384 channels, got 16385"):
        quantize_rows_triton(normal(1, 1, 16385))


def test_streams_that_are_too_many_or_of_several_widths_are_refused(normal):
    x = normal(1, 2, 16)
    for streams, found in (((x, x[..., :8]), r"\(1, 2, 16\), \(1, 2, 8\)"), ((x, x, x, x), r"\(1, 2, 16\), .*"), ((), "none")):
        with pytest.raises(ValueError, match=f"up to 3 streams of one width, got {found}$"):
            quantize_streams_triton(False, *streams)


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
