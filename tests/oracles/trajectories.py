"""Runs of 28 calls, state by state: by the formula on one network at a time in any precision, and by an engine.

``PYTHONPATH=tests/oracles python tests/oracles/trajectories.py`` prints error and bias of every kernel set of the CPU.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from live_sets import POOLED_DIM, TEXT_DIM, TEXT_TOKENS, tiny_mmdit
from naive_sampler import full_forward
from tiny_models import tiny_sit
from torch import Tensor

from segue import CFG, SGG, Engine, SkipLayer
from segue.engine.core import EngineCore
from segue.engine.planning.schedule import linear
from segue.engine.rules.branch import Perturb
from segue.kernels import judgement
from segue.models.mmdit import TextCondition

CALLS, SCALE, WEIGHT, LAYERS, SWITCH = 28, 3.0, 2.0, (1, 2), 0.5
RULE = SGG(CFG(SCALE), SkipLayer(WEIGHT, LAYERS), SWITCH)
SIZE = {"depth": 4, "dim": 128, "heads": 4, "height": 4, "width": 6}
ARCHITECTURES = ("sit", "mmdit")
KERNELS = ("auto", "reference", "compiled")  # of the CPU; the first has oneDNN's products in fp32
FULL, SKIPPED = None, Perturb("skip", LAYERS)


@dataclass(frozen=True)
class Start:
    """Noise [B, C, H, W], and for each sample a label, or a prompt and a negative prompt."""

    noise: Tensor
    labels: Tensor
    texts: tuple[TextCondition, TextCondition]

    def samples(self, count: int) -> "Start":
        """The first of them."""
        return Start(self.noise[:count], self.labels[:count], tuple(text[:count] for text in self.texts))

    def to(self, device: str) -> "Start":
        texts = tuple(TextCondition(text.context.to(device), text.pooled.to(device)) for text in self.texts)
        return Start(self.noise.to(device), self.labels.to(device), texts)


@cache
def network(architecture: str):
    """Depth 4, width 128, 6 tokens; dual attention and normalised queries in the MMDiT."""
    if architecture == "sit":
        return tiny_sit(**SIZE, exits=())
    return tiny_mmdit("sd3.5-medium", **SIZE, dual_layers=(0, 1))


def start(batch: int) -> Start:
    """The first ``batch`` of sixteen samples."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    noise, labels = draw(16, 4, SIZE["height"], SIZE["width"]), torch.arange(16) % 6
    texts = tuple(TextCondition(draw(16, TEXT_TOKENS, TEXT_DIM), draw(16, POOLED_DIM)) for _ in range(2))
    return Start(noise, labels, texts).samples(batch)


def branch_function(architecture: str, given: Start, dtype: torch.dtype) -> Callable:
    """``(x, sigma, condition 0 or 1, perturbation) -> output``: one branch, all layers, alone, in ``dtype``."""
    model = copy.deepcopy(network(architecture)).to(given.noise.device, dtype)
    if architecture == "sit":
        labels = given.labels, torch.full_like(given.labels, model.spec.null_label)
        channels = model.spec.channels
        return lambda x, sigma, condition, skipped: full_forward(model, x.to(dtype), sigma, labels[condition], skipped)[
            :, :channels
        ]
    texts = [TextCondition(text.context.to(dtype), text.pooled.to(dtype)) for text in given.texts]

    def branch(x: Tensor, sigma: float, condition: int, skipped: Perturb | None) -> Tensor:
        time = torch.full((len(x),), 1000 * sigma, dtype=torch.float64, device=x.device)
        return model(x.to(dtype), time, texts[condition], skipped.layers if skipped else ())

    return branch


