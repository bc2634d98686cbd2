"""The loop denoiser in modular diffusers' own SD3 blocks, against a rule attached to the pipeline: same latents, same rows."""

import copy

import pytest
import torch
from attached_runs import draw_attached, relative_error
from counted_rows import counted_rows, planned_rows
from markdown_pages import ROOT
from modular_sd3 import RULES, SKIP, STEPS, drawn_prompts, make_scheduler
from PIL import Image
from tiny_sd3 import T5_TOKENS, tiny_components, tiny_pipeline, tiny_transformer

import segue
from segue import CFG, SGG, SkipLayer, Window

pytest.importorskip("diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3")

import diffusers
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
    StableDiffusion3AutoBlocks,
    StableDiffusion3T2ICoreDenoiseStep,
)

from segue.engine.adapters.modular_loop import GuidedLoopDenoiser

pytestmark = pytest.mark.filterwarnings("ignore::segue.PlanWarning")

ERROR = 1e-5  # the same program on the same inputs: what differs are copies of fp32 latents
FOLDER = ROOT / "examples" / "guided_loop_denoiser"
SIZE = (10, 6)
WHOLE = {
    **{name: RULES[name][0] for name in ("sgg", "overlap")},
    "nag": segue.NAG(3.0),
    "apg": segue.parse_rule("cfg:scale=4 + apg:momentum=-0.5,radius=5,eta=0.2").guidance,
    "reused": CFG(4.0).reused(2),
    "per sample": CFG([2.0, 4.0]),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def prompts():
    return drawn_prompts()


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(7))


def modular(transformer, scheduler, rule, blocks=StableDiffusion3T2ICoreDenoiseStep):
    """A pipeline of diffusers' blocks with the denoiser in them."""
    pipe = GuidedLoopDenoiser(rule).placed_in(blocks()).init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(transformer=transformer, scheduler=scheduler)
    return pipe


def run(pipe, prompts, latents, **changes):
    """The last latents, the plan, and the batch size of every block call."""
    call = {"height": 8 * SIZE[0], "width": 8 * SIZE[1], "num_inference_steps": STEPS, **prompts, **changes}
    with counted_rows() as rows:
        state = pipe(latents=latents.clone(), **call)
    return state.get("latents"), state.get("plan"), rows


def attached(pipe, scheduler, rule, prompts, latents, path=None):
    """The same by ``segue.attach`` on the pipeline of whole runs."""
    pipe.scheduler = scheduler
    height, width = (len(pipe.vae.config.block_out_channels) * side for side in SIZE)
    call = {"prompt": None, "height": height, "width": width, "guidance_scale": 2.0, "num_inference_steps": STEPS}
    return draw_attached(pipe, rule, path, latents=latents.clone(), **call, **prompts)


RUNS = [(name, "static") for name in WHOLE if name != "overlap"] + [("sgg", "dynamic"), ("overlap", "heun")]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_latents_and_rows_are_those_of_the_attached_rule(pipe, prompts, latents, name, kind):
    rule = WHOLE[name]
    expected = attached(pipe, make_scheduler(kind), rule, prompts, latents)
    found, plan, rows = run(modular(pipe.transformer, make_scheduler(kind), rule), prompts, latents)
    assert relative_error(found, expected.latents) <= ERROR
    assert rows == expected.rows
    assert str(plan) == str(expected.plan)


