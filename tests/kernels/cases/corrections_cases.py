"""The corrections with a reduction over each sample."""

import pytest
import torch

from segue.kernels import corrections
from segue.kernels.triton_runtime import observe_launches

# elements below, at and beyond one block of the reduction (4096)
SHAPES = [(3, 4, 6, 10), (1, 4, 32, 32), (2, 16, 21, 27)]


@pytest.fixture
def scalars(normal):
    """``scalars(batch, low, high)``: one number per sample."""
    return lambda batch, low, high: normal(batch).abs().clamp(0, 3) / 3 * (high - low) + low


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cfg_zero_star(shape, normal, scalars, judge):
    cond = normal(*shape) + 0.3
    uncond = cond + 0.5 * normal(*shape)
    with observe_launches() as launches:
        arguments = cond, uncond, scalars(shape[0], 1, 7)
        judge(corrections.cfg_zero_star_triton, corrections.cfg_zero_star, *arguments, operation="cfg_zero_star")
    assert [launch.name for launch in launches] == ["sums_kernel", "apply_kernel"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rescale(shape, normal, scalars, judge):
    # a mean far from zero: one-pass variance would fail here
    guided, cond = normal(*shape) * 3 + 20, normal(*shape) - 50
    judge(corrections.rescale_triton, corrections.rescale, guided, cond, scalars(shape[0], 0, 1), operation="rescale")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("radius", [0.5, 1e4, float("inf")])
def test_adaptive_projection(shape, radius, normal, scalars, judge):
    cond, uncond, average = normal(3, *shape)
    scale, momentum = scalars(shape[0], 1, 9), scalars(shape[0], -0.75, 0)
    radii, eta = torch.full_like(scale, radius), scalars(shape[0], 0, 1)

    def with_average(function):
        def call(cond, uncond, average, *rest):
            return function(cond, uncond, average, *rest), average

        return call

    judge(
        with_average(corrections.adaptive_projection_triton), with_average(corrections.adaptive_projection),
        cond, uncond, average, scale, momentum, radii, eta, operation="adaptive_projection",
    )  # fmt: skip


def test_limits(normal):
    """eta = 1 without momentum and radius is CFG; phi = 0 changes nothing, phi = 1 the deviation; s = 1 gives c."""
    cond, uncond = normal(2, 2, 4, 6, 10)
    one, two, none = (
        torch.ones_like(cond[:, 0, 0, 0]),
        torch.full_like(cond[:, 0, 0, 0], 2.5),
        torch.zeros_like(cond[:, 0, 0, 0]),
    )
    guided = corrections.adaptive_projection_triton(cond, uncond, torch.zeros_like(cond), two, none, none + float("inf"), one)
    assert torch.allclose(guided, uncond + 2.5 * (cond - uncond), atol=1e-5)
    assert torch.equal(corrections.rescale_triton(guided, cond, none), guided)
    deviation = corrections.rescale_triton(guided, cond, one).flatten(1).std(1)
    assert torch.allclose(deviation, cond.flatten(1).std(1), rtol=1e-5)
    assert torch.allclose(corrections.cfg_zero_star_triton(cond, uncond, one), cond, atol=1e-6)
    assert torch.allclose(corrections.cfg_zero_star_triton(cond, 3 * cond, two), cond, atol=1e-5)


def test_zero_operands_give_finite_results(normal):
    cond, zero = normal(1, 4, 6, 10), torch.zeros_like(normal(1, 4, 6, 10))
    scale = torch.full_like(cond[:, 0, 0, 0], 3.0)
    assert torch.allclose(corrections.cfg_zero_star_triton(cond, zero, scale), 3 * cond)
    assert torch.equal(corrections.rescale_triton(zero, cond, scale / 3), zero)
    result = corrections.adaptive_projection_triton(zero, zero, zero.clone(), scale, scale, scale, scale)
    assert torch.equal(result, zero)


def test_strided_operands_and_bad_shapes(normal, judge):
    cond = normal(2, 6, 10, 4).permute(0, 3, 1, 2)
    scale = normal(4)[::2]
    arguments = cond, normal(2, 4, 6, 10), scale
    judge(corrections.cfg_zero_star_triton, corrections.cfg_zero_star, *arguments, operation="cfg_zero_star")
    with pytest.raises(ValueError, match="must have one shape"):
        corrections.cfg_zero_star_triton(cond, cond[:1], scale)
