"""Defects of modular diffusers' guiders, each shown, and shown to be absent from our guider in the same loop."""

import copy

import pytest
import torch
from modular_sd3 import SKIP, STEPS, drawn_prompts, make_scheduler, naive_run, run_pipeline
from tiny_sd3 import tiny_transformer
from upstream import diffusers_defect

from segue import CFG, Guidance, SkipLayer, Unguided, Window

pytest.importorskip("diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3")

import diffusers

from segue.engine.adapters.modular import SegmentedGuidance

ERROR = 2e-5  # fp32 against an fp64 combination of the same fp32 outputs, over 5 calls with weights up to 3
SCALE, WEIGHT = 4.0, 2.5
WHOLE = {"skip_layer_guidance_scale": WEIGHT, "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
LATER = Window.steps(2, STEPS)  # diffusers' widest window leaves the first step out


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer()


@pytest.fixture(scope="module")
def prompts():
    return drawn_prompts()


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 4, 10, 6, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def run(transformer, prompts, latents):
    """Latents and recorded calls under a guider; a failing one leaves hooks behind, so each run has a copy of its own."""

    def run(guider, given=prompts):
        scheduler = make_scheduler("static")
        if isinstance(guider, Guidance):
            guider = SegmentedGuidance(guider, scheduler=scheduler)
        return run_pipeline(copy.deepcopy(transformer), scheduler, guider, given, latents)

    return run


@pytest.fixture
def naive(transformer, prompts, latents):
    """Latents by definition, under weights of the negative and of the weak branch (without the blocks ``SKIP``) at a step."""
    return lambda weights: naive_run(transformer, make_scheduler("static"), weights, prompts, latents)[0]


def fails(run, guider) -> bool:
    try:
        run(guider)
    except (RuntimeError, TypeError, ValueError):
        return True
    return False


def close(found, wanted) -> bool:
    return bool((found - wanted).abs().max() <= ERROR * wanted.abs().max())


def skipping(layers, scale=SCALE):
    """diffusers' guider with the layers given in the form that it takes."""
    config = diffusers.LayerSkipConfig(indices=list(layers), fqn="transformer_blocks")
    return diffusers.SkipLayerGuidance(guidance_scale=scale, skip_layer_config=config, **WHOLE)


def test_layers_may_be_given_as_a_list(run, naive):
    theirs = (
        diffusers.SkipLayerGuidance(skip_layer_guidance_layers=list(SKIP), **WHOLE),
        diffusers.AutoGuidance(auto_guidance_layers=list(SKIP), dropout=1.0),
    )
    for guider in theirs:
        diffusers_defect(fails(run, guider), f"{type(guider).__name__} fails when it is given a list of layers")
    latents, _ = run(CFG(SCALE) + SkipLayer(WEIGHT, list(SKIP), window=LATER))
    assert close(latents, naive(lambda step, sigma: (SCALE - 1, WEIGHT * (step > 0))))


def test_an_odd_number_of_skipped_layers_leaves_the_streams_in_place(run, naive):
    """With an even number diffusers swaps them back, and equals ours."""
    even, _ = run(skipping((1, 2)))
    assert close(run(CFG(SCALE) + SkipLayer(WEIGHT, (1, 2), window=LATER))[0], even)
    wanted = naive(lambda step, sigma: (SCALE - 1, WEIGHT * (step > 0)))
    swapped = fails(run, skipping(SKIP)) or not close(run(skipping(SKIP))[0], wanted)
    diffusers_defect(swapped, "skipping an odd number of layers swaps the image and the text stream")
    assert close(run(CFG(SCALE) + SkipLayer(WEIGHT, SKIP, window=LATER))[0], wanted)


def test_without_cfg_the_weak_branch_is_the_perturbed_network_on_the_positive_prompt(run, naive):
    found, calls = run(skipping(SKIP, scale=1.0))
    negative = naive(lambda step, sigma: ((WEIGHT - 1) * (step > 0), 0.0))  # k + w (c - k) with k the whole network
    diffusers_defect(
        close(found, negative) and ((), False) in calls,
        "where CFG is off, the weak branch is the whole network on the negative prompt",
    )
    found, calls = run(SkipLayer(WEIGHT, SKIP, window=LATER))
    assert close(found, naive(lambda step, sigma: (0.0, WEIGHT * (step > 0))))
    assert calls == [((), True)] + [((), True), (SKIP, True)] * (STEPS - 1)


def test_without_a_negative_prompt_nothing_is_evaluated_twice(run, prompts):
    given = {name: value for name, value in prompts.items() if not name.startswith("negative")}
    unguided, calls = run(Unguided(), given)
    assert calls == [((), True)] * STEPS
    found, calls = run(diffusers.ClassifierFreeGuidance(guidance_scale=SCALE), given)
    diffusers_defect(
        calls == [((), True)] * (2 * STEPS) and torch.equal(found, unguided),
        "without a negative prompt CFG evaluates the prompt twice and changes nothing",
    )
    with pytest.raises(ValueError, match="needs the unconditional branch: give the pipeline a negative_prompt"):
        run(CFG(SCALE), given)


def test_fused_projections_without_their_norm_are_refused(prompts, latents):
    transformer = tiny_transformer("sd3.5-large")
    transformer.fuse_qkv_projections()
    scheduler = make_scheduler("static")
    with pytest.raises(ValueError, match=r"drops the QK norm .* call pipe.transformer.unfuse_qkv_projections"):
        run_pipeline(transformer, scheduler, SegmentedGuidance(CFG(SCALE), scheduler=scheduler), prompts, latents)
