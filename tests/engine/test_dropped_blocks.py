"""S2-Guidance: which blocks are left out, by closed gates in one layout; the random-plan oracles hold its numbers."""

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from recorded_captures import Recorder
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, S2, Engine, parse_rule
from segue.engine.planning.condition_labels import condition_labels
from segue.engine.rules.dropped_blocks import DropBlocks
from segue.engine.running.program_key import ProgramKey

LABELS, SEEDS = [0, 3], [1, 2]


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(depth=6), device="cpu")


def test_every_set_of_blocks_that_is_not_protected_is_as_likely():
    drop, steps = DropBlocks(0.3, seed=5, protected=(0, 3)), 4000
    drawn = Counter(drop.dropped(7, steps))
    wanted = list(combinations((1, 2, 4, 5, 6), 2))
    assert set(drawn) == set(wanted)
    share = 1 / len(wanted)
    deviation = math.sqrt(share * (1 - share) / steps)
    assert all(abs(drawn[pair] / steps - share) < 5 * deviation for pair in wanted)


def test_draws_are_those_of_the_seed_and_the_step_alone():
    draws = [DropBlocks(0.1, seed).dropped(24, 28) for seed in (0, 0, 1, 2**40)]
    assert draws[0] == draws[1] and len({str(own) for own in draws}) == 3
    assert all(len(layers) == 2 and not {0, 23} & set(layers) for layers in draws[0])
    assert draws[0][:4] == [(4, 19), (6, 13), (14, 15), (9, 21)], "a picture is drawn again by its seed"
    assert DropBlocks(0.01).count(24) == 1, "never none"


def test_a_table_tells_what_each_call_leaves_out(engine):
    """Both calls of a step of Heun's leave out the same."""
    drop = DropBlocks(0.4, 3)
    plan = engine.plan(CFG(2.0) + S2(0.5, share=0.4, seed=3), steps=3, solver="heun")
    opened, dropped = plan.opened, drop.dropped(6, 3)
    assert opened.shape == (5, 1, 6) and plan.steps.tolist() == [0, 0, 1, 1, 2]
    for call, step in enumerate(plan.steps.tolist()):
        assert [layer for layer in range(6) if not opened[call, 0, layer]] == list(dropped[step])


def test_without_weight_it_is_unguided_to_the_bit(engine):
    found = engine.sample(LABELS, S2(0.0), steps=3, seeds=SEEDS).latents
    assert torch.equal(found, engine.sample(LABELS, None, steps=3, seeds=SEEDS).latents)


def test_all_draws_share_a_layout_a_program_and_what_comes_before_the_first_of_them(engine):
    """The row forks behind the protected beginning; another seed or share is only another table."""
    plans = [engine.plan(S2(1.0, share=share, seed=seed), steps=4) for share, seed in ((0.2, 0), (0.5, 9))]
    assert plans[0].live_sets == ((0, 1),)
    layout = plans[0].layout((0, 1))
    assert [rows.active for rows in layout.layers] == [1, 2, 2, 2, 2, 2]
    assert all(len(rows.groups) == 1 for rows in layout.layers)
    assert all(not any(segment.operation != "full" for group in rows.groups for segment in group) for rows in layout.layers)
    assert ProgramKey.of(plans[0], 2) == ProgramKey.of(plans[1], 2)


def test_a_batch_of_rules_of_their_own(engine):
    """Samples that draw other blocks, or none, beside each other."""
    rules = [S2(0.7, share=0.4), S2(0.7, share=0.4, seed=1), CFG(2.0)]
    found = engine.sample([0, 1, 2], rules, steps=3, seeds=[1, 2, 3]).latents
    for i, rule in enumerate(rules):
        alone = engine.sample([i], rule, steps=3, seeds=[i + 1]).latents
        assert torch.allclose(found[i : i + 1], alone, atol=2e-5)


def test_one_captured_step_replays_other_draws(engine):
    """A later run loads its own table into the buffers that the first one was captured with."""
    rules = [CFG(2.0) + S2(0.7, share=share, seed=seed) for share, seed in ((0.4, 1), (0.2, 5))]
    plans = [engine.plan(rule, steps=4) for rule in rules]
    program = engine.load(plans[0], LABELS, SEEDS, engine.draw_noise(plans[0], SEEDS))
    program.use_graphs(recorder := Recorder())
    for plan, rule in zip(plans, rules, strict=True):
        noise = engine.draw_noise(plan, SEEDS)
        program.load(plan, noise, condition_labels(engine.spec, plan.conditions, LABELS), SEEDS)
        for live in plan.live:
            program.advance(live)
        assert torch.equal(program.x, engine.sample(LABELS, rule, steps=4, noise=noise).latents)
    assert (recorder.captures, recorder.replays) == (1, 8)


def drawn_from_prompts(rule, modules: bool) -> torch.Tensor:
    pipe = tiny_pipeline(seed=21, num_layers=4, dual_attention_layers=(0, 1))
    if modules:
        pipe.transformer.proj_out.register_forward_hook(lambda *_: None)  # which weights that are packed would lose
    options = {"steps": 3, "seeds": [1, 2], "max_sequence_length": T5_TOKENS, "output": "latent"}
    return Engine.from_pipe(pipe).generate(["a fern", "an oak"], "a blot", rule, **options).latents


def test_prompts_by_their_own_modules_and_by_packed_ones():
    """Modules compute gates of their own: there what a block has changed is put back."""
    rule = CFG(3.0) + S2(0.5, share=0.4)
    packed = drawn_from_prompts(rule, modules=False)
    assert (drawn_from_prompts(rule, modules=True) - packed).abs().max() < 2e-5 * packed.abs().max()
    assert (drawn_from_prompts(CFG(3.0), modules=False) - packed).abs().max() > 1e-3 * packed.abs().max()


@pytest.mark.parametrize(
    ("make", "words"),
    (
        (lambda e: S2(1.0, share=0.0), "share of dropped blocks must lie between 0 and 1, got 0"),
        (lambda e: S2(1.0, share=1.0), "between 0 and 1, got 1"),
        (lambda e: S2(1.0, seed=-1), "seed of dropped blocks must lie between 0"),
        (lambda e: S2(1.0, protected=(2, 2)), "layers must be distinct"),
        (lambda e: e.plan(S2(1.0, protected=(9,))), "layer 9 does not exist: tiny has layers 0 to 5"),
        (lambda e: e.plan(S2(1.0, share=0.9)), "0.9 of the 6 blocks of tiny are 5, and only 4 are not protected"),
        (lambda e: e.denoiser(S2(1.0), LABELS), "draws them at every step, needs the schedule"),
        (lambda e: parse_rule("s2:weight=1,protect=2"), "s2 has no option 'protect'"),
        (lambda e: parse_rule("s2:weight=1,share=2"), "between 0 and 1, got 2"),
    ),
)
def test_what_cannot_be_is_said(engine, make, words):
    with pytest.raises(ValueError, match=words):
        make(engine)
