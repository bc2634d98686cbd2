"""Inner products of a few states, and their linear combinations."""

import pytest
import torch

from segue.kernels import gram
from segue.kernels.triton_runtime import observe_launches

# elements below, at and beyond one block of the reduction (1024), and several
SHAPES = [(3, 4, 6, 10), (1, 4, 16, 16), (2, 16, 21, 27)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments(shape, count, normal, judge):
    # a mean far from zero: products about zero would lose their deviation here
    states = [normal(*shape) * (1 + k) + 20 * (k + 1) for k in range(count)]
    with observe_launches() as launches:
        judge(gram.moments_triton, gram.moments, (), *states, operation="moments")
    assert [launch.name for launch in launches] == ["block_moments_kernel", "merge_moments_kernel"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_small_difference_loses_nothing(shape, normal, judge):
    """Of states a thousandth apart the difference is taken before it is squared."""
    first, other = normal(2, *shape)
    states = first, first + 1e-3 * other, other
    judge(gram.moments_triton, gram.moments, (1,), *states, operation="moments")
    _, product = gram.moments_triton((1,), *states)
    gap = (first - states[1]).double().flatten(1)
    exact = ((gap - gap.mean(1, keepdim=True)) ** 2).sum(1)
    assert torch.allclose(product[:, 1, 1].double(), exact, rtol=1e-5)


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_combination(shape, outputs, normal, judge):
    states, coefficients = normal(5, *shape), normal(shape[0], outputs, 5)
    with observe_launches() as launches:
        arguments = (1, 4), coefficients, *states
        judge(gram.linear_combination_triton, gram.linear_combination, *arguments, operation="linear_combination")
    assert [launch.name for launch in launches] == ["linear_combination_kernel"]


def test_zero_states_have_zero_products(normal):
    zero = torch.zeros_like(normal(2, 4, 6, 10))
    mean, product = gram.moments_triton((), zero, zero)
    assert not mean.any() and not product.any()


def test_what_does_not_fit_is_refused(normal):
    first = normal(2, 4, 6, 10)
    with pytest.raises(ValueError, match=r"states of one shape, got \(2, 4, 6, 10\), \(1, 4, 6, 10\)"):
        gram.moments_triton((), first, first[:1])
    with pytest.raises(ValueError, match="states 1 to 1 may be relative to the first, got"):
        gram.moments_triton((2,), first, first)
    with pytest.raises(ValueError, match=r"coefficients must be \(2, 1, 2\), got \(2, 1, 3\)"):
        gram.linear_combination_triton((), normal(2, 1, 3), first, first)
