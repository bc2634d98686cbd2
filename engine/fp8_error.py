"""How far ``linears="fp8"`` moves the numbers of an engine: of one network evaluation, and of a whole run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .core import EngineCore
from .engine import Engine
from .linears import LINEARS
from .rules.presets import parse_rule
from .running.program import Program
from .running.sampler import run_program

QUICK_RULE, QUICK_LABELS, QUICK_STEPS = "sgg", (0, 9), 4


@dataclass(frozen=True)
class Fp8Error:
    """Root-mean-square deviations, relative to the result without fp8.

    ``evaluation``: of the conditional branch, the largest over the calls of a run, with both engines at the states of the
    exact one; ``run``: of the latents after the whole run.
    """

    evaluation: float
    run: float


@torch.no_grad()
def fp8_error(exact: EngineCore, fp8: EngineCore, load: Callable[[Any], Program]) -> Fp8Error:
    """The error of the engine ``fp8`` against ``exact``, the same networks without it.

    ``load(engine)`` puts the same run, seeds and all, into a program of an engine.  Raises ``ValueError`` unless the second
    engine has fp8 linears and the first has not.
    """
    if (exact.linears, fp8.linears) != LINEARS:
        raise ValueError(f"fp8 is compared with native linears, got {fp8.linears} and {exact.linears}")
    reference, program = load(exact), load(fp8)
    worst = 0.0
    for live in reference.plan.live:
        for own, true in zip(program.state(), reference.state(), strict=True):
            own.copy_(true)
        scale = reference.looked_up()[0][:, 0]
        worst = max(worst, relative_deviation(*(each.branch_output(0, scale, live) for each in (program, reference))))
        reference.advance(live)
    fp8.release(program)
    program = load(fp8)
    run_program(program)
    return Fp8Error(worst, relative_deviation(program.x, reference.x))


def quick_fp8_error(source: str, device: torch.device, dtype: torch.dtype) -> Fp8Error:
    """:func:`fp8_error` of a class-label model: two samples by segmented guidance in few steps, in a second on a CPU."""
    exact, fp8 = (Engine.from_pretrained(source, device=device, dtype=dtype, linears=linears) for linears in LINEARS)
    plan = exact.plan(parse_rule(QUICK_RULE, exact.spec).guidance, QUICK_STEPS)
    seeds = range(len(QUICK_LABELS))
    noise = exact.draw_noise(plan, seeds)
    return fp8_error(exact, fp8, lambda engine: engine.load(plan, QUICK_LABELS, list(seeds), noise))


def relative_deviation(value: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference over that of ``reference``."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())
