"""A whole block on Triton kernels against the digest of diffusers' block in fp64; see tests/models/test_block_digest.py."""

import pytest
import torch
from sd35_block import deviation, digest, empty_block, operands, our_block, ours

from segue.kernels.record import TRITON
from segue.kernels.triton_runtime import DEFAULT_ARCHITECTURE, interpreting, observe_launches, trace_launches
from tests.tolerances import BLOCK_DIGEST

KERNELS = {"adaln_kernel", "linear_kernel", "attention_kernel"}  # heads are split within the product


def test_every_launch_is_a_kernel_of_the_table():
    """Traced on tensors without numbers, so that every architecture's settings can be."""
    for architecture in (DEFAULT_ARCHITECTURE, "sm_80", "gfx942"):
        with trace_launches(architecture) as launches:
            ours(empty_block().bfloat16(), TRITON, operands().to(torch.bfloat16, "meta"))
        assert {launch.name for launch in launches} == KERNELS


@pytest.mark.slow if interpreting() else lambda test: test
def test_a_block_at_true_width(dtype, device):
    with observe_launches() as launches:
        found = digest(*ours(our_block(dtype, device), TRITON, operands().to(dtype, device)))
    assert {launch.name for launch in launches} == KERNELS
    assert deviation(found) <= BLOCK_DIGEST * torch.finfo(dtype).eps
