"""A DiT with its VAE: the plan, pictures by the official scale and sampler, and latents without a VAE."""

from tiny_pipelines import OUT, tiny_dit

from segue import CFG, Engine

# A saved DiTPipeline brings its VAE. Of a file: Engine.from_pretrained("DiT-XL-2-256x256.pt", family="dit", vae="folder")
engine = Engine.from_pretrained(tiny_dit())
official = CFG(4.0, channels=3)  # the official sampler of DiT guides three of the four channels
print(engine.plan(official, steps=10, solver="ddpm"))

run = engine.sample(labels=[207, 360], guidance=official, steps=10, seeds=[0, 1], solver="ddpm")
for label, image in zip(run.labels, run.images, strict=True):
    image.save(OUT / f"dit-class{label}.png")
print("latents", tuple(run.latents.shape), "pictures", run.images[0].size)
