"""Segmented guidance inside a diffusers pipeline of Stable Diffusion 3: two lines, and one to take it out again."""

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from tiny_pipelines import OUT, tiny_sd3

import segue
from segue import CFG, SkipLayer, Window

pipe = StableDiffusion3Pipeline.from_pretrained(tiny_sd3())  # or "stabilityai/stable-diffusion-3.5-medium"
pipe.set_progress_bar_config(disable=True)


def draw():
    generator = torch.Generator("cpu").manual_seed(0)
    return pipe("a leaf", num_inference_steps=8, guidance_scale=4.5, generator=generator).images[0]


before = draw()
published = CFG(4.5, window=Window.fraction(0.0, 0.5)) + SkipLayer(3.0, layers=(7, 8, 9), window=Window.fraction(0.5, 1.0))
attachment = segue.attach(pipe, guidance=published)
guided = draw()  # the same call, callbacks and output types
print(attachment.explain())
segue.detach(pipe)

guided.save(OUT / "attached.png")
print("the pipeline draws as before:", bool((np.asarray(draw()) == np.asarray(before)).all()))
