"""The fused norm and its variants."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import slow_interpreted
from norm_operands import OPERATIONS, SHAPES, operands

from segue.kernels import adaln
from segue.kernels.triton_runtime import observe_launches

LONG = [(1, 199, 72), (1, 333, 32)]  # the same programs more often: for the operation that does everything


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_against_fp64(name, shape, dtype, normal, judge):
    judge(getattr(adaln, f"{name}_triton"), getattr(adaln, name), *operands(normal, shape, dtype, name))


@pytest.mark.parametrize("shape", [*SHAPES[:2], *map(slow_interpreted, SHAPES[2:4])], ids=str)
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
