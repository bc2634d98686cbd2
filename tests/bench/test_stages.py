"""The stages of the waterfall that differ in kernels alone."""

import torch

from segue.bench.cards import CARDS
from segue.bench.stages import split_apart
from segue.kernels.choice import ByClass
from segue.kernels.dispatch import HEAD_PRODUCTS, select_kernels
from segue.kernels.launch_table import PREFERRED
from segue.kernels.record import REFERENCE
from segue.kernels.triton_runtime import trace_launches


def test_heads_within_the_product_are_a_stage_of_their_own(monkeypatch):
    """Before it they are split by a kernel of their own, and all else is as it was chosen."""
    monkeypatch.setitem(PREFERRED, "sm_90", {("project_joint_heads", "m8192 in2048 out8192"): "triton"})
    with trace_launches(CARDS["h100"].chip):
        kernels = select_kernels(torch.device("cuda"), torch.bfloat16).kernels
    apart = split_apart(kernels)
    assert isinstance(kernels.project_joint_heads, ByClass) and apart.project_joint_heads is kernels.project_joint_heads.default
    assert apart.project_joint_heads.keywords["split"] is kernels.joint_heads_norm
    changed = {name for name in vars(kernels) if getattr(kernels, name) is not getattr(apart, name)}
    assert changed and changed <= set(HEAD_PRODUCTS)
    assert split_apart(REFERENCE) == REFERENCE
