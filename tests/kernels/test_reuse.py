"""Reference functions write over their own temporaries and into one place, and leave both alone where autograd records."""

import pytest
import torch

from segue.kernels import adaln, qkv


@pytest.fixture
def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, **more: torch.randn(shape, generator=generator, dtype=torch.float64, **more)


NORMS = {"modulated_norm": 2, "modulated_norm2": 4}


@pytest.mark.parametrize("differentiated", range(3))
@pytest.mark.parametrize("name", NORMS)
def test_the_norms_have_gradients_whichever_operand_asks(name, differentiated, normal):
    operands = [normal(2, 5, 6), *normal(NORMS[name], 2, 1, 6)]
    operands[differentiated].requires_grad_(True)
    assert torch.autograd.gradcheck(getattr(adaln, name), operands)


@pytest.mark.parametrize("differentiated", ["image", "text", "weight"])
def test_joint_heads_have_gradients(differentiated, normal):
    image, text, weights = normal(2, 3, 12), normal(2, 5, 12), normal(4, 2)
    {"image": image, "text": text, "weight": weights}[differentiated].requires_grad_(True)

    def joint(image, text, weights):
        return qkv.joint_heads_norm(image, text, 2, tuple(weights[:2]), tuple(weights[2:]))

    assert torch.autograd.gradcheck(joint, (image, text, weights))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_are_the_same_to_the_bit_with_and_without_autograd(dtype, normal):
    h, *vectors = (x.to(dtype) for x in (normal(2, 7, 12), *normal(4, 2, 1, 12)))
    image, text, weights = (x.to(dtype) for x in (normal(2, 7, 24), normal(2, 3, 24), normal(4, 4)))
    calls = (
        lambda h, weights: (adaln.modulated_norm(h, *vectors[:2]),),
        lambda h, weights: adaln.modulated_norm2(h, *vectors),
        lambda h, weights: qkv.joint_heads_norm(image, text, 2, tuple(weights[:2]), tuple(weights[2:])),
        lambda h, weights: qkv.joint_heads_norm(image, text, 2, None, tuple(weights[2:])),
    )
    for call in calls:
        plain = call(h, weights)
        recorded = call(h.clone().requires_grad_(True), weights.clone().requires_grad_(True))
        assert all(torch.equal(a, b.detach()) for a, b in zip(plain, recorded, strict=True))
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
