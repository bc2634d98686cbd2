"""Pipelines that share a transformer, attached side by side: each draws by its own rule, in any order, and leaves alone."""

import pytest
import torch
from attached_runs import draw
from counted_rows import counted_rows
from tiny_dit import tiny_dit_pipeline
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import CFG, Engine, SkipLayer

RULES = (CFG(3.0), SkipLayer(1.5, (1,)))
START = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def both_pipelines():
    """Text-to-image, and image-to-image made from it: one transformer, one scheduler."""
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipe = tiny_pipeline(seed=3, num_layers=2, dual_attention_layers=(0,))
    other = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert other.transformer is pipe.transformer and other.scheduler is pipe.scheduler
    return pipe, other


def draw_from(pipe):
    how = {"image": START, "strength": 0.7} if "Img2Img" in type(pipe).__name__ else {}
    return draw(pipe, num_inference_steps=3, guidance_scale=3.0, **how)


def alone(which: int) -> torch.Tensor:
    pipe = both_pipelines()[which]
    segue.attach(pipe, RULES[which])
    return draw_from(pipe)


def test_each_draws_what_it_draws_alone_in_any_order():
    pipes, wanted = both_pipelines(), [alone(0), alone(1)]
    plain = [draw_from(pipe) for pipe in pipes]
    attachments = [segue.attach(pipe, rule) for pipe, rule in zip(pipes, RULES, strict=True)]
    for which in (0, 1, 1, 0):
        with counted_rows() as rows:
            assert torch.equal(draw_from(pipes[which]), wanted[which])
        plan = attachments[which].plan
        assert plan.guidance == RULES[which]
        assert sum(rows) == plan.cost.blocks
    segue.detach(pipes[0])
    assert torch.equal(draw_from(pipes[1]), wanted[1])
    with pytest.raises(ValueError, match="attached to another pipeline than the one that runs, a StableDiffusion3Pipeline"):
        draw_from(pipes[0])
    segue.attach(pipes[0], RULES[0])
    assert torch.equal(draw_from(pipes[0]), wanted[0])
    for pipe in pipes:
        segue.detach(pipe)
    assert "forward" not in vars(pipes[0].transformer)
    assert all(torch.equal(draw_from(pipe), before) for pipe, before in zip(pipes, plain, strict=True))


def test_another_rule_for_one_leaves_the_other():
    pipes, wanted = both_pipelines(), alone(1)
    first, second = (segue.attach(pipe, rule) for pipe, rule in zip(pipes, RULES, strict=True))
    assert segue.attach(pipes[0], CFG(5.0)) is first and second.guidance == RULES[1]
    draw_from(pipes[0])
    assert first.plan.guidance == CFG(5.0) and torch.equal(draw_from(pipes[1]), wanted)


def test_an_engine_beside_them_has_its_own_rule():
    pipes = both_pipelines()
    options = {"guidance": CFG(2.0), "steps": 2, "seeds": 1, "output": "latent", "max_sequence_length": T5_TOKENS}
    before = Engine.from_pipe(pipes[0]).generate("leaf", **options).latents
    for pipe, rule in zip(pipes, RULES, strict=True):
        segue.attach(pipe, rule)
    assert torch.equal(Engine.from_pipe(pipes[1]).generate("leaf", **options).latents, before)
    segue.detach(pipes[0])
    segue.detach(pipes[1])


def test_a_loop_of_ones_own_cannot_tell_which_is_meant():
    pipes = both_pipelines()
    embeddings = Engine.from_pipe(pipes[0]).encode("leaf", None, max_sequence_length=T5_TOKENS)
    segue.attach(pipes[0], SkipLayer(1.5, (1,)))
    pipes[0].scheduler.set_timesteps(2)

    def call():
        text = embeddings.positive.context, embeddings.positive.pooled
        return pipes[0].transformer(torch.ones(1, 4, 8, 8), *text, pipes[0].scheduler.timesteps[:1], return_dict=False)[0]

    wanted = call()
    segue.attach(pipes[1], RULES[1])
    with pytest.raises(ValueError, match="2 pipelines with this transformer are attached, and none of them calls it"):
        call()
    segue.detach(pipes[1])
    assert torch.equal(call(), wanted)
    segue.detach(pipes[0])


def test_two_dit_pipelines_share_one_too():
    from diffusers import DDIMScheduler, DiTPipeline

    pipe = tiny_dit_pipeline(classes=1000)
    other = DiTPipeline(pipe.transformer, pipe.vae, DDIMScheduler(clip_sample=False))

    def images(which):
        how = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(7), "output_type": "np"}
        return torch.from_numpy(which(class_labels=[1], **how).images)

    wanted = []
    for each, rule in ((pipe, CFG(2.0)), (other, CFG(6.0))):
        segue.attach(each, rule)
        wanted.append(images(each))
        segue.detach(each)
    segue.attach(pipe, CFG(2.0))
    segue.attach(other, CFG(6.0))
    for _ in range(2):
        assert torch.equal(images(pipe), wanted[0]) and torch.equal(images(other), wanted[1])
    segue.detach(pipe)
    segue.detach(other)
    assert "forward" not in vars(pipe.transformer)
