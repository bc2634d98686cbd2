"""The fused norm and its variants."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import slow_interpreted

from segue.kernels import adaln
from segue.kernels.contracts import FP8_STEP
from segue.kernels.triton_runtime import interpreting, observe_launches

# [R, L, D]: odd token counts; widths of DiT-XL, SD3 and SD3.5-large among them
SHAPES = [(2, 1, 64), (1, 63, 192), (3, 5, 1152), (1, 6, 1536), (2, 3, 2432)]
LONG = [(1, 199, 72), (1, 333, 32)]  # the same programs more often: for the operation that does everything
OPERATIONS = {
    # name: (state and branch come first, modulation vectors)
    "modulated_norm": (1, 2),
    "gated_residual": (2, 1),
    "residual_modulated_norm": (2, 3),
    "modulated_norm2": (1, 4),
    "residual_modulated_norm2": (2, 5),
    "residual2_modulated_norm": (3, 4),
}


def operands(normal, shape, dtype, name):
    """Arguments as the model passes them: the state is a row prefix of a larger buffer, the vectors are chunks."""
    rows, tokens, width = shape
    states, vectors = OPERATIONS[name]
    h = normal(rows + 2, tokens, width, dtype=dtype)[:rows] * 3 + 1
    y = [normal(rows, tokens, width, dtype=dtype) for _ in range(states - 1)]
    chunks = normal(rows, vectors * width, dtype=dtype)[:, None].chunk(vectors, dim=-1)
    return [h, *y, *chunks]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_against_fp64(name, shape, dtype, normal, judge):
    judge(getattr(adaln, f"{name}_triton"), getattr(adaln, name), *operands(normal, shape, dtype, name))


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if "residual" in name])
def test_the_bias_of_a_branch_against_fp64(name, shape, dtype, normal, judge):
    """It is added before the gate, and the sum is rounded once: the oracle adds it to the branch."""
    h, y, *rest = operands(normal, shape, dtype, name)
    bias = normal(2 * shape[2], dtype=dtype)[::2]

    def call(function):
        return lambda h, y, bias, *rest: function(h, y, *rest, bias=bias)

    def exact(h, y, bias, *rest):
        return getattr(adaln, name)(h, y + bias, *rest)

    judge(call(getattr(adaln, f"{name}_triton")), call(getattr(adaln, name)), h, y, bias, *rest, exact=exact)


@pytest.mark.parametrize("shape", map(slow_interpreted, LONG), ids=str)
def test_long_sequences_against_fp64(shape, dtype, normal, judge):
    name = "residual2_modulated_norm"
    judge(adaln.residual2_modulated_norm_triton, adaln.residual2_modulated_norm, *operands(normal, shape, dtype, name))


def test_fused_equals_separate_to_the_bit(dtype, normal):
    """One pass, two passes, one or two outputs: the same numbers."""
    h, y, y2, gate, gate2, shift, scale = operands(normal, (2, 7, 200), dtype, "residual2_modulated_norm")
    states = [h.clone() for _ in range(3)]
    separate = adaln.gated_residual_triton(states[0], y, gate)
    n, n2 = adaln.modulated_norm_triton(separate, shift, scale), adaln.modulated_norm_triton(separate, gate, gate2)
    again, fused = adaln.residual_modulated_norm_triton(states[1], y, gate, shift, scale)
    assert again is states[1]
    assert torch.equal(separate, again) and torch.equal(n, fused)
    both = adaln.modulated_norm2_triton(separate, shift, scale, gate, gate2)
    assert torch.equal(both[0], n) and torch.equal(both[1], n2)
    again, *both = adaln.residual_modulated_norm2_triton(states[2].clone(), y, gate, shift, scale, gate, gate2)
    assert torch.equal(separate, again) and torch.equal(both[0], n) and torch.equal(both[1], n2)
    if dtype == torch.float32:  # in half precision one pass rounds the state once, two passes twice
        _, n = adaln.residual_modulated_norm_triton(separate, y2, gate2, shift, scale)
        again, fused = adaln.residual2_modulated_norm_triton(states[2], y, y2, gate, gate2, shift, scale)
        assert torch.equal(separate, again) and torch.equal(n, fused)


def test_only_the_row_prefix_is_written(dtype, normal):
    buffer = normal(4, 9, 48, dtype=dtype)
    before = buffer.clone()
    y, gate = normal(2, 9, 48, dtype=dtype), normal(2, 1, 48, dtype=dtype)
    adaln.gated_residual_triton(buffer[:2], y, gate)
    assert torch.equal(buffer[2:], before[2:])
    assert not torch.equal(buffer[:2], before[:2])


def test_strided_operands_are_read_and_written_in_place(dtype, normal, judge):
    h = normal(2, 48, 9, dtype=dtype).transpose(1, 2)
    y = normal(2, 9, 96, dtype=dtype)[..., ::2]
    vectors = normal(1, 1, 3 * 48, dtype=dtype).chunk(3, dim=-1)  # one vector for all rows
    judge(adaln.residual_modulated_norm_triton, adaln.residual_modulated_norm, h, y, *vectors)


def test_a_large_mean_does_not_spoil_the_variance(device, seed):
    """The variance is two-pass: E[x^2] - E[x]^2 would be all rounding here."""
    generator = torch.Generator().manual_seed(seed)
    h = (torch.randn(1, 3, 1152, generator=generator, dtype=torch.float64) + 4096).float().to(device)
    shift, scale = torch.zeros(2, 1, 1, 1152, device=device)
    n = adaln.modulated_norm_triton(h, shift, scale)
    expected = torch.nn.functional.layer_norm(h.double(), (1152,), eps=1e-6)
    # the mean itself rounds to 4096 * 2^-24 of a unit deviation, a few times over
    assert (n.double() - expected).abs().max() < 4096 * 2**-24 * 8


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 3), tokens=st.integers(1, 9), width=st.integers(1, 70))
def test_any_shape(device, rows, tokens, width):
    generator = torch.Generator().manual_seed(rows * 1000 + tokens * 100 + width)
    h, y = torch.randn(2, rows, tokens, width, generator=generator).to(device)
    gate, shift, scale = torch.randn(3, rows, 1, width, generator=generator).to(device)
    expected = adaln.residual_modulated_norm(h.double(), y.double(), gate.double(), shift.double(), scale.double(), 1e-3)
    ours = adaln.residual_modulated_norm_triton(h.clone(), y, gate, shift, scale, 1e-3)
    for mine, truth in zip(ours, expected, strict=True):
        assert torch.allclose(mine.double(), truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max().clamp_min(1)))


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_fp8_rows(residual, outliers, dtype, normal):
    """Scales to fp32 rounding; quantised values equal, or one e4m3 step apart where a value sits on a rounding boundary."""
    h, y, gate, shift, scale = operands(normal, (2, 5, 136), dtype, "residual_modulated_norm")
    if outliers:
        h[..., [3, 68, 134]] *= torch.tensor([30.0, 100.0, 60.0], device=h.device).to(dtype)
    eager_in, ours_in = h.clone(), h.clone()
    if residual:
        _, _, row_scale = adaln.residual_modulated_norm_fp8(eager_in, y, gate, shift, scale)
        _, ours, ours_scale = adaln.residual_modulated_norm_fp8_triton(ours_in, y, gate, shift, scale)
        assert (eager_in - ours_in).abs().max() <= 2 * torch.finfo(dtype).eps * eager_in.abs().max()
    else:
        _, row_scale = adaln.modulated_norm_fp8(eager_in, shift, scale)
        ours, ours_scale = adaln.modulated_norm_fp8_triton(ours_in, shift, scale)
    assert torch.allclose(ours_scale, row_scale, rtol=1e-5)
    truth = adaln.modulated_norm(ours_in.double(), shift.double(), scale.double()) / row_scale[..., None].double()
    wrong = (ours.double() - truth).abs() > FP8_STEP * truth.abs().clamp_min(2**-6)
    if interpreting():
        # the interpreter truncates subnormals, and drops the carry of a mantissa that rounds up to a power of two
        wrong &= (torch.frexp(truth.abs())[0] < 1 - 2**-5) & (truth.abs() > 2**-6)
    assert not wrong.any()


def test_fp8_rows_show_a_number_that_is_not_finite(normal):
    """A NaN in the state is a NaN in the scale of its row, which the product multiplies with; other rows keep theirs."""
    h, y, gate, shift, scale = operands(normal, (2, 5, 136), torch.float32, "residual_modulated_norm")
    h[1, 3, 135] = float("nan")
    scales = (
        adaln.modulated_norm_fp8_triton(h, shift, scale)[1],
        adaln.residual_modulated_norm_fp8_triton(h.clone(), y, gate, shift, scale)[2],
    )
    for row_scale in scales:
        assert row_scale[1, 3].isnan() and row_scale.isnan().sum() == 1


def test_each_call_is_one_launch(normal):
    for name in OPERATIONS:
        arguments = operands(normal, (2, 3, 16), torch.float32, name)
        with observe_launches() as launches:
            getattr(adaln, f"{name}_triton")(*arguments)
        assert [launch.name for launch in launches] == ["adaln_kernel"], name


def test_bad_shapes_raise(normal):
    h, shift, scale = normal(2, 3, 16), normal(2, 1, 16), normal(2, 1, 16)
    with pytest.raises(ValueError, match=r"modulation vector must have shape \(2, 1, 16\), got \(2, 3, 16\)"):
        adaln.modulated_norm_triton(h, normal(2, 3, 16), scale)
    with pytest.raises(ValueError, match="at most 4096 channels, got 4097"):
        adaln.modulated_norm_triton(normal(1, 1, 4097), shift, scale)
    with pytest.raises(ValueError, match=r"\(2, 3, 16\) of the state, got \(1, 3, 16\)"):
        adaln.gated_residual_triton(h, h[:1], shift)
    with pytest.raises(ValueError, match=r"bias of a residual branch must have shape \(16,\), got \(2, 1, 16\)"):
        adaln.gated_residual_triton(h, h, shift, bias=shift)
