"""Autocast on the CPU: a program inside it is one in bf16; what an engine draws is not, it has a precision of its own."""

import pytest
import torch
from live_sets import engine_of, load
from tiny_dit import dit_vae
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, Engine

STEPS = 3


def drawn(architecture: str, kernels: str) -> torch.Tensor:
    engine = engine_of(architecture, device="cpu", kernels=kernels)
    program = load(engine, engine.plan(CFG(3.0), steps=STEPS), batch=2)
    for live in program.plan.live:
        program.step(live)
    return program.x.clone()


@pytest.mark.parametrize("architecture", ["sit", "sd3.5-medium"])
def test_a_run_inside_autocast_is_one_in_bf16(architecture):
    """As far from the run in fp32 as the reference functions inside autocast are, which is far more than fp32 errs."""
    exact = drawn(architecture, "reference")
    with torch.autocast("cpu", torch.bfloat16):
        found, eager = (drawn(architecture, kernels) - exact for kernels in ("auto", "reference"))
    assert 2.0**-14 * exact.abs().max() < found.abs().max() <= 2 * eager.abs().max()


def by_label():
    engine = Engine(tiny_sit(), device="cpu", vae=dit_vae(1))

    def draw():
        run = engine.sample([0, 3], CFG(3.0), steps=STEPS, seeds=5)
        return run.latents, run.images

    return draw


def by_prompt():
    engine = Engine.from_pipe(tiny_pipeline(num_layers=2, dual_attention_layers=(0,)))

    def draw():
        text = {"max_sequence_length": T5_TOKENS}
        run = engine.generate("leaf", "dull", CFG(3.0), steps=STEPS, seeds=5, **text)
        embeddings = engine.encode("leaf", "dull", **text)
        again = engine.sample(embeddings, CFG(3.0), steps=STEPS, seeds=5)
        pooled = embeddings.positive.pooled
        return torch.cat([part.flatten() for part in (run.latents, again.latents, pooled)]), run.images

    return draw


@pytest.mark.parametrize("make", [by_label, by_prompt])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_an_engine_draws_inside_autocast_is_what_it_draws_outside(make, dtype):
    draw = make()
    latents, images = draw()
    with torch.autocast("cpu", dtype):
        inside, shown = draw()
        assert torch.is_autocast_enabled("cpu")
    assert inside.dtype == latents.dtype and torch.equal(inside, latents)
    assert [image.tobytes() for image in shown] == [image.tobytes() for image in images]
