"""Sampling with diffusers' roundings: ``numerics="diffusers"`` of the prompt engine, a mode to compare with.

Given the same network outputs a run is bit for bit diffusers' own: the noise and its mixture with a clean start, the times
the network is called at, the order of the combination, the scheduler's step and the dtype of everything in between.  The
network is not.  It stays ours, always on the reference functions (PyTorch's own operations, also on CUDA and whatever
kernels the engine was given): QKV is one product, modulation comes from a table, a norm and its modulation are rounded
once.  One evaluation in fp32 agrees with diffusers to about 1e-6; in half precision the roundings of every block differ.
What a rule changes inside the network is the network's: layers that are perturbed or left out, and the attention of NAG.
Windows follow the rule, so both stages of a Heun step are guided alike, where diffusers' skip-layer window counts calls.
Noise that a scheduler draws in its steps comes from PyTorch's own generator, as in the pipeline: seed that to repeat a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters.scheduler_calls import SchedulerCalls
from ..adapters.scheduler_solver import begin_at
from ..core import EngineCore
from ..planning.plan import Plan
from ..running.program import Program
from ..running.program_key import ProgramKey
from ..running.progress import Counting, progress_bar
from ..running.sampler import Callback, CallInfo


@torch.no_grad()
def sample_as_diffusers(
    engine: EngineCore,
    plan: Plan,
    conditions: Mapping[str | int, Any],
    seeds: Sequence[int],
    scheduler: Any,
    noise: Tensor,
    latents: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> tuple[Tensor, int]:
    """Run ``plan``, the last calls of ``scheduler`` (timesteps set), for B = ``len(seeds)`` samples; the scheduler steps.

    noise [B, C, H, W], unit normal; latents [B, C, H, W], the clean start of an image-to-image run.  Returns (latents
    [B, C, H, W] in the engine's dtype, calls made).  Raises ``ValueError`` or ``TypeError`` for a scheduler that is not
    flow-matching or cannot mix a clean start with noise, and for a rule that is more than NAG and terms over all channels at
    every call.
    """
    if (plan.masks < plan.spec.channels).any():
        raise ValueError(f"numerics='diffusers' guides all latent channels, got channels {plan.masks.min()}")
    if plan.samples:
        raise ValueError("numerics='diffusers' has one rule for all samples, as the pipeline has, and here each has its own")
    if plan.kept or plan.corrections or plan.draws or plan.adaptive:
        told = "a calibration" if plan.calibration else "reused directions" if plan.kept else "branches that stop"
        extra = [*plan.corrections, *(f"a {draw}" for draw in plan.draws), told][0]
        raise ValueError(f"numerics='diffusers' adds up the terms of each call, and the rule has {extra}")
    SchedulerCalls.of(scheduler)  # refuses what the plan cannot follow
    first = len(scheduler.timesteps) - plan.calls
    begin_at(scheduler, first)
    times = scheduler.timesteps[first:]
    x = _first_state(engine, plan, len(seeds), scheduler, noise, latents)
    program = Program(ProgramKey.of(plan, len(x)), plan, engine.models, engine.device)
    program.load(plan, x, conditions, list(seeds))
    _load_times(program, times, conditions)
    with progress_bar(engine.spec.name, plan.calls, shown=progress) as advance:
        return _run(program, scheduler, times, x, Counting(engine.followed(callback, program), advance))


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


def _first_state(engine: EngineCore, plan: Plan, count: int, scheduler: Any, noise: Tensor, latents: Tensor | None) -> Tensor:
    """The sample [B, C, H, W] at the first noise level, mixed by the scheduler in the engine's dtype."""
    x = engine.check_noise(plan, noise, count).to(engine.device, engine.dtype)
    if latents is None:
        return x
    if not hasattr(scheduler, "scale_noise"):
        raise ValueError(f"{type(scheduler).__name__} has no scale_noise, which diffusers' image-to-image calls")
    clean = engine.check_noise(plan, latents, count, "latents").to(engine.device, engine.dtype)
    start = scheduler.timesteps[scheduler.begin_index].repeat(count)
    return scheduler.scale_noise(clean, start, x).to(engine.dtype)


def _load_times(program: Program, times: Tensor, conditions: Mapping[str | int, Any]) -> None:
    """Call the network at ``times`` [N]; some schedulers round them, and the plan's are 1000 sigma in fp32."""
    plan, told = program.plan, times.cpu().double().numpy()
    if not np.array_equal(told, plan.parameterization.network_time(plan.sigmas)):
        program.load_times([told], conditions)


def _run(program: Program, scheduler: Any, times: Tensor, x: Tensor, callback: Callback) -> tuple[Tensor, int]:
    """The loop: evaluate, combine, let the scheduler step; returns (latents, calls made)."""
    plan = program.plan
    for call, live in enumerate(plan.live):
        program.x.copy_(x)
        outputs = {i: output.to(x.dtype) for i, output in zip(plan.outputs(live), program.branch_outputs(live), strict=True)}
        guided = combine_as_diffusers(plan, call, outputs)
        x = scheduler.step(guided, times[call], x, return_dict=False)[0].to(x.dtype)
        program.count_call()
        info = CallInfo(call, plan.calls, int(plan.steps[call]), float(plan.sigmas[call]), live, x)
        if callback(info) is False:
            return x, call + 1
    return x, plan.calls
