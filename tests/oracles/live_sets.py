"""Every architecture in miniature, one rule that names all branches, and the live sets that can come of it."""

from collections.abc import Iterator
from itertools import combinations

import torch
from tiny_models import randomize, tiny_sit
from torch import nn

from segue import CFG, AutoGuidance, EarlyExit, Engine, Guidance, PerturbedLayers, SkipLayer
from segue.engine.core import EngineCore
from segue.engine.planning.plan import Plan
from segue.engine.planning.solvers import SOLVERS, get_solver
from segue.engine.running.program import Program
from segue.models.mmdit import MMDiT, TextCondition
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.spec import ModelSpec

CLASS_LABEL = {
    "sit": {"prediction": "data_velocity", "time": "data_time"},
    "repa": {"qk_norm": True, "parents": ()},
    "dit": {"prediction": "epsilon", "time": "discrete", "out_channels": 8, "frequency_shift": 1.0, "mlp_norm_eps": 1e-5},
}
TEXT = {
    "sd3": {},
    "sd3.5-medium": {"qk_norm": True, "dual_layers": (0,)},
    "sd3.5-large": {"qk_norm": True, "heads": 3},
}
ARCHITECTURES = (*CLASS_LABEL, *TEXT)
# a solver for each kind of program: whether it draws, with a learned variance or not, and how far its rows look back
SOLVER_KINDS = tuple(
    {
        (s.stochastic, s.spreads is None, s.earlier): s.name for s in (get_solver("unipc(order=3)"), *[*SOLVERS.values()][::-1])
    }.values()
)
TEXT_TOKENS, TEXT_DIM, POOLED_DIM = 2, 24, 20
SIZE = {"height": 2, "width": 6, "depth": 3}  # 1 x 3 patches: Triton's interpreter takes milliseconds for each program


def tiny_mmdit(kind: str, seed: int = 3, **changes) -> MMDiT:
    """Dim 48, patches of 2, prompts of 2 tokens; ``kind`` is a key of TEXT."""
    settings = SIZE | {"name": kind, "channels": 4, "patch": 2, "dim": 48, "heads": 2}
    settings |= {"text_dim": TEXT_DIM, "pooled_dim": POOLED_DIM, "position_size": 8, "text_tokens": TEXT_TOKENS}
    return randomize(MMDiT(MMDiTSpec(**(settings | TEXT[kind] | changes))), seed)


def networks(architecture: str) -> dict[str, nn.Module]:
    """``main``, and ``weak`` of one block for autoguidance."""
    if architecture in TEXT:
        return {"main": tiny_mmdit(architecture), "weak": tiny_mmdit(architecture, 4, depth=1)}
    changes = SIZE | CLASS_LABEL[architecture]
    return {"main": tiny_sit(0, **changes), "weak": tiny_sit(1, **(changes | {"depth": 1, "exits": ()}))}


def engine_of(architecture: str, **options) -> EngineCore:
    """An engine on both networks."""
    made = networks(architecture)
    return (Engine if architecture in CLASS_LABEL else EngineCore)(made.pop("main"), made, **options)


def every_branch(spec: ModelSpec, channels: int | None = None) -> Guidance:
    """One term for each way of making a branch that a network has; ``channels`` restricts the unconditional one."""
    rule = (
        CFG(3.0, channels=channels)
        + SkipLayer(2.0, (1,))
        + PerturbedLayers(1.0, (1,), kind="attention_identity")
        + PerturbedLayers(0.5, (0, 2), kind="attention_skip")
        + PerturbedLayers(1.5, (1, 2), kind="attention_blur")
        + AutoGuidance(1.0)
    )
    if not spec.text_tokens:
        rule += EarlyExit(1.0, 2) + CFG(2.0, condition="parent" if spec.parents else 3)
    return rule


def many_branches(spec: ModelSpec, channels: int | None = None) -> Guidance:
    """More branches on the last head than one kernel combines."""
    skips = (SkipLayer(0.3 + 0.1 * i, layers) for i, layers in enumerate(((0,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))))
    return sum(skips, every_branch(spec, channels))


def live_sets(plan: Plan, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """Every set of the conditional branch and up to ``most`` others (None: any number), then the one with all."""
    others = range(1, len(plan.branches))
    sizes = range(len(others) + 1) if most is None else range(most + 1)
    for size in sizes:
        yield from ((0, *chosen) for chosen in combinations(others, size))
    if most is not None and most < len(others):
        yield (0, *others)


def load(engine: EngineCore, plan: Plan, batch: int = 1, seed: int = 0) -> Program:
    """A program holding a run of ``plan``: labels or prompts, noise and seeds are functions of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, plan.spec.channels, plan.height, plan.width, generator=generator)
    seeds = [2**40 + seed * batch + i for i in range(batch)]
    if isinstance(engine, Engine):
        return engine.load(plan, [(seed + 4 * i) % engine.spec.num_classes for i in range(batch)], seeds, noise)
    texts = {name: _prompts(batch, generator, engine.device) for name in plan.conditions}
    return engine.prepare(plan, texts, seeds, noise)


def _prompts(batch: int, generator: torch.Generator, device: torch.device) -> TextCondition:
    context = torch.randn(batch, TEXT_TOKENS, TEXT_DIM, generator=generator)
    pooled = torch.randn(batch, POOLED_DIM, generator=generator)
    return TextCondition(context.to(device), pooled.to(device))
