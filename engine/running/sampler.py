"""The loop over network calls: callbacks, progress, interruption, finite checks.  It knows nothing of guidance."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .program import Program
from .stopping import StopPoll


@dataclass(frozen=True, eq=False)
class CallInfo:
    """What a callback sees after each network call; ``x`` is the state [B, C, H, W] itself, in flow coordinates."""

    call: int
    calls: int
    step: int
    sigma: float
    live: tuple[int, ...]
    x: Tensor = field(repr=False)


Callback = Callable[[CallInfo], bool | None]


class NonFiniteError(FloatingPointError):
    """The latent stopped being finite; the message names the call and the branch where it first appeared."""


def run_program(program: Program, callback: Callback | None = None, check_finite: bool = False) -> int:
    """Run a loaded program to its end; returns the calls made.

    ``callback`` may return False to stop after the current call.  ``check_finite`` synchronises at every call.
    """
    plan = program.plan
    poll = StopPoll(program.combination.stopping) if plan.adaptive else None
    for call, planned in enumerate(plan.live):
        live = planned if poll is None else poll.live(planned)
        before = program.x.clone() if check_finite else None
        program.advance(live)
        if poll is not None:
            poll.after_call()
        if check_finite and not torch.isfinite(program.x).all():
            _report_non_finite(program, call, live, before)
        if callback is not None:
            x = program.x.detach()  # a callback may write what requires grad: that stays with this view of the state
            info = CallInfo(call, plan.calls, int(plan.steps[call]), float(plan.sigmas[call]), live, x)
            if callback(info) is False:
                return call + 1
    return plan.calls


@torch.no_grad()
def _report_non_finite(program: Program, call: int, live: tuple[int, ...], before: Tensor) -> None:
    """Evaluate each live branch alone at the state before the call, and raise."""
    plan = program.plan
    program.x.copy_(before)
    program.place(np.full(len(program.call), call))
    scale = program.looked_up()[0][:, 0]
    # each branch runs in a live set of its own: in the sum, 0 * nan would be nan
    each = {i: program.branch_output(i, scale, live) for i in plan.outputs(live)}
    guilty = [str(plan.branches[i]) for i, output in each.items() if not torch.isfinite(output).all()]
    where = f"branch {', '.join(guilty)}" if guilty else "the guided sum or the solver update (every branch is finite)"
    raise NonFiniteError(
        f"the latent is not finite after call {call + 1} of {plan.calls} (sigma {plan.sigmas[call]:.4f}): first in {where}"
    )
