"""Defects of diffusers' transformer and pipeline, each shown, and shown to be absent from an attached pipeline.

Those of its modular guiders are in ``test_guider_defects``.
"""

from contextlib import contextmanager

import pytest
import torch
from attached_runs import PATHS, draw, draw_attached, relative_error
from published_sgg import PublishedSampler, Recipe
from tiny_sd3 import add_ip_adapter, tiny_pipeline
from torch.overrides import TorchFunctionMode
from upstream import diffusers_defect

import segue
from segue import CFG, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN

SLG = {"skip_guidance_layers": [2, 3], "skip_layer_guidance_scale": 2.0}


@pytest.fixture
def pipe():
    return tiny_pipeline(seed=17)


@contextmanager
def calls_of(transformer):
    """``skip_layers`` of every call of a plain transformer."""
    seen = []
    handle = transformer.register_forward_pre_hook(
        lambda module, inputs, keywords: seen.append(keywords.get("skip_layers")), with_kwargs=True
    )
    yield seen
    handle.remove()


def test_skip_layer_guidance_is_not_dropped_without_cfg(pipe):
    unguided = draw(pipe, guidance_scale=1.0)
    dropped = draw(pipe, guidance_scale=1.0, skip_layer_guidance_stop=1.0, **SLG)
    diffusers_defect(torch.equal(dropped, unguided), "skip-layer guidance is dropped without a word where CFG is off")
    rule = SkipLayer(2.0, (2, 3))
    run = draw_attached(pipe, rule, guidance_scale=1.0)
    assert run.rows == [1, 1, 1, 1, 2, 2] * 5
    sampler = PublishedSampler(pipe, "leaf", "")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    recipe = Recipe(5, 1.0, 0.0, None, 2.0, 0.0, (1, 5), (2, 3))
    wanted = sampler.run(recipe, noise, pipe.scheduler.sigmas.tolist(), heun=False)
    assert relative_error(run.latents, wanted) < ATTACHED_RUN
    assert relative_error(unguided, wanted) > 0.01


def test_both_stages_of_a_heun_step_follow_one_rule(pipe):
    from diffusers import FlowMatchHeunDiscreteScheduler

    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with calls_of(pipe.transformer) as seen:
        draw(pipe, guidance_scale=4.5, num_inference_steps=8, skip_layer_guidance_stop=0.5, **SLG)
    skipped = [call for call, skip in enumerate(seen) if skip is not None]
    # its window ends after the second stage of step 2, not of step 4; a call is followed by its weak pass
    diffusers_defect(skipped == [2, 4, 6], "a skip-layer window counts calls where a step of Heun's makes two")
    rule = CFG(4.5) + SkipLayer(2.0, (2, 3), window=Window.steps(2, 4))
    run = draw_attached(pipe, rule, guidance_scale=4.5, num_inference_steps=8)
    weak = [2 in live for live in run.plan.live]
    assert weak == [False, False, *[True] * 6, *[False] * 7]
    assert run.rows[:12] == [2] * 12 and run.rows[12:18] == [2, 2, 2, 2, 3, 3]


def test_a_window_that_selects_no_step_is_reported(pipe):
    call = {"guidance_scale": 4.5, "num_inference_steps": 5}
    none = torch.equal(draw(pipe, **call, **SLG), draw(pipe, **call))
    diffusers_defect(none, "the default skip-layer window selects no step of five, without a word")
    rule = CFG(4.5) + SkipLayer(2.0, (2, 3), window=Window.fraction(0.01, 0.2))
    run = draw_attached(pipe, rule, **call)
    assert run.plan.warnings[0] == "the window fraction [0.01, 0.2) of cond skip 2,3 selects none of 5 steps"
    assert run.plan.warnings[0] in run.text


def fails(pipe, **call) -> bool:
    try:
        draw(pipe, **call)
    except (AttributeError, RuntimeError):
        return True
    return False


@pytest.mark.parametrize("kind", ["sd3", "sd3.5-medium", "sd3.5-large"])
def test_fused_projections_keep_the_qk_norm(kind):
    """Upstream drops the norm (large) or fails (medium); without a norm (SD3) fused attention is right and is used."""
    pipe = tiny_pipeline(kind, seed=17)
    before = draw(pipe, guidance_scale=4.5)
    pipe.transformer.fuse_qkv_projections()
    if kind == "sd3":
        run = draw_attached(pipe, CFG(4.5), guidance_scale=4.5)
        assert run.path == "modules" and relative_error(run.latents, before) < ATTACHED_RUN
        return
    if kind == "sd3.5-large":
        wrong = relative_error(draw(pipe, guidance_scale=4.5), before) > 0.01
        diffusers_defect(wrong, "fused projections drop the QK norm")
    else:
        diffusers_defect(fails(pipe, guidance_scale=4.5), "fused projections fail on the second attention of a block")
    with pytest.raises(ValueError, match=r"drops the QK norm .* call pipe.transformer.unfuse_qkv_projections\(\)"):
        segue.attach(pipe, CFG(4.5))
    pipe.transformer.unfuse_qkv_projections()
    run = draw_attached(pipe, CFG(4.5), guidance_scale=4.5)
    assert relative_error(run.latents, before) < ATTACHED_RUN


