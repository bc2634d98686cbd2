"""The evaluations that a network performs equal the plan's through every adapter whose loop belongs to someone else.

Attached pipelines are counted in ``test_attach`` and its neighbours, run by run.
"""

import sys
from types import ModuleType

import pytest
import torch
from attached_runs import PATHS, forced
from comfy_stand_in import BaseModel, ModelPatcher, calc_cond_batch, sampling_function
from counted_rows import counted_rows, planned_rows
from modular_sd3 import RULES, STEPS, make_scheduler, run_pipeline
from published_sgg import Recipe
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline, tiny_transformer

from segue import CFG, SGG, Engine, SkipLayer
from segue.engine.adapters import comfy
from segue.engine.adapters.scheduler_calls import SchedulerCalls
from segue.engine.planning.compile import compile_plan
from segue.engine.planning.plan import Plan
from segue.engine.planning.schedule import flow_shift, from_sigmas
from segue.engine.planning.solvers import EULER
from segue.engine.rules.branch import Perturb
from segue.engine.rules.guidance import Guidance
from segue.models.mmdit_diffusers import diffusers_spec

SWITCHED = {
    "none": None,
    "cfg": CFG(2.5),
    "slg": SkipLayer(2.0, (1, 3)),
    "sgg": SGG(CFG(3.0), SkipLayer(2.0, (2, 3)), 0.7),
    "both": CFG(3.0) + SkipLayer(2.0, (0, 4)),
}


def euler_over_denoised(denoiser, x, sigmas) -> None:
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - denoiser(x, torch.full((len(x),), s))) / s * (t - s)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("known", [True, False], ids=["levels known", "levels as they come"])
@pytest.mark.parametrize("name", SWITCHED)
def test_the_denoiser_of_a_prompt_engine(name, known, path):
    pipe, rule = tiny_pipeline(seed=3), SWITCHED[name]
    with forced(pipe, path):
        engine = Engine.from_pipe(pipe)
        embeddings = engine.encode(["a leaf", "a twig"], "x", max_sequence_length=T5_TOKENS)
        plan = engine.plan(rule, steps=5)
        denoiser = engine.denoiser(rule, embeddings, schedule=plan.schedule if known else None)
        with counted_rows() as rows:
            euler_over_denoised(denoiser, engine.draw_noise(plan, [1, 2]), plan.schedule.sigmas)
    assert rows == planned_rows(plan, 2)
    assert sum(rows) == 2 * plan.cost.blocks


@pytest.mark.parametrize("known", [True, False], ids=["levels known", "levels as they come"])
@pytest.mark.parametrize("name", SWITCHED)
def test_the_denoiser_of_a_class_label_engine(name, known):
    engine, rule = Engine(tiny_sit(depth=6), device="cpu"), SWITCHED[name]
    plan = engine.plan(rule, steps=5, schedule="shift")
    denoiser = engine.denoiser(rule, [0, 3, 5], schedule=plan.schedule if known else None)
    with counted_rows() as rows:
        euler_over_denoised(denoiser, engine.draw_noise(plan, [7, 8, 9]), plan.schedule.sigmas)
    assert rows == planned_rows(plan, 3)


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer()


def guider_runs() -> list[tuple[str, Guidance, str]]:
    runs = [(name, rule, kind) for name, (rule, _) in RULES.items() for kind in ("static", "heun")]
    return runs + [(f"recipe {seed}", _recipe(seed), kind) for seed in range(3) for kind in ("dynamic", "heun")]


def _recipe(seed: int) -> Guidance:
    """A random rule over as many steps as the loop makes."""
    recipes = (Recipe.random(number) for number in range(100 * seed, 100 * (seed + 1)))
    return next(recipe.rule for recipe in recipes if recipe.steps == STEPS)


@pytest.mark.filterwarnings("ignore:.* selects none of")
@pytest.mark.parametrize(("name", "rule", "kind"), guider_runs(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_modular_guider(transformer, name, rule, kind):
    """One call of the transformer for each live branch of the plan, in its order, with its prompt and its layers."""
    from segue.engine.adapters.modular import SegmentedGuidance

    generator = torch.Generator().manual_seed(3)
    shapes = {"prompt_embeds": (2, 7, 24), "pooled_prompt_embeds": (2, 20)}
    shapes |= {f"negative_{name}": shape for name, shape in shapes.items()}
    prompts = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    scheduler, latents = make_scheduler(kind), torch.randn(2, 4, 10, 6, generator=generator)
    _, calls = run_pipeline(transformer, scheduler, SegmentedGuidance(rule, scheduler=scheduler), prompts, latents)
    made = SchedulerCalls.of(scheduler)
    plan = compile_plan(rule, made.schedule, made.solver, diffusers_spec(transformer))
    assert calls == [_call(plan, i) for live in plan.live for i in live]
    assert len(calls) == plan.cost.evaluations


def _call(plan: Plan, i: int) -> tuple[tuple[int, ...], bool]:
    branch = plan.branches[i]
    return branch.network.layers if isinstance(branch.network, Perturb) else (), branch.condition == "cond"


@pytest.fixture
def comfy_package(monkeypatch):
    package, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    package.samplers, samplers.calc_cond_batch = samplers, calc_cond_batch
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


@pytest.mark.parametrize(("cfg", "weight"), [(4.5, 3.0), (1.0, 3.0), (4.5, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize("switch", [0.3, 0.74])
def test_the_comfyui_node(comfy_package, transformer, cfg, weight, switch):
    """Conditions that the stand-in evaluates, whole or with layers skipped, over a run of Euler's method."""
    generator = torch.Generator().manual_seed(11)
    x, cond, uncond = (torch.randn(shape, generator=generator) for shape in ((2, 6, 3, 5), (2, 7, 6), (2, 7, 6)))
    settings = {"cfg": cfg, "weight": weight, "layers": "1, 3-4", "switch_by": "sigma", "switch": switch}
    (patched,) = comfy.SegueSegmentedGuidance().apply(model=ModelPatcher(BaseModel()), **settings)
    schedule = flow_shift(6, 3.0)
    for sigma in schedule.sigmas[:-1]:
        level = torch.full((2,), sigma)
        sampling_function(patched.model, x, level, uncond, cond, 5.0, patched.model_options)
    rule = SGG(CFG(cfg), SkipLayer(weight, (1, 3, 4)), switch)
    plan = compile_plan(rule, from_sigmas(schedule.sigmas), EULER, diffusers_spec(transformer))
    made = [(idle, condition == 0) for conditions, idle in patched.model.evaluations for condition in conditions]
    assert made == [_call(plan, i) for live in plan.live for i in live]
    assert len(made) == plan.cost.evaluations
