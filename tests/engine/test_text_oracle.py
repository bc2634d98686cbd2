"""Random plans of a network that takes prompts against the naive sampler: NAG, CFG and perturbed branches in fp64."""

import copy
import random
from dataclasses import dataclass

import pytest
import torch
from naive_mmdit import Nag, naive_velocity
from naive_sampler import NaiveSampler, distinct_evaluations, executed_rows, in_window, path_of
from sweeps import first_fast
from tiny_models import randomize
from torch import Tensor

from segue import APG, CFG, MAMBO, NAG, S2, Guidance, HiGS, PerturbedLayers, Rescale, Window, flow_shift
from segue.engine.core import EngineCore
from segue.engine.planning.compile import compile_plan
from segue.engine.rules.branch import Branch
from segue.engine.rules.dropped_blocks import DropBlocks
from segue.engine.velocity import GuidedVelocity
from segue.kernels.attention import PERTURBATIONS
from segue.models.mmdit import MMDiT, TextCondition
from segue.models.mmdit_spec import MMDiTSpec

CASES = 24
# fp32 against fp64, relative to the largest value: up to 10 calls of a network, rounding 6e-8, guidance gains up to 5, and in
# each block a difference of attentions times up to 6
RELATIVE_ERROR = 2e-5
SIZES = (
    {"height": 6, "width": 10, "depth": 5, "heads": 2, "dim": 16, "dual_layers": (0, 2), "qk_norm": True, "text_tokens": 7},
    {"height": 6, "width": 6, "depth": 4, "heads": 3, "dim": 24, "text_tokens": 13, "scale_first": True},
    {"height": 2, "width": 2, "depth": 3, "heads": 1, "dim": 12, "qk_norm": True, "text_tokens": 1},
)


@pytest.fixture(scope="module")
def engines():
    made = []
    for number, size in enumerate(SIZES):
        common = {"name": "tiny", "channels": 4, "patch": 2, "text_dim": 12, "pooled_dim": 8, "position_size": 8}
        model = randomize(MMDiT(MMDiTSpec(**(common | size))), 40 + number)
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.data += 1
        made.append((EngineCore(model, device="cpu"), copy.deepcopy(model).double()))
    return made


@dataclass
class NaiveTextSampler(NaiveSampler):
    """Every branch alone, by two whole attentions where NAG acts."""

    prompts: dict[str, TextCondition]

    def velocity(self, y: Tensor, sigma: float, step: int) -> Tensor:
        self.step = step
        return super().velocity(y, sigma, step)

    def all_channels(self, branch: Branch, y: Tensor, sigma: float) -> Tensor:
        count, nag = len(self.sigmas) - 1, None
        for part in self.guidance.attention if branch.condition == "cond" else ():
            if in_window(part.window, self.step, count, self.sigmas[self.step]):
                numbers = (torch.full((len(y),), value).double() for value in (part.scale, part.tau, part.alpha))
                nag = Nag(self.prompts["uncond"], *numbers)
        network, kind, layers = branch.network, "", ()
        if isinstance(network, DropBlocks):
            kind, layers = "skip", network.dropped(self.models["main"].spec.depth, self.step + 1)[self.step]
        elif network is not None:
            kind, layers = network.kind, network.layers
        return naive_velocity(self.models["main"], y, sigma, self.prompts[branch.condition], kind, layers, nag)


def random_nag(rng: random.Random, steps: int, batch: int) -> Guidance:
    """One over the run or a part of it, or two, before and after a step; numbers for each sample or for all."""

    def numbers(low: float, high: float):
        drawn = [low if rng.random() < 0.15 else round(rng.uniform(low, high), 2) for _ in range(batch)]
        return drawn if rng.random() < 0.5 else drawn[0]

    def one(window: Window | None) -> Guidance:
        return NAG(numbers(1, 6), tau=numbers(1, 3), alpha=numbers(0, 1), window=window)

    middle = rng.randint(1, steps)
    if rng.random() < 0.3 and middle < steps:
        return one(Window.steps(1, middle)) + one(Window.steps(middle + 1, steps))
    return one(rng.choice((None, Window.steps(middle, steps), Window.fraction(0.0, 0.6), Window.sigma(0.0, 0.7))))


