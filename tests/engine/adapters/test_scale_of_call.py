"""The scale that a pipeline is called with: in a rule that takes it diffusers' own guidance, elsewhere a warning."""

import warnings

import pytest
import torch
from attached_runs import draw, relative_error
from tiny_dit import tiny_dit_pipeline
from tiny_sd3 import tiny_pipeline

import segue
from segue import CFG, SGG, Engine, Guidance, PlanWarning, SkipLayer, Window

CALL = CFG("call")
ROUNDING = 1e-4  # fp32, another order of sums, amplified by a few steps of random networks


def draw_dit(pipe, **call):
    settings = {"class_labels": [1, 3], "num_inference_steps": 3, "generator": torch.Generator().manual_seed(7)}
    return torch.from_numpy(pipe(**(settings | {"output_type": "np"} | call)).images)


def draw_sd3(pipe, **call):
    return draw(pipe, **({"num_inference_steps": 3} | call))


@pytest.fixture
def sd3():
    return tiny_pipeline(seed=3, num_layers=2, dual_attention_layers=(0,)), draw_sd3


@pytest.fixture
def dit():
    return tiny_dit_pipeline(classes=1000), draw_dit  # the pipeline's null label is 1000


@pytest.fixture(params=["sd3", "dit"])
def pipe_and_draw(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scale", [0.5, 5.5])
def test_a_rule_with_the_scale_of_the_call_is_diffusers_guidance(pipe_and_draw, scale):
    pipe, draw = pipe_and_draw
    plain = draw(pipe, guidance_scale=scale)
    attachment = segue.attach(pipe, CALL)
    found = draw(pipe, guidance_scale=scale)
    assert relative_error(found, plain) < ROUNDING
    assert attachment.plan.guidance == CFG(max(scale, 1.0))
    segue.detach(pipe)


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_without_a_rule_the_pipeline_follows_its_own_scale(pipe_and_draw, scale):
    pipe, draw = pipe_and_draw
    plain = draw(pipe, guidance_scale=scale)
    attachment = segue.attach(pipe)
    assert relative_error(draw(pipe, guidance_scale=scale), plain) < ROUNDING
    assert attachment.plan.guidance == CFG(scale)
    segue.attach(pipe, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)
        draw(pipe, guidance_scale=scale)
    assert attachment.plan.guidance == Guidance()
    segue.detach(pipe)


def test_the_scale_is_that_of_each_call_and_its_default(pipe_and_draw):
    pipe, draw = pipe_and_draw
    plain = draw(pipe)
    attachment = segue.attach(pipe, "cfg:scale=call,channels=4")  # alone, cfg guides three channels of a DiT
    scales = [2.0, 6.0, 2.0]
    drawn = [draw(pipe, guidance_scale=scale) for scale in scales]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert relative_error(draw(pipe), plain) < ROUNDING
    assert attachment.guidance == CFG("call", channels=4)
    segue.detach(pipe)


def test_what_switches_the_negative_prompt_on_is_not_said_to_have_no_other_effect(sd3):
    """The second term needs the negative prompt at any scale of the call, and the first takes that scale."""
    pipe, draw = sd3
    segue.attach(pipe, CFG("call", window=Window.fraction(0.5, 1)) + CFG(3.0, window=Window.fraction(0, 0.5)))
    with pytest.raises(ValueError, match=r"uncond branch at call 1 .* guidance_scale > 1 .* switches its negative prompt on$"):
        draw(pipe, guidance_scale=1.0)
    segue.detach(pipe)


def test_in_a_sum_the_other_terms_stay(sd3):
    pipe, draw = sd3
    drawn = []
    for strong in (CALL, CFG(3.0)):
        segue.attach(pipe, SGG(strong, SkipLayer(1.5, (1,)), 0.8))
        drawn.append(draw(pipe, guidance_scale=3.0))
        segue.detach(pipe)
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("rule", "scale", "warned"),
    [
        (CFG(3.0), {}, False),
        (CFG(3.0), {"guidance_scale": 3.0}, False),
        (CALL, {"guidance_scale": 5.5}, False),
        (SkipLayer(1.0, (1,)), {"guidance_scale": 5.5}, True),
    ],
)
def test_a_scale_without_effect_is_warned_of_once(pipe_and_draw, rule, scale, warned):
    """And not the pipeline's default, which nobody chose, nor the rule's own."""
    pipe, draw = pipe_and_draw
    segue.attach(pipe, rule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            draw(pipe, **scale)
    told = [item for item in caught if item.category is PlanWarning]
    assert len(told) == warned
    if warned:
        assert "guidance_scale=5.5 has no effect on the attached rule" in str(told[0].message)
        assert "CFG('call')" in str(told[0].message)
    segue.detach(pipe)


def test_where_no_pipeline_is_called_the_scale_is_refused(sd3):
    pipe, _ = sd3
    engine = Engine.from_pipe(pipe)
    for work in (lambda: engine.plan(CALL), lambda: engine.generate("leaf", guidance=CALL, steps=1)):
        with pytest.raises(ValueError, match="the scale 'call' is that of the call of a pipeline"):
            work()
    segue.attach(pipe, CALL)
    pipe.scheduler.set_timesteps(2)
    embeddings = engine.encode("leaf")
    with pytest.raises(ValueError, match="takes its scale from the call of the attached pipeline, and none is running"):
        pipe.transformer(
            torch.ones(1, 4, 8, 8), embeddings.positive.context, embeddings.positive.pooled, pipe.scheduler.timesteps[:1]
        )
    segue.detach(pipe)
    with pytest.raises(ValueError, match="applies to a constant weight, not to the scale of a call"):
        CFG("call", delta=0.5)


def test_an_attached_run_tells_what_is_odd_about_its_plan_at_the_line_that_calls_it(pipe_and_draw):
    pipe, draw = pipe_and_draw
    segue.attach(pipe, CFG(3.0, window=Window.steps(1, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            draw(pipe, guidance_scale=3.0)
    told = [item for item in caught if item.category is PlanWarning]
    assert ["come after the last window and are unguided" in str(item.message) for item in told] == [True]
    assert (told[0].filename.endswith((".py",)) and "attached_runs" in told[0].filename) or "scale_of_call" in told[0].filename
    segue.detach(pipe)
