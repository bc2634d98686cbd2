"""The bound that norms of queries and keys set to scores, and what an engine without a running maximum makes of it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from live_sets import engine_of

from segue.engine.core import network_shapes
from segue.kernels.flash_attention import LARGEST_SCORE
from segue.kernels.qkv import rms_norm
from segue.models.mmdit import MMDiT


@pytest.fixture
def network():
    network = engine_of("sd3.5-medium").models["main"]
    generator = torch.Generator().manual_seed(3)
    for block in network.joint_blocks:
        for attention in filter(None, (block.x_block.attn, block.context_block.attn, block.x_block.attn2)):
            for norm in (attention.ln_q, attention.ln_k):
                norm.weight.data = torch.randn(norm.weight.shape, generator=generator)
    return network


def test_no_queries_and_keys_pass_the_bound_and_some_reach_it(network):
    """Pairs of streams one by one: of random vectors, and of those that lie along the largest product."""
    largest = 0.0
    for block in network.joint_blocks:
        joint, second = [block.x_block.attn, block.context_block.attn], block.x_block.attn2
        for one, other in [(q, k) for q in joint for k in joint] + ([(second, second)] if second else []):
            size = one.ln_q.weight.numel()
            q = torch.cat([torch.randn(200, size, generator=torch.Generator().manual_seed(1)), 1e6 * torch.eye(size)])
            keys, queries = rms_norm(q, other.ln_k.weight, 0.0), rms_norm(q, one.ln_q.weight, 0.0)
            largest = max(largest, ((queries @ keys.T).abs().max() * size**-0.5 / math.log(2)).item())
    assert network.largest_score() == pytest.approx(largest, rel=1e-5)
    assert network_shapes({"main": network}, torch.float32).largest_score == network.largest_score()
    assert network_shapes({"main": network}).largest_score == math.inf  # of weights that others may change
    rounded = network.largest_score(torch.bfloat16)
    assert rounded != network.largest_score() and rounded == network.bfloat16().largest_score()


def test_without_norms_or_weights_there_is_no_bound(network):
    assert engine_of("sd3").models["main"].largest_score() == math.inf
    assert network.to("meta").largest_score() == math.inf
    assert network_shapes(engine_of("dit").models, torch.float32).largest_score == math.inf


@pytest.fixture
def bounded():
    engine = engine_of("sd3.5-medium")
    chosen = {**engine.selection.chosen, "attention": ("bounded", "requested")}
    engine.selection = replace(engine.selection, chosen=chosen)
    return engine


REFUSED = r"have come to allow exp\(scores\) of 2\^\d+.*kernels='attention=triton'"


@torch.no_grad()
def test_weights_that_come_to_need_a_maximum_are_refused_at_the_next_run(bounded):
    norm = bounded.models["main"].joint_blocks[0].x_block.attn.ln_q
    bounded._check_scores()
    norm.weight.fill_(LARGEST_SCORE)
    with pytest.raises(RuntimeError, match=REFUSED):
        bounded.prepare(bounded.plan("none", steps=2), {}, [0], torch.zeros(1))


@torch.no_grad()
@pytest.mark.parametrize("value", [2 * LARGEST_SCORE, math.nan])
def test_and_within_a_run(bounded, value, monkeypatch):
    program = SimpleNamespace(follow_weights=lambda values: None)
    bounded.follow(program)
    looked = []
    monkeypatch.setattr(MMDiT, "largest_score", lambda *_: looked.append(1) or value)
    bounded.follow(program)
    assert not looked  # nothing has changed
    bounded.models["main"].joint_blocks[1].context_block.attn.ln_k.weight.mul_(2)
    with pytest.raises(RuntimeError, match=REFUSED.replace(r"\d+", ".*")):
        bounded.follow(program, values=False)


def test_a_live_pipeline_has_no_bound(monkeypatch):
    """Its weights are not the engine's."""
    from segue.engine.adapters.guided_calls import LiveCore

    assert engine_of("sd3.5-medium").owns_weights and not LiveCore.owns_weights