def random_rule(rng: random.Random, depth: int, steps: int, batch: int) -> Guidance:
    rule = random_nag(rng, steps, batch)
    for _ in range(rng.randint(0, 2)):
        window = rng.choice((None, Window.fraction(0.0, 0.5), Window.sigma(0.4, 1.0)))
        weight = round(rng.uniform(-0.5, 2.0), 2)
        kind = rng.random()
        if kind < 0.3:
            rule += CFG(1 + weight, window=window)
        elif kind < 0.5:
            rule += S2(weight, share=0.4, seed=rng.randrange(9), protected=rng.choice(((), (0,))), window=window)
        else:
            layers = tuple(rng.sample(range(depth), rng.choice((1, 1, 2, depth))))
            rule += PerturbedLayers(weight, layers, kind=rng.choice(("skip", "skip", *PERTURBATIONS)), window=window)
    return rule


class Counter:
    """Rows of images, and of texts beyond one for each, that enter every block."""

    def __init__(self, model: MMDiT):
        self.images, self.seconds = [0] * model.spec.depth, [0] * model.spec.depth
        self.handles = [block.register_forward_pre_hook(self._hook(i)) for i, block in enumerate(model.joint_blocks)]

    def _hook(self, layer: int):
        def count(_, arguments):
            self.images[layer] += len(arguments[0])
            self.seconds[layer] += len(arguments[1]) - len(arguments[0])

        return count

    def take(self) -> tuple[list[int], list[int]]:
        taken, depth = (self.images, self.seconds), len(self.images)
        self.images, self.seconds = [0] * depth, [0] * depth
        return taken


