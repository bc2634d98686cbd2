"""One block of SD3.5-medium at its true width against numbers stored from diffusers' block in fp64.

tests/kernels/cases/block_cases.py compares the Triton kernels with the same numbers.
"""

import pytest
import torch
from sd35_block import WIDTH, deviation, digest, operands, our_block, ours, theirs

from segue.kernels.record import DIFFERENTIABLE, REFERENCE
from tests.tolerances import BLOCK_DIGEST, FP64_DIGEST


@pytest.mark.slow
def test_the_stored_numbers_are_those_of_diffusers():
    pytest.importorskip("diffusers")
    assert deviation(digest(*theirs())) <= FP64_DIGEST


@pytest.mark.parametrize("kernels", [REFERENCE, DIFFERENTIABLE], ids=["reference", "differentiable"])
def test_in_fp64(kernels):
    found = digest(*ours(our_block(torch.float64), kernels, operands().to(torch.float64)))
    assert deviation(found) <= FP64_DIGEST


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_the_precision_of_a_run(dtype):
    found = digest(*ours(our_block(dtype), REFERENCE, operands().to(dtype)))
    assert deviation(found) <= BLOCK_DIGEST * torch.finfo(dtype).eps


def test_a_small_fault_shows():
    """Without the second attention, with a gate or a bias that is slightly off: the first beyond what bf16 is allowed."""
    block = our_block(torch.float32)
    second, bias = block.x_block.attn2.proj.weight, block.x_block.mlp.fc1.bias
    single, half = (BLOCK_DIGEST * torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16))

    def moved(part: torch.Tensor, change: float, given=None) -> float:
        kept = part.clone()
        part.mul_(change)
        found = deviation(digest(*ours(block, REFERENCE, given or operands().to(torch.float32))))
        part.copy_(kept)
        return found

    given = operands().to(torch.float32)
    assert moved(second, 0.0) > half
    assert moved(bias[:1], 0.5) > single
    assert moved(given.modulation[:, 2 * WIDTH : 3 * WIDTH], 0.999, given) > single
    assert moved(bias[:1], 1.0) <= single