def test_rows_are_one_batch_where_a_guider_makes_a_call_of_each(pipe, prompts, latents):
    rule, calls = CFG(4.5) + SkipLayer(2.0, SKIP), STEPS
    _, _, rows = run(modular(pipe.transformer, make_scheduler("static"), rule), prompts, latents)
    depth = len(pipe.transformer.transformer_blocks)
    shared, forked = [4] * SKIP[0], [6] * (depth - SKIP[-1] - 1)  # the weak branch forks at its first layer, which it skips
    assert rows == (shared + [4] * len(SKIP) + forked) * calls

    guided = StableDiffusion3T2ICoreDenoiseStep().init_pipeline()
    guided.set_progress_bar_config(disable=True)
    guider = segue.SegmentedGuidance(rule)
    guided.update_components(transformer=pipe.transformer, scheduler=make_scheduler("static"), guider=guider)
    _, _, rows = run(guided, prompts, latents)
    assert rows == ([2] * depth + [2] * depth + [2] * (depth - len(SKIP))) * calls


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    """Where diffusers copies the code of a folder to, instead of the user's own place."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_a_hub_folder_gives_the_block_with_a_rule(pipe, prompts, latents, modules_cache):
    rule = "sgg:scale=4.5,weight=3,layers=1-3,switch=0.7"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        diffusers.ModularPipelineBlocks.from_pretrained(str(FOLDER))
    denoiser = diffusers.ModularPipelineBlocks.from_pretrained(str(FOLDER), trust_remote_code=True, guidance=rule)
    assert isinstance(denoiser, StableDiffusion3LoopDenoiser) and denoiser.guidance == rule
    loaded = denoiser.placed_in(StableDiffusion3T2ICoreDenoiseStep()).init_pipeline()
    loaded.set_progress_bar_config(disable=True)
    loaded.update_components(transformer=pipe.transformer, scheduler=make_scheduler("static"))
    found, plan, rows = run(loaded, prompts, latents)
    expected = attached(pipe, make_scheduler("static"), SGG(CFG(4.5), SkipLayer(3.0, SKIP), 0.7), prompts, latents)
    assert relative_error(found, expected.latents) <= ERROR
    assert rows == expected.rows == planned_rows(plan, len(latents))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_picture_from_prompts_to_pixels(kind):
    """All of modular diffusers' SD3 blocks, against an engine of the same components."""
    components, rule = tiny_components(), SGG(CFG(4.5), SkipLayer(3.0, SKIP), 0.7)
    pipe = modular(components.pop("transformer"), components.pop("scheduler"), rule, StableDiffusion3AutoBlocks)
    pipe.update_components(**components)
    assert not hasattr(pipe, "guider")
    call = {"prompt": ["a leaf", "a fern"], "max_sequence_length": T5_TOKENS, "num_inference_steps": 4, "output_type": "np"}
    call |= {"height": 16, "width": 16, "negative_prompt": "", "generator": torch.Generator().manual_seed(0)}
    if kind == "image":
        call |= {"image": Image.new("RGB", (16, 16), (200, 120, 40)), "strength": 0.5}
    state = pipe(**call)
    assert state.get("plan").calls == (4 if kind == "text" else 2)

    images = torch.as_tensor(state.get("images"))

    whole = diffusers.StableDiffusion3Pipeline if kind == "text" else diffusers.StableDiffusion3Img2ImgPipeline
    usual = whole(**{name: getattr(pipe, name) for name in tiny_components()})
    usual.set_progress_bar_config(disable=True)
    call |= {"guidance_scale": 2.0, "generator": torch.Generator().manual_seed(0)}
    if kind == "image":
        call = {name: value for name, value in call.items() if name not in ("height", "width")}
    segue.attach(usual, rule)
    assert relative_error(images, torch.as_tensor(usual(**call).images)) <= ERROR


def test_the_blocks_that_diffusers_shares_stay_as_they_are():
    GuidedLoopDenoiser("cfg:scale=2").placed_in(StableDiffusion3AutoBlocks())
    for kind in ("text2image", "img2img"):
        block = StableDiffusion3AutoBlocks()
        for name in ("denoise", kind, "denoise", "denoiser"):
            block = block.sub_blocks[name]
        assert type(block) is StableDiffusion3LoopDenoiser
    with pytest.raises(ValueError, match="StableDiffusion3DecodeStep holds no denoiser of Stable Diffusion 3"):
        GuidedLoopDenoiser("cfg:scale=2").placed_in(StableDiffusion3AutoBlocks().sub_blocks["decode"])


