"""Corrections against the guiders of diffusers, where it has one, on predictions drawn at random."""

import pytest
import torch
from tiny_models import tiny_sit

from segue import APG, CFG, FDG, MAMBO, TCFG, CFGZeroStar, Engine, Rescale

SCALE, BATCH = 4.5, 3
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # fp32 sums in another order


def combined(rule, conditional, reference):
    """What a program makes of the predictions [calls, B, C, H, W] of a rule's two branches at a state of zeros."""
    engine = Engine(tiny_sit(height=8, width=16), device="cpu")
    plan = engine.plan(rule, steps=4)
    state = torch.zeros(BATCH, 4, 8, 16)
    program = engine.load(plan, [0] * BATCH, [0] * BATCH, state)
    found = []
    for call in range(len(conditional)):
        at = torch.full((BATCH,), call)
        coefficients = torch.from_numpy(plan.coefficients()[call]).float().expand(BATCH, -1, -1)
        outputs = {0: conditional[call], 1: reference[call]}
        found.append(program.combination.combine(state, outputs, coefficients, at))
    return torch.stack(found), plan


def guided(guider, conditional, reference, radii=None):
    """The same by a guider of diffusers, call by call, each with its own of ``radii`` where there are any."""
    found = []
    for step, (c, u) in enumerate(zip(conditional, reference, strict=True)):
        if radii is not None:
            guider.adaptive_projected_guidance_rescale = radii[step]
        guider.set_state(step=step + 1, num_inference_steps=100, timestep=torch.tensor(500))
        found.append(guider.forward(c, u).pred)
    return torch.stack(found)


@pytest.fixture
def predictions(seed):
    generator = torch.Generator().manual_seed(seed)
    conditional = torch.randn(2, BATCH, 4, 8, 16, generator=generator) + 0.2
    return conditional, conditional + 0.4 * torch.randn(2, BATCH, 4, 8, 16, generator=generator)


def test_zero_star(predictions):
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    ours, _ = combined(CFG(SCALE) + CFGZeroStar(), *predictions)
    theirs = guided(ClassifierFreeZeroStarGuidance(SCALE, zero_init_steps=0), *predictions)
    assert torch.allclose(ours, theirs, **CLOSE)


def test_tangential_damping(predictions):
    from diffusers.guiders import TangentialClassifierFreeGuidance

    ours, _ = combined(CFG(SCALE) + TCFG(), *predictions)
    theirs = guided(TangentialClassifierFreeGuidance(SCALE), *predictions)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # of a singular value decomposition in fp32


def test_magnitude_damping(predictions):
    from diffusers.guiders.magnitude_aware_guidance import MagnitudeAwareGuidance

    ours, _ = combined(CFG(SCALE) + MAMBO(3.0), *predictions)
    flat = [
        prediction.flatten(2) for prediction in predictions
    ]  # it asks for a norm over three dimensions, which PyTorch refuses
    theirs = guided(MagnitudeAwareGuidance(SCALE, alpha=3.0), *flat).view_as(predictions[0])
    assert torch.allclose(ours, theirs, **CLOSE)


def test_rescaled_deviation(predictions):
    from diffusers.guiders import ClassifierFreeGuidance

    ours, _ = combined(CFG(SCALE) + Rescale(0.7), *predictions)
    theirs = guided(ClassifierFreeGuidance(SCALE, guidance_rescale=0.7), *predictions)
    assert torch.allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize("levels", [2, 3])
def test_decoupled_frequencies(predictions, levels):
    """All levels but the lowest of the guider's have one scale, as the two of FDG."""
    from diffusers.guiders import FrequencyDecoupledGuidance

    low = 2.0
    ours, _ = combined(CFG(SCALE) + FDG((low - 1) / (SCALE - 1), levels), *predictions)
    theirs = guided(FrequencyDecoupledGuidance([*[SCALE] * (levels - 1), low]), *predictions)
    assert torch.allclose(ours, theirs, **CLOSE)


def test_adaptive_projection(predictions):
    """The guider projects the network's output, we clean estimates: at a state of zeros these are the output times -sigma.

    So the radius of a call is by its level, the momentum by two; the guider's other convention is ours.
    """
    from diffusers.guiders import AdaptiveProjectedGuidance
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

    radius, momentum = 3.0, -0.5
    ours, plan = combined(CFG(SCALE) + APG(momentum, radius, 0.3), *predictions)
    guider = AdaptiveProjectedGuidance(SCALE - 1, eta=0.3, use_original_formulation=True)
    guider.momentum_buffer = MomentumBuffer(momentum * plan.sigmas[0] / plan.sigmas[1])  # which it makes where it runs networks
    theirs = guided(guider, *predictions, radius / plan.sigmas)
    assert torch.allclose(ours, theirs, **CLOSE)
