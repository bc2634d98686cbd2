"""Kernels that start while the one before them ends leave the same bits; in the interpreter they start one after the other."""

import torch

from segue.kernels.adaln import gated_residual_triton, modulated_norm_triton, residual_modulated_norm_triton
from segue.kernels.triton_runtime import dependent_launches, dependent_obstacle, observe_launches


def chain(h, y, gate, shift, scale) -> torch.Tensor:
    """Each kernel reads what the one before it wrote, and some write what one before it read."""
    for _ in range(3):
        h = gated_residual_triton(h, y, gate)
        y = modulated_norm_triton(h, shift, scale)
        h, y = residual_modulated_norm_triton(h, y, gate, shift, scale)
    return h + y


def test_a_chain_of_kernels_leaves_the_same_bits(dtype, normal, device):
    h, y, gate, shift, scale = (normal(2, tokens, 72, dtype=dtype) for tokens in (63, 63, 1, 1, 1))
    expected = chain(h.clone(), y, gate, shift, scale)
    with dependent_launches(), observe_launches() as launches:
        found = chain(h.clone(), y, gate, shift, scale)
    assert {launch.dependent for launch in launches} == {not dependent_obstacle(device)} and len(launches) == 9
    assert torch.equal(found, expected)
