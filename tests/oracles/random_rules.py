"""Random rules, solvers and schedules, and the engines that they are tried on."""

import copy
import math
import random

import numpy as np
import textbook_solvers
import torch
from tiny_models import tiny_sit

from segue import (
    ADG,
    APG,
    CFG,
    FBG,
    FDG,
    MAMBO,
    S2,
    TCFG,
    TSR,
    AutoGuidance,
    BetaCFG,
    CFGPlusPlus,
    CFGZeroStar,
    EarlyExit,
    EnergyPreserving,
    Engine,
    EpsilonScaling,
    FreSca,
    Guidance,
    HiGS,
    PerpNeg,
    PerturbedLayers,
    PowerLawCFG,
    Renorm,
    Rescale,
    SkipLayer,
    SpectralRefine,
    Window,
)
from segue.engine.planning.schedule import Schedule
from segue.engine.rules.branch import UNCOND
from segue.engine.rules.correction import FREQUENCIES
from segue.kernels.attention import PERTURBATIONS

SOLVERS = ("euler", "heun", "dpm++2m", "ab2", "euler-maruyama", "ddim", *textbook_solvers.SOLVERS)
WEAK = ("skip", "skip", "skip", "perturb", "drop", "exit", "weak")
KINDS = ("cfg", "cfg", "parent", "label", *WEAK)


def made_engines(*specs: dict) -> list[tuple[Engine, dict]]:
    made = []
    for seed, changes in enumerate(specs):
        main = tiny_sit(seed, **changes)
        weak = tiny_sit(seed + 10, **(changes | {"depth": 2, "exits": (1,), "dim": 16, "heads": 1}))
        doubles = {"main": copy.deepcopy(main).double(), "weak": copy.deepcopy(weak).double()}
        made.append((Engine(main, {"weak": weak}, device="cpu"), doubles))
    return made


def random_window(rng: random.Random, steps: int) -> Window | None:
    kind = rng.choice(("all", "sigma", "fraction", "steps"))
    if kind == "all":
        return None
    if kind == "steps":
        first = rng.randint(1, steps)
        return Window.steps(first, rng.randint(first, steps + 2))
    low, high = sorted(rng.sample(range(101), 2))
    return (Window.sigma if kind == "sigma" else Window.fraction)(low / 100, high / 100)


def random_channels(rng: random.Random) -> int | None:
    """How many channels a rule guides, mostly all: terms on one branch must agree, also those of other samples."""
    return rng.choice((None, None, None, 2))


def random_terms(rng: random.Random, spec, steps: int, channels: int | None) -> Guidance:
    """Up to three terms, some with reused directions; often such as corrections of a reference may follow."""
    if channels is None and rng.random() < 0.75:
        guided = CFG(round(rng.uniform(1.2, 3.0), 2), window=rng.choice((None, None, random_window(rng, steps))))
        return sum((random_term(rng, spec, steps, None, WEAK) for _ in range(rng.randint(0, 2))), guided)
    terms = (random_term(rng, spec, steps, channels) for _ in range(rng.randint(0, 3)))
    return random_reuse(rng, sum(terms, Guidance()), steps)


