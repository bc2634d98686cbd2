"""The guided denoiser in a sampling loop that is not ours: `model(x, sigma) -> denoised`, the contract of k-diffusion."""

from pathlib import Path

import torch

from segue import CFG, SGG, Engine, SkipLayer, linear

OUT = Path("out/examples")
OUT.mkdir(parents=True, exist_ok=True)


def euler(model, x, sigmas):
    """Euler's method as k-diffusion has it, in flow coordinates x = (1 - sigma) x0 + sigma eps."""
    for sigma, lower in zip(sigmas, sigmas[1:], strict=False):
        denoised = model(x, sigma.expand(len(x)))
        x = x + (lower - sigma) * (x - denoised) / sigma
    return x


engine = Engine.from_pretrained("herbarium")
rule = SGG(CFG(1.5), SkipLayer(0.1, layers=(7, 8)), switch=0.5)
levels = linear(12)

# A denoiser sees noise levels only. Its schedule gives windows in steps a meaning, and all tables are made at once.
denoiser = engine.denoiser(rule, labels=[0, 5], schedule=levels)
noise = engine.draw_noise(engine.plan(rule, schedule=levels), seeds=[0, 1])
with torch.no_grad():
    latents = euler(denoiser, noise, torch.tensor(levels.sigmas, dtype=torch.float32))

own = engine.sample([0, 5], rule, schedule=levels, seeds=[0, 1])
print(f"farthest from the engine's own loop: {(latents - own.latents).abs().max():.1e}")
engine.decode(latents)[0].save(OUT / "other-sampler.png")
