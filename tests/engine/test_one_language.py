"""What is said on the command line is said alike in Python: rules as text, classes by name."""

import numpy as np
import pytest
import torch
from attached_runs import draw
from tiny_dit import tiny_dit_pipeline
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import CFG, SGG, Engine, SkipLayer, compile_plan, flow_shift, parse_rule

RULE = SGG(CFG(3.0), SkipLayer(1.5, (1, 2)), 0.6)
TEXT = "sgg:scale=3,weight=1.5,layers=1,2,switch=0.6"
SPELLED = (TEXT, parse_rule(TEXT), parse_rule(TEXT).parts[0])


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(), device="cpu")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(seed=3, num_layers=3, dual_attention_layers=(0,))


@pytest.mark.parametrize("rule", SPELLED, ids=lambda rule: type(rule).__name__)
def test_a_rule_as_text_draws_what_the_rule_draws_by_labels(engine, rule):
    drawn = [engine.sample([0, 4], given, steps=3, seeds=5) for given in (RULE, rule)]
    assert torch.equal(drawn[0].latents, drawn[1].latents)
    assert drawn[1].plan.guidance == RULE == engine.plan(rule).guidance
    assert compile_plan(rule, flow_shift(4), "euler", engine.spec).guidance == RULE
    x, sigma = torch.ones(2, 4, 6, 10), torch.tensor([0.7, 0.3])
    assert torch.equal(*(engine.denoiser(given, [0, 4])(x, sigma) for given in (RULE, rule)))


@pytest.mark.parametrize("rule", SPELLED, ids=lambda rule: type(rule).__name__)
def test_a_rule_as_text_draws_what_the_rule_draws_by_prompts(pipe, rule):
    options = {"steps": 2, "seeds": 5, "max_sequence_length": T5_TOKENS, "output": "latent"}
    engine = Engine.from_pipe(pipe)
    drawn = [engine.generate("leaf", "dull", given, **options).latents for given in (RULE, rule)]
    assert torch.equal(*drawn)
    assert np.array_equal(engine.plan(rule).weights, engine.plan(RULE).weights)


@pytest.mark.parametrize("rule", SPELLED, ids=lambda rule: type(rule).__name__)
def test_a_rule_as_text_is_attached_as_the_rule_is(pipe, rule):
    drawn = []
    for given in (RULE, rule):
        segue.attach(pipe, given)
        drawn.append(draw(pipe, num_inference_steps=2))
        segue.detach(pipe)
    assert torch.equal(*drawn)


def test_text_takes_the_numbers_of_the_model_it_is_given_to():
    """Of DiT: CFG 4.0 on three channels; the herbarium's are those of the command line."""
    engine = Engine(tiny_sit(name="herbarium", depth=12, exits=(4,)), device="cpu")
    dit = Engine.from_pipe(tiny_dit_pipeline(classes=1000))
    assert engine.plan("sgg").guidance == parse_rule("sgg", "herbarium").guidance
    assert dit.plan("cfg").guidance == CFG(4.0, channels=3)
    pipe = tiny_dit_pipeline(classes=1000)
    assert segue.attach(pipe, "cfg").guidance == CFG(4.0, channels=3)
    segue.detach(pipe)