def test_ending_guidance_early_keeps_every_prompt(pipe):
    """The cutoff callback keeps only the last prompt; a window on the rule is what it should do, for any batch."""
    from diffusers.callbacks import SD3CFGCutoffCallback

    prompts = ["leaf", "bee"]

    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def cut():
        return SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)

    alone = []
    for seed, prompt in enumerate(prompts):
        call = {"prompt": prompt, "guidance_scale": 4.5, "generator": lambda seed=seed: generators([seed])}
        alone.append(draw(pipe, callback_on_step_end=cut(), **call))
    together = {"prompt": prompts, "guidance_scale": 4.5, "generator": lambda: generators([0, 1])}
    mixed = draw(pipe, callback_on_step_end=cut(), **together)
    assert relative_error(mixed[1:], alone[1]) < ATTACHED_RUN
    diffusers_defect(relative_error(mixed[:1], alone[0]) > 0.01, "the cutoff callback ends every image on the last prompt")
    run = draw_attached(pipe, CFG(4.5, window=Window.steps(1, 3)), **together)
    assert relative_error(run.latents, torch.cat(alone)) < ATTACHED_RUN
    with pytest.raises(ValueError, match=r"1 prompt embeddings do not fit 2 latents .* give the rule a window instead"):
        draw_attached(pipe, CFG(4.5), callback_on_step_end=cut(), **together)
    # one prompt: the callback takes the negative prompt away, which a rule without that branch from there on does not miss
    rule = CFG(4.5, window=Window.steps(1, 3))
    single = draw_attached(pipe, rule, callback_on_step_end=cut(), **call)
    assert relative_error(single.latents, alone[1]) < ATTACHED_RUN


def test_image_tokens_are_not_mixed_by_skip_layers(pipe):
    add_ip_adapter(pipe.transformer)
    images = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(1))  # negative, positive
    call = {"guidance_scale": 4.5, "ip_adapter_image_embeds": images}
    recipe = Recipe(5, 4.5, 0.0, (1, 5), 2.0, 0.0, (2, 5), (2, 3))
    run = draw_attached(pipe, recipe.rule, **call)
    sampler = PublishedSampler(pipe, "leaf", "", images=(images[:1], images[1:]))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    wanted = sampler.run(recipe, noise, pipe.scheduler.sigmas.tolist(), heun=False)
    assert relative_error(run.latents, wanted) < ATTACHED_RUN
    mixed = draw(pipe, skip_layer_guidance_stop=1.0, **SLG, **call)
    diffusers_defect(relative_error(mixed, wanted) > 1e-3, "the weak pass takes the image tokens of both prompts for one row")


def attention_backends(run) -> set[tuple[bool, bool]]:
    """Whether flash and plain attention were allowed at any scaled dot product while ``run()`` ran."""
    seen = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.scaled_dot_product_attention:
                seen.add((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
            return function(*args, **(kwargs or {}))

    with Watch():
        run()
    return seen


@pytest.mark.parametrize("path", PATHS)
def test_a_choice_of_attention_concerns_one_model(pipe, path):
    """Upstream's, made for an SD3 transformer, leaves that alone and turns every other model; ours touch no default."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    call, default = {"guidance_scale": 4.5}, Registry.get_active_backend()
    before = draw_attached(pipe, CFG(4.5), path, **call).latents
    assert Registry.get_active_backend() == default
    try:
        pipe.transformer.set_attention_backend("_native_math")  # plain attention only
        chosen = Registry.get_active_backend()
        ignored = attention_backends(lambda: draw(pipe, **call)) == {(True, True)}
        diffusers_defect(ignored, "a chosen attention backend has no effect on SD3")
        diffusers_defect(chosen != default, "a backend chosen for one transformer becomes the default of the process")
        assert torch.equal(draw_attached(pipe, CFG(4.5), path, **call).latents, before)
        assert Registry.get_active_backend() == chosen
    finally:
        Registry.set_active_backend(default[0])
