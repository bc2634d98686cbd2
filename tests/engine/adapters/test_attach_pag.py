"""Perturbed attention against diffusers' own PAG pipeline of Stable Diffusion 3, and which kind is which."""

import pytest
from attached_runs import draw, draw_attached, relative_error
from tiny_sd3 import tiny_pipeline

from segue import CFG, Guidance, PerturbedLayers
from tests.tolerances import ATTACHED_RUN

LAYERS = (2, 5)  # the last block, whose text stream ends at its attention, is one of them


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd3", seed=13)


@pytest.fixture(scope="module")
def pag(pipe):
    """diffusers' PAG pipeline on the same components."""
    from diffusers import StableDiffusion3PAGPipeline

    components = {name: part for name, part in pipe.components.items() if part is not None}
    other = StableDiffusion3PAGPipeline(**components, pag_applied_layers=[f"blocks.{layer}" for layer in LAYERS])
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("scale", [1.0, 4.5])
@pytest.mark.parametrize("prompts", [["leaf"], ["leaf", "bee", "owl"]])
def test_the_kind_that_keeps_the_text_is_that_pipeline(pipe, pag, prompts, scale):
    call = {"prompt": prompts, "guidance_scale": scale}
    wanted = draw(pag, pag_scale=2.0, **call)
    assert relative_error(draw(pag, pag_scale=0.0, **call), wanted) > 0.1
    cfg = CFG(scale) if scale > 1 else Guidance()
    found = draw_attached(pipe, cfg + PerturbedLayers(2.0, LAYERS, kind="attention_identity_image"), "packed", **call)
    assert relative_error(found.latents, wanted) < ATTACHED_RUN
    blind = draw_attached(pipe, cfg + PerturbedLayers(2.0, LAYERS, kind="attention_identity"), "packed", **call)
    assert relative_error(blind.latents, wanted) > 0.1
