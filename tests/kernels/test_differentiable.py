"""The functions of training have derivatives in both modes and can be mapped; those of inference, which write over their own
temporaries, give the same numbers.
"""

import pytest
import torch

from segue.kernels import adaln, qkv
from segue.kernels.record import DIFFERENTIABLE, REFERENCE


@pytest.fixture
def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, **more: torch.randn(shape, generator=generator, dtype=torch.float64, **more)


def vectors(normal, count):
    return [normal(2, 1, 6) for _ in range(count)]


def state(normal, count):
    return [normal(2, 5, 6) for _ in range(count)]


def heads(image, text, weights):
    return DIFFERENTIABLE.joint_heads_norm(image, text, 2, tuple(weights[:2]), tuple(weights[2:]))


def heads_of_the_image_normalised(image, text, weights):
    return DIFFERENTIABLE.joint_heads_norm(image, text, 2, tuple(weights[:2]), None)


OPERATIONS = {
    "modulated_norm": lambda normal: [*state(normal, 1), *vectors(normal, 2)],
    "modulated_norm2": lambda normal: [*state(normal, 1), *vectors(normal, 4)],
    "gated_residual": lambda normal: [*state(normal, 2), *vectors(normal, 1)],
    "residual_modulated_norm": lambda normal: [*state(normal, 2), *vectors(normal, 3)],
    "residual_modulated_norm2": lambda normal: [*state(normal, 2), *vectors(normal, 5)],
    "residual2_modulated_norm": lambda normal: [*state(normal, 3), *vectors(normal, 4)],
    "linear_gated_residual": lambda normal: [*state(normal, 2), normal(6, 6), normal(6), *vectors(normal, 1)],
}
CALLS = {name: (getattr(DIFFERENTIABLE, name), operands) for name, operands in OPERATIONS.items()}
for function in (heads, heads_of_the_image_normalised):
    CALLS[function.__name__] = function, lambda normal: [normal(2, 3, 12), normal(2, 5, 12), normal(4, 2)]


@pytest.mark.parametrize("name", CALLS)
def test_derivatives_in_both_modes(name, normal):
    function, made = CALLS[name]
    assert torch.autograd.gradcheck(function, [x.requires_grad_(True) for x in made(normal)], check_forward_ad=True)


@pytest.mark.parametrize("name", CALLS)
def test_mapped_over_one_operand_or_all(name, normal):
    """``torch.func.vmap`` against a loop."""
    function, made = CALLS[name]
    several = [made(normal) for _ in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*several, strict=True)]
    for mapped in (range(len(stacked)), *((i,) for i in range(len(stacked)))):
        dims = tuple(0 if i in mapped else None for i in range(len(stacked)))
        given = [x if i in mapped else x[0] for i, x in enumerate(stacked)]
        found = torch.func.vmap(function, in_dims=dims)(*given)
        wanted = [function(*(x[k] if i in mapped else x for i, x in enumerate(given))) for k in range(3)]
        if isinstance(found, torch.Tensor):
            found, wanted = (found,), [(one,) for one in wanted]
        assert all(torch.allclose(a, torch.stack(b)) for a, b in zip(found, zip(*wanted, strict=True), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_are_those_of_the_reference_to_the_bit(dtype, normal):
    h, *vectors = (x.to(dtype) for x in (normal(2, 7, 12), *normal(4, 2, 1, 12)))
    image, text, weights = (x.to(dtype) for x in (normal(2, 7, 24), normal(2, 3, 24), normal(4, 4)))
    calls = (
        lambda kernels: (kernels.modulated_norm(h, *vectors[:2]),),
        lambda kernels: kernels.modulated_norm2(h, *vectors),
        lambda kernels: kernels.joint_heads_norm(image, text, 2),
        lambda kernels: kernels.joint_heads_norm(image, text, 2, tuple(weights[:2]), tuple(weights[2:])),
        lambda kernels: kernels.joint_heads_norm(image, text, 2, None, tuple(weights[2:])),
    )
    for call in calls:
        plain, differentiable = call(REFERENCE), call(DIFFERENTIABLE)
        assert all(torch.equal(a, b) for a, b in zip(plain, differentiable, strict=True))
        assert all(x.dtype == dtype for x in plain)


def test_operands_are_only_read(normal):
    operands = [normal(2, 5, 6), *normal(4, 2, 1, 6)]
    before = [x.clone() for x in operands]
    adaln.modulated_norm(*operands[:3])
    adaln.modulated_norm2(*operands)
    assert all(map(torch.equal, operands, before))


def test_joint_heads_lie_in_the_order_in_which_they_merge(normal):
    """q, k and v are views of one buffer [3, R, T, H, K], so attention's output merges its heads without a copy."""
    made = qkv.joint_heads_norm(normal(2, 3, 12), normal(2, 5, 12), 2, tuple(normal(2, 2)), tuple(normal(2, 2)))
    assert len({x.untyped_storage().data_ptr() for x in made}) == 1
    assert all(x.transpose(1, 2).is_contiguous() and x.shape == (2, 2, 8, 2) for x in made)
