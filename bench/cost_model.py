"""The cost model: what guidance costs by counting, from ``ModelSpec`` alone, and how long that must take on a card."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from segue.engine.planning.compile import compile_plan
from segue.engine.planning.plan import Plan
from segue.engine.planning.schedule import resolve_schedule
from segue.engine.planning.solvers import EULER
from segue.engine.rules.guidance import Unguided
from segue.engine.rules.presets import parse_rule
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.parameterization import Parameterization
from segue.models.registry import make_network
from segue.models.spec import ModelSpec, SiTSpec
from segue.models.unallocated import unallocated

from .cases import SCALE, SGG_LAYERS, WEIGHT, BenchModel
from .ceilings import Ceilings, dtype_name
from .published import PUBLISHED, stage_flops

TABLE = ("sd3-medium", "sd3.5-medium", "sd3.5-large", "dit-xl/2:256", "dit-xl/2:512")
EXIT_MODEL = "sit-xl/2"  # the families' weak branch that costs next to nothing
STEPS = 28


@dataclass(frozen=True)
class CostLine:
    """One model of the table; ``exact`` and ``published`` are relative to unguided sampling.

    ``flops`` of one forward of the whole module; ``suffix`` of the weak branch relative to a forward without modulation,
    which the engine computes once for all calls, but with the text embedding.
    """

    model: str
    flops: int
    attention: float
    suffix: float
    exact: float
    published: float

    @property
    def gain(self) -> float:
        return self.published / self.exact


def sgg_plan(spec: ModelSpec, steps: int = STEPS) -> Plan:
    """The published recipe: CFG on the first half of the steps, blocks 7 to 9 skipped on the second."""
    layers = ",".join(map(str, SGG_LAYERS))
    rule = parse_rule(f"sgg:scale={SCALE},weight={WEIGHT},layers={layers},switch=fraction:0.5")
    schedule = resolve_schedule(None, steps, EULER, Parameterization(spec), spec.tokens(spec.height, spec.width))
    return compile_plan(rule.guidance, schedule, EULER, spec)


def attention_flops(spec: ModelSpec) -> int:
    """FLOPs of attention in one forward: what grows with the width D and not with its square, which is linear layers."""
    tokens = spec.tokens(spec.height, spec.width)
    wide = replace(spec, dim=2 * spec.dim, heads=2 * spec.heads)
    single, double = (sum(each.block_flops(layer, tokens) for layer in range(spec.depth)) for each in (spec, wide))
    return (4 * single - double) // 2


def module_flops(spec: ModelSpec) -> int:
    """FLOPs of one forward of the whole module for one sample, modulation and learned-sigma outputs included."""
    if not isinstance(spec, SiTSpec):
        return spec.module_flops(spec.height, spec.width)
    unread = (spec.out_channels / spec.channels - 1) * spec.readout_flops(spec.tokens(spec.height, spec.width))
    return spec.forward_flops(spec.height, spec.width) + 2 * (6 * spec.depth + 2) * spec.dim**2 + int(unread)


def text_flops(spec: ModelSpec) -> int:
    """FLOPs of projecting one prompt to the width of the network."""
    return 2 * spec.text_tokens * spec.text_dim * spec.dim if isinstance(spec, MMDiTSpec) else 0


def cost_line(name: str) -> CostLine:
    """The figures of one model by counting."""
    spec = BenchModel.parse(name).spec
    plan = sgg_plan(spec)
    weak, plain = plan.runs[-1].live, (0,)
    forward = spec.forward_flops(spec.height, spec.width)
    flops = module_flops(spec)
    return CostLine(
        model=name,
        flops=flops,
        attention=attention_flops(spec) / flops,
        suffix=(plan.call_cost(weak)[2] - plan.call_cost(plain)[2]) / (forward + text_flops(spec)),
        exact=plan.cost.relative,
        published=stage_flops(plan, PUBLISHED) / (plan.calls * forward),
    )


def cost_table(names: tuple[str, ...] = TABLE) -> str:
    """The table as Markdown, to three digits or more."""
    lines = [
        "| model | TFLOP | attention share | weak suffix | SGG 14 + 14 steps, exact | as published | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in map(cost_line, names):
        tera = line.flops / 1e12
        lines.append(
            f"| {line.model} | {tera:.{4 if tera < 2 else 3}f} | {100 * line.attention:.2g} % | {line.suffix:.3f} "
            f"| {line.exact:.3f}x | {line.published:.3f}x | {line.gain:.2f} |"
        )
    exit_plan = BenchModel.parse(EXIT_MODEL).plan("sgg-exit", STEPS)
    weak = exit_plan.call_cost(exit_plan.runs[-1].live)[2] / exit_plan.call_cost((0,))[2] - 1
    lines.append(f"| {EXIT_MODEL}, early-exit head | | | {weak:.3f} | {exit_plan.cost.relative:.3f}x | | |")
    return "\n".join(lines)


def block_parameters(spec: ModelSpec) -> int:
    """Parameters that every forward reads: all of the network but embedding tables and modulation."""
    with unallocated():
        model = make_network(spec)
    modulation = [m for name, m in model.named_modules() if name.endswith("adaLN_modulation")]
    left_out = [*modulation, *(m for m in model.modules() if isinstance(m, nn.Embedding))]
    skipped = {id(parameter) for module in left_out for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in skipped)


def roofline_seconds(plan: Plan, batch: int, ceilings: Ceilings, dtype: torch.dtype) -> float:
    """The least time of a run on a machine with these ceilings: arithmetic, or one read of the weights, call by call."""
    weights = block_parameters(plan.spec) * dtype.itemsize
    return sum(ceilings.seconds(plan.call_cost(live)[2] * batch, weights, dtype) for live in plan.live)


def roofline_table(ceilings: Ceilings, dtype: torch.dtype, names: tuple[str, ...] = TABLE, batch: int = 1) -> str:
    """The same models on a measured machine: least seconds of 28 calls, unguided and under segmented guidance."""
    lines = [
        f"| model, batch {batch}, {dtype_name(dtype)} | unguided, {STEPS} calls | SGG, {STEPS} calls |",
        "|---|---|---|",
    ]
    for name in names:
        guided = sgg_plan(BenchModel.parse(name).spec)
        plain = compile_plan(Unguided(), guided.schedule, EULER, guided.spec)
        seconds = [roofline_seconds(plan, batch, ceilings, dtype) for plan in (plain, guided)]
        lines.append(f"| {name} | {seconds[0]:.3g} s | {seconds[1]:.3g} s |")
    return "\n".join(lines)
