"""Sampling with diffusers' roundings: state and combination in the model's dtype, its scheduler's own step.

The default keeps state and combination in fp32.  This mode exists to compare: wherever the operations are the same, so
are the bits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .plan import Plan
from .program import Program
from .sampler import Callback, CallInfo


def combine_as_diffusers(plan: Plan, call: int, outputs: Mapping[int, Tensor]) -> Tensor:
    """The guided output of one call in the dtype of the branches: ``u + s (c - u)``, then ``+ w (c - k)`` term by term.

    outputs: branch index -> [B, C, H, W].  The order is that of ``StableDiffusion3Pipeline`` and of the published SGG loop.
    """
    conditional = guided = outputs[0]
    reference = next((i for i in outputs if i and plan.branches[i].condition == "uncond"), None)
    if reference is not None:
        scale = 1 + float(plan.weights[call, reference - 1])
        guided = outputs[reference] + scale * (conditional - outputs[reference])
    for i in outputs:
        if i not in (0, reference):
            guided = guided + (conditional - outputs[i]) * float(plan.weights[call, i - 1])
    return guided


@torch.no_grad()
def run_as_diffusers(
    program: Program, scheduler: Any, dtype: torch.dtype, callback: Callback | None = None
) -> tuple[Tensor, int]:
    """Run a loaded program with ``scheduler`` (timesteps set) stepping; returns (latents [B, C, H, W] in ``dtype``, calls)."""
    plan = program.plan
    x = program.x.to(dtype)
    first = scheduler.begin_index or 0
    for call, live in enumerate(plan.live):
        program.x.copy_(x)
        outputs = dict(zip(live, program.branch_outputs(live), strict=True))
        guided = combine_as_diffusers(plan, call, outputs)
        x = scheduler.step(guided, scheduler.timesteps[first + call], x, return_dict=False)[0].to(dtype)
        program.call += 1
        if callback is not None:
            info = CallInfo(call, plan.calls, int(plan.steps[call]), float(plan.sigmas[call]), live, x)
            if callback(info) is False:
                return x, call + 1
    return x, plan.calls