def check_counts(engine: EngineCore, plan, prompts, x: Tensor) -> Tensor:
    """Run call by call; rows of both streams in every layer and evaluations are the planned ones, and the fewest possible."""
    batch, program, counter = len(x), engine.prepare(plan, prompts, [0] * len(x), x), Counter(engine.models["main"])
    for live in plan.live:
        program.step(live)
        images, seconds = counter.take()
        members = [plan.branches[i] for i in plan.outputs(live)]
        paths = [path_of(branch, plan.conditions, plan.spec.depth) for branch in members]
        conditional = [path for path in paths if path[0] == "cond"] if len(members) < len(live) else []
        assert images == [batch * count for count in executed_rows(paths, plan.spec.depth)]
        assert seconds == [batch * count for count in executed_rows(conditional, plan.spec.depth)]
        assert plan.call_cost(live)[:2] == (distinct_evaluations(paths), sum(images) // batch)
        assert plan.text_blocks(live) == sum(seconds) // batch
    for handle in counter.handles:
        handle.remove()
    result = program.x.clone()
    engine.release(program)
    return result


BESIDE_NAG = {
    **{kind: PerturbedLayers(1.0, (1, 2), kind=kind) for kind in PERTURBATIONS},
    "skip": PerturbedLayers(1.0, (1,), kind="skip"),
    "s2": S2(1.0, share=0.4, seed=3, protected=()),
    "rescale": Rescale(0.7),
    "chain": MAMBO(1.0) + APG(-0.5, 2.0, 0.3) + HiGS(1.0, low=0.1),
}


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("beside", BESIDE_NAG)
def test_every_kind_of_branch_and_correction_beside_nag(engines, beside, number):
    """Perturbed copies of the guided network are guided too."""
    engine, double = engines[number]
    rule = NAG(4.0, alpha=0.5, tau=2.0) + CFG(2.0) + BESIDE_NAG[beside]
    spec, plan = engine.spec, compile_plan(rule, flow_shift(4), "euler", engine.specs)
    generator = torch.Generator().manual_seed(number)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = draw(2, spec.channels, spec.height, spec.width)
    prompts = {
        name: TextCondition(draw(2, spec.text_tokens, spec.text_dim), draw(2, spec.pooled_dim)) for name in ("cond", "uncond")
    }
    found, _ = engine.run(plan, prompts, [0, 0], x)
    doubles = {name: TextCondition(prompt.context.double(), prompt.pooled.double()) for name, prompt in prompts.items()}
    for i in range(2):
        own = {name: TextCondition(prompt.context[i : i + 1], prompt.pooled[i : i + 1]) for name, prompt in doubles.items()}
        naive = NaiveTextSampler({"main": double}, rule, torch.zeros(1), list(plan.schedule.sigmas), own)
        expected = naive.run("euler", x[i : i + 1])
        assert (found[i] - expected[0]).abs().max() < RELATIVE_ERROR * expected.abs().max()


@pytest.mark.parametrize("chunk", first_fast(range(3)))
def test_random_plans_with_prompts_equal_the_naive_sampler(engines, chunk):
    worst = 0.0
    for case in range(chunk * CASES // 3, (chunk + 1) * CASES // 3):
        rng, generator = random.Random(f"text {case}"), torch.Generator().manual_seed(case)
        engine, double = engines[case % len(engines)]
        spec, steps, batch, solver = engine.spec, rng.choice((1, 2, 3, 5)), rng.randint(1, 3), rng.choice(("euler", "heun"))
        rule = random_rule(rng, spec.depth, steps, batch)
        plan = compile_plan(rule, flow_shift(steps), solver, engine.specs)

        def draw(*shape: int, generator=generator) -> Tensor:
            return torch.randn(*shape, generator=generator)

        x = draw(batch, spec.channels, spec.height, spec.width)
        prompts = {
            name: TextCondition(draw(batch, spec.text_tokens, spec.text_dim), draw(batch, spec.pooled_dim))
            for name in ("cond", "uncond")
        }
        result = check_counts(engine, plan, prompts, x)
        again, _ = engine.run(plan, prompts, [0] * batch, x)
        assert torch.equal(again, result), f"case {case}: a second run on the same buffers differs"
        for i in range(batch):
            own = {
                name: TextCondition(p.context[i : i + 1].double(), p.pooled[i : i + 1].double()) for name, p in prompts.items()
            }
            alone = rule if rule.samples is None else rule.of_sample(i)
            naive = NaiveTextSampler({"main": double}, alone, torch.zeros(1), list(plan.schedule.sigmas), own)
            expected = naive.run(solver, x[i : i + 1])
            error = float((result[i] - expected[0]).abs().max() / expected.abs().max().clamp_min(1))
            worst = max(worst, error)
            assert error < RELATIVE_ERROR, f"case {case}, sample {i}: {solver}, {steps} steps, error {error:.2e}\n{plan}"
    print(f"worst relative error of chunk {chunk}: {worst:.2e}")


def test_gradients_are_those_of_the_naive_sampler(engines):
    """Of a guided velocity by latents and both prompts, through rows with a second text."""
    engine, double = engines[0]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 6, 10, generator=generator)
    texts = [torch.randn(2, 7, 12, generator=generator) for _ in range(2)]
    pooled = [torch.randn(2, 8, generator=generator) for _ in range(2)]
    rule = NAG(4.0, alpha=0.5) + PerturbedLayers(1.0, (2,), kind="skip")

    def gradients(evaluate, dtype):
        leaves = [value.to(dtype).requires_grad_() for value in (x, *texts, *pooled)]
        prompts = {name: TextCondition(leaves[1 + i], leaves[3 + i]) for i, name in enumerate(("cond", "uncond"))}
        return torch.autograd.grad((evaluate(leaves[0], prompts) ** 2).sum(), leaves)

    def ours(y, prompts):
        return GuidedVelocity(engine, rule, lambda plan: prompts, 6, 10)(y, torch.tensor([0.6, 0.6]))

    def naive(y, prompts):
        nag = Nag(prompts["uncond"], *(torch.full((2,), value).double() for value in (4.0, 2.5, 0.5)))
        forward = naive_velocity.__wrapped__
        strong = forward(double, y, 0.6, prompts["cond"], nag=nag)
        return strong + strong - forward(double, y, 0.6, prompts["cond"], "skip", (2,), nag)

    for mine, wanted in zip(gradients(ours, torch.float32), gradients(naive, torch.float64), strict=True):
        assert wanted.abs().max() > 1e-3
        assert (mine - wanted).abs().max() <= 1e-4 * wanted.abs().max()  # a gradient rounds once more a block, both ways
