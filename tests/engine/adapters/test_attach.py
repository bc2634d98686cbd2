"""An attached pipeline draws what diffusers draws, with the network evaluations that the plan says."""

import pytest
import torch
from attached_runs import PATHS, draw, draw_attached, relative_error
from counted_rows import planned_rows
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import CFG, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN

SLG = {"skip_guidance_layers": [1, 4], "skip_layer_guidance_scale": 2.8, "skip_layer_guidance_stop": 0.6}
SLG_RULE = CFG(4.5) + SkipLayer(2.8, (1, 4), window=Window.steps(2, 3))  # call i with .01 n < i < .6 n, counted from 0


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# name: (the reference call, the rule, what the attached call changes)
CASES = {
    "unguided": ({"guidance_scale": 1.0}, None, {}),
    "unguided, the pipeline with a negative prompt": ({"guidance_scale": 1.0}, None, {"guidance_scale": 3.0}),
    "cfg": ({"guidance_scale": 4.5}, CFG(4.5), {"guidance_scale": 1.01}),
    "cfg and skip layers": ({"guidance_scale": 4.5, **SLG}, SLG_RULE, {"skip_guidance_layers": None}),
    "negative prompt": ({"guidance_scale": 4.5, "negative_prompt": "dull", **SLG}, SLG_RULE, {"skip_guidance_layers": None}),
    "several prompts": (
        {"prompt": ["leaf", "bee", "owl"], "negative_prompt": ["dull", "red", ""], "guidance_scale": 3.0},
        CFG(3.0),
        {},
    ),
    "several images": ({"num_images_per_prompt": 3, "guidance_scale": 3.0}, CFG(3.0), {"guidance_scale": 7.0}),
    "prompts, images and generators": (
        {
            "prompt": ["leaf", "bee"],
            "num_images_per_prompt": 2,
            "generator": lambda: generators(3, 1, 4, 1),
            "guidance_scale": 4.5,
            **SLG,
        },
        SLG_RULE,
        {"skip_guidance_layers": None},
    ),
    "another size": ({"height": 12, "width": 20, "guidance_scale": 4.5}, CFG(4.5), {}),
    "custom levels": ({"sigmas": [1.0, 0.7, 0.2], "num_inference_steps": 3, "guidance_scale": 4.5}, CFG(4.5), {}),
    "longer prompts": ({"max_sequence_length": 11, "guidance_scale": 4.5}, CFG(4.5), {}),
    "one step": ({"num_inference_steps": 1, "guidance_scale": 4.5}, CFG(4.5), {}),
}


@pytest.fixture(scope="module")
def pipes():
    return {kind: tiny_pipeline(kind, seed=3) for kind in ("sd3", "sd3.5-medium", "sd3.5-large")}


@pytest.fixture(scope="module", params=PATHS)
def path(request):
    return request.param


def compare(pipe, call, rule, changes, path):
    wanted = draw(pipe, **call)
    run = draw_attached(pipe, rule, path, **(call | changes))
    assert relative_error(run.latents, wanted) < ATTACHED_RUN
    assert run.rows == planned_rows(run.plan, len(wanted))
    assert sum(run.rows) == run.plan.cost.blocks * len(wanted)


@pytest.mark.parametrize("name", CASES)
def test_whole_run_equals_the_pipeline(pipes, name):
    compare(pipes["sd3.5-medium"], *CASES[name], "packed")


@pytest.mark.parametrize("name", ["unguided, the pipeline with a negative prompt", "prompts, images and generators"])
def test_whole_run_through_its_own_modules(pipes, name):
    compare(pipes["sd3.5-medium"], *CASES[name], "modules")


@pytest.mark.parametrize("kind", ["sd3", "sd3.5-large"])
def test_whole_run_of_the_other_architectures(pipes, path, kind):
    compare(pipes[kind], *CASES["cfg and skip layers"], path)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "static shift": ("FlowMatchEulerDiscreteScheduler", {"shift": 2.5}),
    "dynamic shift": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 1.3}),
    "karras levels": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    "noise in the loop": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "rounded times, DPM-Solver": ("DPMSolverMultistepScheduler", FLOW),
    "rounded times, UniPC": ("UniPCMultistepScheduler", FLOW),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_whole_run_with_any_flow_matching_scheduler(pipes, name):
    import diffusers

    kind, settings = SCHEDULERS[name]
    pipe = pipes["sd3.5-medium"]
    before, pipe.scheduler = pipe.scheduler, getattr(diffusers, kind)(**settings)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(5)  # for the scheduler that draws noise
            wanted = draw(pipe, guidance_scale=4.5, height=20, width=12)
            torch.manual_seed(5)
            run = draw_attached(pipe, CFG(4.5), "packed", guidance_scale=2.0, height=20, width=12)
        assert relative_error(run.latents, wanted) < ATTACHED_RUN
        assert run.plan.calls == (9 if name == "heun" else 5)
        assert run.rows == planned_rows(run.plan, 1)
    finally:
        pipe.scheduler = before


def test_prompt_embeddings_and_a_second_run_with_other_ones(pipes, path):
    pipe = pipes["sd3.5-medium"]
    calls = []
    for prompt, negative in (("leaf", "dull"), ("owl", "red")):
        embeds = pipe.encode_prompt(
            prompt=prompt, prompt_2=None, prompt_3=None, negative_prompt=negative, max_sequence_length=T5_TOKENS
        )
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        calls.append({"prompt": None, "guidance_scale": 4.5, **dict(zip(names, embeds, strict=True))})
    wanted = [draw(pipe, **call) for call in calls]
    segue.attach(pipe, CFG(4.5))
    try:
        found = [draw(pipe, **call) for call in calls]
    finally:
        segue.detach(pipe)
    assert all(relative_error(*pair) < ATTACHED_RUN for pair in zip(found, wanted, strict=True))
    assert relative_error(found[0], found[1]) > 0.1


def test_only_live_branches_run(pipes, path):
    """The published recipe in small: one full row beside the conditional one above the switch, one suffix below it."""
    rule = CFG(4.5, window=Window.steps(1, 3)) + SkipLayer(3.0, (2, 3), window=Window.steps(4, 6))
    run = draw_attached(pipes["sd3.5-medium"], rule, path, num_inference_steps=6)
    # blocks 2 and 3 are skipped: the weak row forks after block 1 and goes through blocks 4 and 5
    assert run.rows == [2] * 6 * 3 + [1, 1, 1, 1, 2, 2] * 3
    assert run.plan.cost.evaluations == 12


@pytest.mark.gpu
def test_steps_captured_as_graphs():
    """The same latents with and without graphs, for two prompts, after the weights moved from the CPU."""
    pytest.importorskip("diffusers")
    pipe = tiny_pipeline(seed=3)
    rule = CFG(4.5, window=Window.steps(1, 3)) + SkipLayer(3.0, (2, 3), window=Window.steps(4, 5))
    draw_attached(pipe, rule, "packed", guidance_scale=2.0)
    pipe.to("cuda")
    drawn = []
    for graphs in (True, False):
        segue.attach(pipe, rule, graphs=graphs)
        drawn.append([draw(pipe, prompt=prompt, guidance_scale=2.0) for prompt in ("leaf", "bee", "leaf")])
        segue.detach(pipe)
    for captured, eager in zip(*drawn, strict=True):
        assert relative_error(captured, eager) < ATTACHED_RUN
    assert torch.equal(drawn[0][0], drawn[0][2]) and relative_error(drawn[0][0], drawn[0][1]) > 0.1