def test_a_call_may_bring_a_rule_of_its_own(pipe, prompts, latents):
    both = modular(pipe.transformer, make_scheduler("static"), CFG(2.0))
    own, _, _ = run(both, prompts, latents, guidance="cfg:scale=5")
    before, _, _ = run(both, prompts, latents)
    alone = [run(modular(pipe.transformer, make_scheduler("static"), CFG(s)), prompts, latents)[0] for s in (5.0, 2.0)]
    assert torch.equal(own, alone[0]) and torch.equal(before, alone[1])


def test_what_happens_to_the_transformer_between_runs_is_followed(prompts, latents):
    """Weights written to, weights that cannot be packed, and another transformer."""
    transformer, rule = tiny_transformer(), CFG(3.0, window=Window.steps(1, 3)) + SkipLayer(2.0, SKIP)
    kept = modular(transformer, make_scheduler("static"), rule)

    def expected():
        return run(modular(copy.deepcopy(kept.transformer), make_scheduler("static"), rule), prompts, latents)[0]

    first = run(kept, prompts, latents)[0]
    with torch.no_grad():
        transformer.proj_out.weight.mul_(1.5)
    changed = run(kept, prompts, latents)[0]
    assert relative_error(changed, expected()) <= ERROR < relative_error(changed, first)
    handle = transformer.proj_out.register_forward_hook(lambda *_: None)  # its own modules run from now on
    assert relative_error(run(kept, prompts, latents)[0], changed) <= 2e-5  # another order of sums
    handle.remove()
    kept.update_components(transformer=tiny_transformer(seed=4))
    assert relative_error(run(kept, prompts, latents)[0], expected()) <= ERROR


def test_offload_hooks_around_the_transformer_fire(pipe, prompts, latents):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Counted(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    transformer, hook = tiny_transformer(), Counted()
    expected = run(modular(transformer, make_scheduler("static"), CFG(3.0)), prompts, latents)[0]
    add_hook_to_module(transformer, hook)
    found, plan, _ = run(modular(transformer, make_scheduler("static"), CFG(3.0)), prompts, latents)
    remove_hook_from_module(transformer)
    assert relative_error(found, expected) <= 2e-5  # through its own modules: another order of sums
    assert hook.calls == plan.calls


def test_a_copy_of_the_blocks_has_the_rule_and_nothing_of_the_runs(pipe, prompts, latents):
    used = modular(pipe.transformer, make_scheduler("static"), CFG(3.0))
    run(used, prompts, latents)
    denoiser = used.blocks.sub_blocks["denoise"].sub_blocks["denoiser"]
    assert denoiser.guidance == CFG(3.0) and denoiser._calls is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (CFG("call"), r"has no guidance_scale for CFG\('call'\) to take; write a number"),
        ("icg:scale=3", "needs the prompts of its classes"),
        ("cfg:scle=3", "scle"),
        (SkipLayer(2.0, (9,)), "layer 9 does not exist"),
        (4.5, r"guidance must be a rule such as .*, or its text .* got 4\.5"),
    ],
    ids=str,
)
def test_rules_that_no_loop_of_blocks_can_follow_are_refused(pipe, prompts, latents, rule, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run(modular(pipe.transformer, make_scheduler("static"), rule), prompts, latents)


@pytest.mark.parametrize("rule", [CFG(3.0), segue.NAG(3.0)], ids=["cfg", "nag"])
def test_a_rule_that_needs_a_negative_prompt_says_so(pipe, prompts, latents, rule):
    positive = {name: value for name, value in prompts.items() if not name.startswith("negative")}
    with pytest.raises(ValueError, match=r"give it a negative_prompt \('' will do\)"):
        run(modular(pipe.transformer, make_scheduler("static"), rule), positive, latents)
    found, plan, rows = run(modular(pipe.transformer, make_scheduler("static"), SkipLayer(2.0, SKIP)), positive, latents)
    assert rows == planned_rows(plan, len(latents)) and found.isfinite().all()
