"""The estimates of an animation are those of the network at every state, and its bars add up to the cost of the plan."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_sit

from segue import Engine
from segue.bench.pictures.call_strip import BACKGROUND, KINDS, frames, kind_of, save_animation
from segue.bench.pictures.estimates import branch_costs, estimates
from segue.engine.rules.presets import parse_rule

RULES = ("none", "cfg:scale=2", "sgg:scale=2,weight=1,layers=1-2,switch=0.5", "exit:weight=1,layer=2", "cfg:scale=3,refresh=2")
LABELS, SEEDS, STEPS = [0, 3, 4], [7, 8, 9], 6


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(channels=3, height=8, width=8, name="small", exits=(2,)), device="cpu")


@pytest.fixture(scope="module", params=RULES)
def run(request, engine):
    return estimates(engine, parse_rule(request.param, engine.spec), LABELS, SEEDS, STEPS)


def test_estimates_are_what_the_denoiser_says_of_every_state(engine, run):
    states = [engine.draw_noise(run.plan, SEEDS)]
    made = engine.sample(LABELS, run.rule, steps=STEPS, seeds=SEEDS, callback=lambda info: states.append(info.x.clone()))
    denoiser = engine.denoiser(run.rule, LABELS, schedule=run.plan.schedule)
    for state, sigma, estimate in zip(states[:-1], run.plan.sigmas, run.pictures, strict=True):
        expected = denoiser(state, torch.full((len(LABELS),), float(sigma)))
        assert torch.allclose(estimate, expected, atol=2e-5), sigma  # a difference of states, divided by that of levels
    assert torch.allclose(run.pictures[-1], made.latents, atol=1e-6)


def test_bars_are_the_live_branches_and_add_up_to_the_cost(run):
    bars = [branch_costs(run.plan, call) for call in range(run.plan.calls)]
    assert [tuple(branch for branch, _ in own) for own in bars] == list(run.plan.live)
    assert sum(cost for own in bars for _, cost in own) == pytest.approx(STEPS * run.plan.cost.relative)
    assert all(cost > 0 for own in bars for _, cost in own)


def test_branches_are_called_what_they_are(engine):
    kinds = {rule: [kind_of(branch) for branch in engine.plan(rule, steps=STEPS).branches] for rule in RULES[:4]}
    assert kinds[RULES[0]] == ["condition"] and kinds[RULES[1]] == ["condition", "no condition"]
    assert kinds[RULES[2]] == ["condition", "no condition", "weak branch"] and kinds[RULES[3]] == ["condition", "weak branch"]


def test_a_frame_for_every_call_with_the_bars_up_to_it_in_full_colour(engine, tmp_path):
    both = [estimates(engine, parse_rule(rule, engine.spec), LABELS, SEEDS, STEPS) for rule in RULES[1:3]]
    made = frames(both, columns=3)
    assert len(made) == STEPS and len({frame.size for frame in made}) == 1
    full = [sum(int((np.asarray(frame) == colour).all(axis=2).sum()) for colour in KINDS.values()) for frame in made]
    assert all(earlier < later for earlier, later in zip(full, full[1:], strict=False))
    assert all((np.asarray(frame)[:10] == BACKGROUND).all() for frame in made)
    for suffix in (".webp", ".gif"):
        save_animation(tmp_path / f"a{suffix}.part", made, suffix)
        with Image.open(tmp_path / f"a{suffix}.part") as file:
            assert file.n_frames == STEPS and file.format == suffix[1:].upper()