@torch.no_grad()
def by_formula(architecture: str, given: Start, dtype: torch.dtype) -> Tensor:
    """The state after every call [N, B, C, H, W]; state and combination in fp32, or in fp64 with networks in fp64."""
    branch = branch_function(architecture, given, dtype)
    precise = torch.promote_types(dtype, torch.float32)
    x, states = given.noise.to(precise), []
    sigmas = linear(CALLS).sigmas
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        c = branch(x, sigma, 0, FULL).to(precise)
        if sigma > SWITCH:
            v = c + (SCALE - 1) * (c - branch(x, sigma, 1, FULL).to(precise))
        else:
            v = c + WEIGHT * (c - branch(x, sigma, 0, SKIPPED).to(precise))
        x = x + (following - sigma) * v
        states.append(x)
    return torch.stack(states)


@torch.no_grad()
def by_engine(
    architecture: str, given: Start, dtype: torch.dtype, device: str = "cpu", calls: int = CALLS, **options
) -> Tensor:
    """The state after each of the first ``calls`` calls of an engine, on the CPU."""
    made = Engine if architecture == "sit" else EngineCore
    engine = made(network(architecture), device=device, dtype=dtype, graphs=False, **options)
    plan = engine.plan(RULE, schedule=linear(CALLS))
    seeds = list(range(len(given.noise)))
    if architecture == "sit":
        program = engine.load(plan, given.labels.tolist(), seeds, given.noise)
    else:
        texts = given.to(device).texts
        program = engine.prepare(plan, {name: texts[name == "uncond"] for name in plan.conditions}, seeds, given.noise)
    states = []
    for live in plan.live[:calls]:
        program.step(live)
        states.append(program.x.double().cpu())
    return torch.stack(states)


def errors(states: Tensor, exact: Tensor) -> Tensor:
    """Root-mean-square error after every call [N], relative to the state's root mean square."""
    difference = (states - exact[: len(states)]).flatten(1)
    return difference.square().mean(1).sqrt() / exact[: len(states)].flatten(1).square().mean(1).sqrt()


def drift(states: Tensor, exact: Tensor) -> judgement.Bias:
    """The bias of the last state; a network mixes the errors of a sample, so only samples are independent."""
    return judgement.bias(states[-1], exact[len(states) - 1], shared=3)


@cache
def exact(architecture: str, batch: int) -> Tensor:
    """:func:`by_formula` in fp64."""
    return by_formula(architecture, start(batch), torch.float64)


@cache
def eager(architecture: str, batch: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """:func:`by_formula` with networks in ``dtype``: the differentiable kernels, one branch at a time, on ``device``.

    Devices differ in the last bit of an exponential, in the frequencies of the time too, where at 1000 times the noise level a
    phase moves by 1e-4: on a CPU, frequencies a bit off make a run in fp32 err eight times as much.
    """
    return by_formula(architecture, start(batch).to(device), dtype).cpu()


def check(states: Tensor, architecture: str, batch: int, dtype: torch.dtype, device: str = "cpu") -> None:
    """After every call at most twice the error of the same run in eager PyTorch, and no bias in the end."""
    truth = exact(architecture, batch)
    allowed = judgement.FACTOR * errors(eager(architecture, batch, dtype, device), truth) + judgement.FLOOR * 2.0**-23
    found, bias = errors(states, truth), drift(states, truth)
    print(f"{architecture} {dtype}: error {found[-1]:.2e}, allowed {allowed[len(found) - 1]:.2e}; {bias}")
    assert (found <= allowed[: len(found)]).all(), f"error {found.tolist()}, allowed {allowed.tolist()}"
    assert bias.passed, str(bias)


def main() -> None:
    """A line for each kernel set and precision that the CPU has."""
    for architecture in ARCHITECTURES:
        truth = exact(architecture, 16)
        runs = {f"eager {dtype}": eager(architecture, 16, dtype) for dtype in (torch.float32, torch.bfloat16)}
        for kernels, dtype in product(KERNELS, (torch.float32, torch.bfloat16)):
            runs[f"{kernels} {dtype}"] = by_engine(architecture, start(16), dtype, kernels=kernels)
        runs["auto with fp8 linears"] = by_engine(architecture, start(16), torch.float32, linears="fp8", kernels="auto")
        for name, states in runs.items():
            print(f"{architecture}, {name}: error {errors(states, truth)[-1]:.2e}, {drift(states, truth)}")


if __name__ == "__main__":
    main()
