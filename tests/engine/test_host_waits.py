"""What a run does once: between two calls the host asks the device nothing, copies nothing to it, and looks at no module."""

from collections.abc import Callable

import pytest
import torch
from attached_runs import draw, forced
from step_trace import Trace
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import CFG, Engine, SkipLayer
from segue.engine.adapters import live_transformer
from segue.engine.cli.prompt_session import draw_prompts
from segue.engine.cli.session import draw_labels

RULE, SMALL = CFG(3.0) + SkipLayer(1.5, (1,)), {"num_layers": 2, "dual_attention_layers": (0,)}


def check_questions(run: Callable[[int], object]) -> None:
    """``run(steps)``, traced after a run that makes programs and fills caches."""
    asked = []
    for steps in (2, 2, 6):
        with Trace() as trace:
            run(steps)
        asked.append(trace.synchronising())
    assert asked[1] and asked[2] == asked[1]  # loading asks


@pytest.mark.parametrize("way", ["sample", "progress", "command"])
def test_a_run_of_class_labels(way):
    engine = Engine(tiny_sit(depth=2, exits=()), device="cpu")

    def run(steps):
        if way == "command":
            return draw_labels(engine, engine.plan(RULE, steps), [0, 4], [1, 2], None, pictures=False)
        return engine.sample([0, 4], RULE, steps=steps, seeds=1, progress=way == "progress")

    check_questions(run)


@pytest.mark.parametrize("way", ["sample", "command"])
def test_a_run_of_prompts(way):
    engine = Engine.from_pipe(tiny_pipeline(seed=21, **SMALL))
    embeddings = engine.encode(["leaf"], "dull", max_sequence_length=T5_TOKENS)

    def run(steps):
        if way == "command":
            return draw_prompts(engine, engine.plan(RULE, steps), embeddings, [1], {}, None, False, "leaf", pictures=False)
        return engine.sample(embeddings, RULE, steps=steps, seeds=1)

    check_questions(run)


@pytest.mark.parametrize("path", ["packed", "modules"])
def test_an_attached_pipeline_without_a_callback(path):
    pipe = tiny_pipeline(seed=21, **SMALL)
    segue.attach(pipe, RULE)
    with forced(pipe, path):
        check_questions(lambda steps: draw(pipe, guidance_scale=3.0, num_inference_steps=steps))


def test_an_attached_pipeline_copies_nothing_from_the_host_between_calls(monkeypatch):
    """A copy of pageable memory waits for the device."""
    pipe, copies, from_numpy = tiny_pipeline(seed=21, **SMALL), [], torch.from_numpy
    segue.attach(pipe, RULE)
    monkeypatch.setattr(torch, "from_numpy", lambda array: copies.append(array) or from_numpy(array))

    def copied(steps):
        copies.clear()
        draw(pipe, guidance_scale=3.0, num_inference_steps=steps)
        return len(copies)

    assert copied(2) == copied(6) > 0


def test_a_change_that_does_not_matter_is_looked_into_once(monkeypatch):
    """Other processors of the same kind: the weights stay packed, and no later call goes through all modules again."""
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    pipe, looks = tiny_pipeline(seed=21, **SMALL), []
    attachment = segue.attach(pipe, RULE)
    draw(pipe, guidance_scale=3.0)
    network, reason = attachment._live.network, live_transformer.module_path_reason
    monkeypatch.setattr(live_transformer, "module_path_reason", lambda *given: looks.append(1) or reason(*given))

    def looked(steps):
        looks.clear()
        pipe.transformer.set_attn_processor(JointAttnProcessor2_0())
        draw(pipe, guidance_scale=3.0, num_inference_steps=steps)
        return len(looks)

    assert looked(2) == looked(6) > 0
    assert attachment._live.network is network
