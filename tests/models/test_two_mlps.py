"""The MLPs of image and text in a joint block: one product for both where kernels have such, by any path the same numbers."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from segue.kernels import mlp
from segue.kernels.record import REFERENCE
from segue.models.layers import Mlp, MlpInput, two_mlps
from segue.models.mmdit import JointBlock
from segue.models.mmdit_spec import MMDiTSpec

SPEC = MMDiTSpec(
    name="tiny", channels=4, height=4, width=6, patch=2, dim=16, depth=2, heads=2, text_dim=8, pooled_dim=8, position_size=4,
    text_tokens=3,
)  # fmt: skip


class Counting:
    """Kernels that count their products."""

    def __init__(self, **changes):
        self.calls: Counter = Counter()
        products = ("grouped_linear", "grouped_linear_gelu", "linear_gelu", "linear", "project_joint_heads")
        spies = {name: self._spy(name) for name in products}
        self.kernels = replace(REFERENCE, **(spies | changes))

    def _spy(self, name):
        def call(*operands):
            self.calls[name] += 1
            return getattr(REFERENCE, name)(*operands)

        return call


@pytest.fixture
def inputs(seed):
    torch.manual_seed(seed)
    mlps = Mlp(16, 64), Mlp(16, 64)
    streams = [(torch.randn(2, tokens, 16), torch.randn(2, tokens, 16), torch.randn(2, 1, 16)) for tokens in (6, 3)]
    return lambda: [MlpInput(own, *(x.clone() for x in stream)) for own, stream in zip(mlps, streams, strict=True)]


@pytest.mark.parametrize("residual", [None, mlp.linear_gated_residual], ids=["deferred", "at once"])
@torch.no_grad()
def test_two_streams_equal_each_alone(inputs, residual):
    counting = Counting(linear_gated_residual=residual)
    found = two_mlps(*inputs(), counting.kernels)
    for state, own in zip(found, inputs(), strict=True):
        assert torch.equal(state, own.mlp(own.h, own.x, own.gate, REFERENCE))
    assert counting.calls["grouped_linear_gelu"] == 1 and not counting.calls["linear_gelu"]
    assert counting.calls["grouped_linear"] == (residual is None)


@pytest.mark.parametrize(("layer", "alone"), [(0, 0), (1, 1)])
@torch.no_grad()
def test_a_block_has_one_product_for_both_streams(layer, alone, seed):
    """For queries, keys and values, and for both layers of the MLPs; the text of the last block ends before these."""
    torch.manual_seed(seed)
    counting, block = Counting(linear_gated_residual=None), JointBlock(SPEC, layer)
    width = (block.image_chunks + block.text_chunks) * SPEC.dim
    block(torch.randn(1, 6, 16), torch.randn(1, 3, 16), torch.randn(1, width), counting.kernels)
    assert counting.calls["project_joint_heads"] == 1
    assert counting.calls["grouped_linear"] == counting.calls["grouped_linear_gelu"] == 1 - alone
    assert counting.calls["linear_gelu"] == alone and counting.calls["linear"] == alone
