"""Derivatives of whole networks in forward mode against reverse mode, and networks that are mapped over their inputs."""

import pytest
import torch
from live_sets import POOLED_DIM, TEXT_DIM, TEXT_TOKENS, tiny_mmdit
from tiny_models import tiny_sit
from torch.nn.attention import SDPBackend, sdpa_kernel

from segue.models.mmdit import TextCondition

BATCH = 2


@pytest.fixture
def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def network_of_a_latent(architecture, normal):
    """``(x [B, C, H, W], time [B]) -> output`` in fp64, and a latent."""
    if architecture == "sit":
        model, labels = tiny_sit().double(), torch.tensor([1, 4])
        return lambda x, time: model(x, time, labels[: len(x)]), normal(BATCH, 4, 6, 10)
    model = tiny_mmdit(architecture).double()
    text = TextCondition(normal(BATCH, TEXT_TOKENS, TEXT_DIM), normal(BATCH, POOLED_DIM))
    return lambda x, time: model(x, 1000 * time, text[: len(x)]), normal(BATCH, 4, 2, 6)


ARCHITECTURES = ("sit", "sd3", "sd3.5-medium")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tangent_is_the_transpose_of_the_gradient(architecture, normal):
    """``<w, J v> = <J^T w, v>`` for the directions v of the latent and of its time, which features in fp32 round."""
    network, x = network_of_a_latent(architecture, normal)
    time = torch.tensor([0.3, 0.7], dtype=torch.float64)
    tangents = normal(*x.shape), normal(BATCH)
    with sdpa_kernel(SDPBackend.MATH):
        output, forward = torch.func.jvp(network, (x, time), tangents)
    cotangent = normal(*output.shape)
    operands = x.requires_grad_(True), time.requires_grad_(True)
    gradients = torch.autograd.grad(network(*operands), operands, cotangent)
    reverse = sum((gradient * tangent).sum() for gradient, tangent in zip(gradients, tangents, strict=True))
    size = (forward.abs() * cotangent.abs()).sum()
    assert size > 1
    assert ((forward * cotangent).sum() - reverse).abs() <= 1e-6 * size


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_mapped_over_latents_equals_a_loop(architecture, normal):
    network, x = network_of_a_latent(architecture, normal)
    time = torch.tensor([0.4], dtype=torch.float64)
    found = torch.func.vmap(lambda one: network(one[None], time)[0])(x)
    wanted = torch.cat([network(one[None], time) for one in x])
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