def random_term(rng: random.Random, spec, steps: int, channels: int | None, kinds: tuple[str, ...] = KINDS) -> Guidance:
    window = random_window(rng, steps)
    weight = rng.choice((0.0, round(rng.uniform(-0.5, 2.0), 2), lambda sigma: 1.5 * sigma * (1 - sigma)))
    delta = 0.0 if callable(weight) or weight == 0.0 else rng.choice((0.0, 0.5, -0.3))
    kind = rng.choice(kinds)
    if kind in ("cfg", "parent", "label"):
        condition = {"cfg": "uncond", "parent": "parent", "label": rng.randrange(spec.num_classes)}[kind]
        if kind == "cfg" and rng.random() < 0.2:
            return CFGPlusPlus(rng.choice((0.2, 0.6)), window=window) if channels is None else Guidance()
        scale = (lambda sigma: 1 + 1.5 * sigma) if callable(weight) else 1 + weight
        return CFG(scale, delta=delta, window=window, condition=condition, channels=channels)
    if kind == "exit":
        return EarlyExit(weight, rng.choice(spec.exits), delta=delta, window=window)
    if kind == "weak":
        return AutoGuidance(weight, delta=delta, window=window)
    if kind == "drop":
        protected = tuple(rng.sample(range(spec.depth), rng.choice((0, 1, spec.depth // 2))))
        return S2(weight, share=rng.choice((0.1, 0.5)), seed=rng.randrange(3), protected=protected, delta=delta, window=window)
    layers = tuple(rng.sample(range(spec.depth), rng.choice((0, 1, 1, 2, 2, 3, spec.depth))))
    if kind == "skip":
        return SkipLayer(weight, layers, delta=delta, window=window)
    return PerturbedLayers(weight, layers, kind=rng.choice(PERTURBATIONS), delta=delta, window=window)


def random_reuse(rng: random.Random, guidance: Guidance, steps: int) -> Guidance:
    """Mostly exact; directions held or extrapolated, at every so many calls or at some, which a run may not have."""
    if rng.random() < 0.4:
        return guidance
    order = rng.choice((0, 0, 1, 1, 2))
    if rng.random() < 0.5:
        return guidance.reused(rng.choice((2, 3)), order=order)
    calls = range(1, 2 * steps + 2)  # two stages a step, and one beyond
    return guidance.reused(order=order, calls=rng.sample(calls, rng.randint(1, len(calls))))


def random_corrections(rng: random.Random, guidance: Guidance, spec) -> Guidance:
    """None, or some that the terms and the network allow; reused directions rule out those that act on a term."""
    if rng.random() < 0.25:
        return Guidance()
    others = {term.branch for term in guidance.terms if term.branch.condition != "cond"}
    exact = all(term.channels is None and term.reuse.is_exact for term in guidance.terms)
    perpendicular = exact and UNCOND in others and len({term.branch for term in guidance.terms}) > 1 and rng.random() < 0.5
    referred, whole = [], [Rescale(rng.uniform(0, 1)), Renorm(rng.uniform(1, 1.2)), EnergyPreserving(rng.uniform(0, 1))]
    whole.append(HiGS(rng.uniform(0, 2), rng.uniform(0.3, 1), 0.1, 0.95, rng.choice((1.0, 0.3)), rng.uniform(0, 0.5)))
    whole.append(SpectralRefine(rng.uniform(-0.5, 0.5), rng.uniform(0, 0.9), rng.uniform(0.2, 1)))
    if exact and (perpendicular or len(others) == 1):
        referred = [
            APG(rng.choice((0.0, -0.5, 0.3)), rng.choice((math.inf, 2.0)), rng.choice((0.0, 1.0, 0.5))),
            TCFG(), MAMBO(rng.uniform(0, 8)), PowerLawCFG(rng.uniform(-0.3, 0.3)), ADG(rng.uniform(0.2, 1.5)),
            BetaCFG(rng.choice((1.0, 2.0)), rng.choice((1.0, 2.0)), rng.choice((0.0, 0.3))),
            FDG(rng.uniform(0, 2), rng.choice((2, 3))), FreSca(rng.uniform(0, 2), rng.uniform(0, 2), rng.uniform(0, 1)),
            FBG(0.9, 0.4, 0.5, 4.0),
        ]  # fmt: skip
        if spec.prediction != "epsilon" and spec.path == "linear":
            referred.append(CFGZeroStar(rng.choice((0, 0, 1))))
    chosen = rng.sample(referred, min(len(referred), rng.choice((0, 1, 1, 2)))) + rng.sample(whole, rng.choice((0, 0, 1, 2)))
    chosen += [PerpNeg()] if perpendicular else []
    chosen += rng.choice(([], [], [TSR(rng.uniform(0.8, 1.1), 2.0)], [EpsilonScaling(1.01)]))
    corrections = sorted((rule.corrections[0] for rule in chosen), key=lambda correction: correction.place)
    if [correction.place for correction in corrections].count(FREQUENCIES) > 1:
        del corrections[0]
    return Guidance(corrections=tuple(corrections))


def random_schedule(rng: random.Random, steps: int, solver: str) -> Schedule:
    """Equal or random steps; of these none is ten times another, which multistep solvers would amplify rounding by."""
    start = rng.choice((1.0, 0.99)) if solver != "euler-maruyama" else 1.0
    sizes = np.array([rng.uniform(0.1, 1.0) for _ in range(steps)])
    levels = (start * (1 - sizes.cumsum() / sizes.sum())).tolist()
    return Schedule((start, *levels[:-1], 0.0) if rng.random() < 0.5 else (*torch.linspace(start, 0, steps + 1).tolist(),))


def random_plan(rng: random.Random, engine: Engine, guidance: Guidance, steps: int, solver: str):
    """A plan on a random schedule; a discrete model may refuse levels that fall on one index, then another is drawn."""
    while True:
        try:
            return engine.plan(guidance, schedule=random_schedule(rng, steps, solver), solver=solver)
        except ValueError as error:
            if "are the same to" not in str(error):
                raise


def random_solver(rng: random.Random, engine: Engine) -> str:
    """One that fits the network: dpm++sde calls it between the levels that a chain has, ddpm needs a learned variance."""
    if engine.spec.prediction != "epsilon":
        return rng.choice(SOLVERS)
    return rng.choice([*(solver for solver in SOLVERS if solver != "dpm++sde"), "ddpm"])
