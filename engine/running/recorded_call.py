"""One network call of a program as autograd records it: by functions that have derivatives, in new tensors.

A program steps in static buffers, in place, by kernels without derivatives and by tables that a run computes once.  Here the
same live rows run once more from the state, the conditions and the weights themselves, so gradients with respect to all of
these are those of the guided output.  What a rule remembers of earlier calls is a constant.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from segue.models.fp8_network import Fp8Layers

from ..rules.drawn import Draw
from .program import Program


def is_recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether derivatives with respect to any of ``tensors`` are wanted: in backward mode or in forward mode."""
    return any(
        (tensor.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


def check_unrecorded(what: str, **inputs: Tensor | None) -> None:
    """Raise ``ValueError`` for an input whose derivatives are wanted of something that has none."""
    for name, tensor in inputs.items():
        if tensor is not None and is_recorded([tensor]):
            raise ValueError(f"{what} has no gradient, and {name} requires one: detach it, or call under torch.no_grad()")


def check_differentiable(networks: Mapping[str, nn.Module]) -> None:
    """Raise ``ValueError`` for networks whose numbers are rounded to fp8, which has no derivative."""
    if any(Fp8Layers.of(network).quantized for network in networks.values()):
        raise ValueError("linears='fp8' rounds every activation and has no gradient: use linears='native', or torch.no_grad()")


def recorded_call(
    program: Program, networks: Mapping[str, nn.Module], conditions: Mapping[str | int, Any], x: Tensor, live: tuple[int, ...]
) -> Tensor:
    """The state [B, C, H, W] fp32 after one call with the branches ``live`` from the state ``x``; the counters go on.

    ``networks`` and ``conditions`` are those that gradients shall reach, with the values that the program was loaded with.
    """
    check_differentiable(networks)
    plan, x = program.plan, x.float()
    row, coefficients = program.looked_up()
    scale = row[:, 0] if plan.parameterization.scaled else None
    given, draws = [conditions[name] for name in plan.conditions], program.draws
    if len(draws):
        if any(not draw.lag for draw in plan.choosers(live)):
            raise ValueError("a label that is chosen within its call (lag=0) has no gradient: use lag=1, or torch.no_grad()")
        coefficients = program.begin_draws(coefficients)
        for slot, condition in enumerate(plan.conditions):
            if isinstance(condition, Draw):
                given[slot] = draws.given(condition, given[slot])
    outputs: dict[int, Tensor] = {}
    for model in plan.models(live):
        layout = plan.layout(live, model)
        inside = program.numbers_inside(layout)
        found = program.rows[model].recorded(networks[model], x, program.times(), given, layout, scale, **inside)
        outputs |= dict(zip(plan.members(live, model), found, strict=True))
    combination = program.combination.recording()
    if not outputs:
        guided = torch.zeros_like(x)
    elif plan.keeps_apart(live):
        guided = combination.combine(x, outputs, coefficients, program.call)
    else:
        terms = [coefficients[:, i, :, None, None] * output for i, output in outputs.items()]
        guided = combination.reused.added_to(sum(terms[1:], terms[0]), program.call)
    with torch.no_grad():
        program.choose(plan.choosers(live), {i: output.detach() for i, output in outputs.items()}, x.detach())
    a, b, *_ = row[:, 1:, None, None, None].unbind(1)  # a velocity solver has no history and no noise
    program.count_call()
    return a * x + b * guided
