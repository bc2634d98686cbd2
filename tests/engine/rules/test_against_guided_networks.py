"""Perturbed branches against the guiders of diffusers that perturb a network by hooks, on networks of its own."""

import copy
from dataclasses import replace

import pytest
import torch
from modular_sd3 import inputs, one_call, plain
from tiny_sd3 import ARCHITECTURES, tiny_transformer
from upstream import diffusers_defect

from segue import CFG, PerturbedLayers, SkipLayer, Unguided
from segue.engine.core import EngineCore
from segue.engine.velocity import GuidedVelocity
from segue.models.mmdit import TextCondition
from segue.models.mmdit_diffusers import from_diffusers

pytest.importorskip("diffusers.guiders")

from diffusers import guiders
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks import SmoothedEnergyGuidanceConfig as BlurConfig
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.hooks.smoothed_energy_guidance_utils import _apply_smoothed_energy_guidance_hook as apply_blur
from diffusers.models.attention_processor import JointAttnProcessor2_0

SCALE, WEIGHT, LAYERS, BATCH = 4.0, 2.5, [2, 3], 2  # blocks in pairs: see test_guider_defects
SIGMA, TOKENS, BLOCKS = 0.5, 7, "transformer_blocks"
ERROR = 2e-5  # fp32 against fp32, another order of sums in 6 blocks and two gains
WHOLE = {"start": 0.0, "stop": 1.0}


@pytest.fixture(params=ARCHITECTURES)
def transformer(request):
    return tiny_transformer(request.param, seed=3)


@pytest.fixture
def latents(seed):
    return torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(seed))  # its blur takes pictures for squares


@pytest.fixture
def prompts(seed):
    generator = torch.Generator().manual_seed(seed + 1)
    shapes = {"prompt_embeds": (BATCH, TOKENS, 24), "pooled_prompt_embeds": (BATCH, 20)}
    shapes |= {f"negative_{name}": shape for name, shape in shapes.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def found(transformer, latents, prompts):
    """The guided velocity of a rule."""

    def found(rule):
        engine = EngineCore(from_diffusers(copy.deepcopy(transformer)), device="cpu")
        conditions = {
            "cond": TextCondition(prompts["prompt_embeds"], prompts["pooled_prompt_embeds"]),
            "uncond": TextCondition(prompts["negative_prompt_embeds"], prompts["negative_pooled_prompt_embeds"]),
        }
        specs = {"main": replace(engine.spec, text_tokens=TOKENS)}
        velocity = GuidedVelocity(engine, rule, lambda plan: conditions, *latents.shape[2:], specs=specs)
        return velocity(latents, torch.full((BATCH,), SIGMA))

    return found


@pytest.fixture
def guided(transformer, latents, prompts):
    """The prediction of one of diffusers' guiders; in a step that is not the first, in which it perturbs nothing."""

    def guided(guider):
        times = {"timestep": 1000 * SIGMA, "step": 1, "steps": 3}
        return one_call(copy.deepcopy(transformer), guider, inputs(prompts, latents), **times)[0]

    return guided


def close(found, wanted) -> bool:
    return bool((found - wanted).abs().max() <= ERROR * wanted.abs().max())


def whole(name: str) -> dict:
    return {f"{name}_{end}": value for end, value in WHOLE.items()}


def test_skipped_blocks(found, guided):
    config = LayerSkipConfig(LAYERS, BLOCKS)
    numbers = {"skip_layer_guidance_scale": WEIGHT, **whole("skip_layer_guidance")}
    theirs = guided(guiders.SkipLayerGuidance(SCALE, skip_layer_config=config, **numbers))
    assert close(found(CFG(SCALE) + SkipLayer(WEIGHT, LAYERS)), theirs)


def test_maps_of_identity(found, guided, monkeypatch):
    numbers = {"perturbed_guidance_scale": WEIGHT, **whole("perturbed_guidance")}
    guider = guiders.PerturbedAttentionGuidance(SCALE, perturbed_guidance_layers=LAYERS, **numbers)
    unknown = "JointAttnProcessor2_0" not in {processor.__name__ for processor in AttentionProcessorRegistry._registry}
    diffusers_defect(unknown, "its guider of perturbed attention does not know SD3's, and fails")
    known = AttentionProcessorRegistry._registry | {JointAttnProcessor2_0: AttentionProcessorMetadata(None)}
    monkeypatch.setattr(AttentionProcessorRegistry, "_registry", known)
    assert close(found(CFG(SCALE) + PerturbedLayers(WEIGHT, LAYERS, kind="attention_identity")), guided(guider))


def mean_after_norm(transformer, layers) -> None:
    """Let the image's queries of ``layers`` be their mean behind their norm, [B, H, L, K], by hooks of PyTorch."""
    for layer in layers:
        block = transformer.transformer_blocks[layer]
        for attention in filter(None, (block.attn, getattr(block, "attn2", None))):
            attention.norm_q.register_forward_hook(lambda norm, given, q: q.mean(dim=2, keepdim=True).expand_as(q))


def test_mean_queries(transformer, found, guided, prompts, latents):
    """The hook blurs what enters the norm of queries, where there is one; the paper's energy is of what leaves it."""

    def smoothed(blur):
        network = copy.deepcopy(transformer)
        apply_blur(network, BlurConfig(LAYERS, BLOCKS), blur)
        return plain(network, prompts, latents, 1000 * SIGMA)

    without = found(Unguided())
    weak = without - (found(PerturbedLayers(1.0, LAYERS, kind="attention_blur")) - without)
    if transformer.transformer_blocks[0].attn.norm_q is None:
        assert close(weak, smoothed(1.0))
    else:
        network = copy.deepcopy(transformer)
        mean_after_norm(network, LAYERS)
        assert close(weak, plain(network, prompts, latents, 1000 * SIGMA)) and not close(weak, smoothed(1.0))
    diffusers_defect(torch.equal(smoothed(1.0), smoothed(5.0)), "a finite blur of any width takes the mean query")
    guider = guiders.SmoothedEnergyGuidance(SCALE, WEIGHT, seg_guidance_config=BlurConfig(LAYERS, BLOCKS))
    diffusers_defect(close(guided(guider), found(CFG(SCALE))), "its guider perturbs nothing")
