"""Adaptive guidance: each sample as a naive loop of its own draws it, no branch after all have stopped, what the plan says."""

import copy

import pytest
import torch
from naive_sampler import NaiveSampler
from recorded_captures import Recorder
from tiny_models import tiny_sit

from segue import APG, CFG, ICG, Engine, Rescale, SkipLayer, Window, parse_rule
from segue.engine.rules.branch import UNCOND, Branch, Perturb
from segue.engine.running.stopping import StopPoll

LABELS, SEEDS, STEPS = [0, 3, 5], [7, 8, 9], 9
STOP = 0.9  # between the cosines of these networks, so that samples stop at calls of their own


@pytest.fixture(
    scope="module", params=[{}, {"prediction": "epsilon", "time": "discrete", "out_channels": 8}], ids=["flow", "dit"]
)
def engine(request):
    return Engine(tiny_sit(**request.param), device="cpu")


def naive(engine, scale, stop, window, noise, schedule, skipped=()):
    """One sample in fp64: Euler by hand, a flag that stops the reference after the call whose cosine passes; and its calls.

    ``skipped``: the layers of another term, of weight 1, that does not stop.
    """
    sampler = NaiveSampler(
        {"main": copy.deepcopy(engine.models["main"]).double()}, None, torch.tensor([0]), list(schedule.sigmas)
    )
    states, calls = [], []
    for label, own in zip(LABELS, noise.double(), strict=True):
        sampler.labels, y, stopped, count = torch.tensor([label]), own[None], False, 0
        if sampler.discrete:
            y = y / sum(sampler.levels[sampler.indices[0]])
        for step, (s, t) in enumerate(zip(sampler.sigmas, sampler.sigmas[1:], strict=False)):
            c = sampler.output(Branch(), y, s)
            guided = c
            if not stopped and window.select(torch.tensor(sampler.sigmas[:-1]).numpy())[step]:
                u = sampler.output(UNCOND, y, s)
                guided, count = u + scale * (c - u), count + 1
                stopped = float((c * u).sum() / (c.norm() * u.norm())) > stop
            if skipped:
                guided = guided + c - sampler.output(Branch(network=Perturb("skip", skipped)), y, s)
            y = y + (t - s) * sampler.as_velocity(guided, y, s)
        states.append(y)
        calls.append(count)
    return torch.cat(states), calls


def drawn(engine, rules):
    """The latents, and how many branches each call evaluated."""
    live = []
    run = engine.sample(LABELS, rules, steps=STEPS, seeds=SEEDS, callback=lambda info: live.append(len(info.live)))
    return run.latents, live


def cosines(engine, plan, noise):
    """The first call's, to put a threshold between."""
    program = engine.load(plan, LABELS, SEEDS, noise)
    c, u = program.branch_outputs((0, 1))
    return torch.cosine_similarity(c.flatten(1), u.flatten(1)).sort().values


@pytest.mark.parametrize("window", [Window(), Window.steps(2, 7)], ids=str)
def test_every_sample_is_that_of_a_loop_that_stops_by_itself(engine, window):
    plain = engine.plan(CFG(3.0), steps=STEPS)
    noise = engine.draw_noise(plain, SEEDS)
    found = cosines(engine, plain, noise)
    for stop in (float(found[:2].mean()), float(found[1:].mean()), 0.999999, -0.999999):
        expected, counts = naive(engine, 3.0, stop, window, noise, plain.schedule)
        run, live = drawn(engine, CFG(3.0, window=window).adaptive(stop))
        # fp32 against fp64 over nine calls, gains of three: as the random plans of the oracle
        assert float((run - expected).abs().max() / expected.abs().max()) < 2e-5
        assert sum(live) - STEPS == max(counts)  # the host knows at once on a CPU


def test_a_batch_of_rules_stops_for_those_that_say_so(engine):
    """A rule without a stop keeps the branch; one without the branch does not."""

    stopping = CFG(3.0).adaptive(-0.999)
    (mixed, many), (alone, few) = (drawn(engine, own) for own in ([stopping, CFG(3.0), None], [stopping, None, stopping]))
    assert (sum(few) - STEPS, sum(many) - STEPS) == (1, STEPS)
    assert torch.allclose(mixed[0], alone[0], rtol=1e-4, atol=1e-5)
    exact = engine.sample(LABELS, CFG(3.0), steps=STEPS, seeds=SEEDS).latents
    assert torch.allclose(mixed[1], exact[1], rtol=1e-4, atol=1e-5)


def test_captured_steps_stop_too_and_a_late_look_changes_nothing(engine):
    """As on CUDA, where flags arrive some calls later: a stopped branch that runs on weighs nothing."""
    rule = CFG(3.0).adaptive(STOP) + SkipLayer(1.0, (1,))
    plan = engine.plan(rule, steps=STEPS)
    noise = engine.draw_noise(plan, SEEDS)
    expected = engine.sample(LABELS, rule, steps=STEPS, seeds=SEEDS).latents
    _, counts = naive(engine, 3.0, STOP, Window(), noise, plan.schedule, (1,))
    assert min(counts) < max(counts) < STEPS  # all stop before the end, not at once
    for late in (0, 3, STEPS):
        program = engine.load(plan, LABELS, SEEDS, noise)
        program.use_graphs(Recorder())
        poll, known, guided = StopPoll(program.combination.stopping), [], torch.zeros(3)
        for live in plan.live:
            known.append(list(poll.known))
            guided += ~program.combination.stopping.stopped[0]
            poll.known = known[max(0, len(known) - 1 - late)]
            program.advance(poll.live(live))
            poll.after_call()
        program.graphs = None
        assert guided.tolist() == counts
        assert torch.allclose(program.x, expected, rtol=1e-4, atol=1e-5)  # batches of two and of three rows round differently


def test_a_foreign_loop_stops_from_call_to_call(engine):
    sigmas = (1.0, 0.75, 0.5, 0.25, 0.0)
    x = engine.draw_noise(engine.plan(CFG(3.0), schedule=sigmas), SEEDS)
    rule = CFG(3.0).adaptive(-0.999)
    made = {
        name: engine.denoiser(own, LABELS, schedule=sigmas)
        for name, own in {"stop": rule, "cfg": CFG(3.0), "none": None}.items()
    }

    def like(name, sigma):
        found = made["stop"](x, torch.full((3,), sigma))
        return torch.allclose(found, made[name](x, torch.full((3,), sigma)), rtol=1e-4, atol=1e-5)

    assert like("cfg", 1.0) and like("none", 0.75) and like("none", 0.5)
    assert like("cfg", 1.0)  # back in time: it starts anew
    with pytest.raises(ValueError, match=r"the stop at cosine -0\.999 needs the schedule"):
        engine.denoiser(rule, LABELS)


def test_the_plan_says_that_its_cost_is_the_most(engine):
    plan = engine.plan("cfg:scale=3,stop=0.9", steps=STEPS)
    assert plan.guidance == CFG(3.0).adaptive(0.9) == parse_rule("cfg:scale=3,stop=0.9").guidance
    assert "passes 0.9; the host polls between calls" in str(plan) and "total: at most 9 calls, 18 evaluations" in str(plan)
    assert plan.to_dict()["cost"]["at_most"] and "at most 1.99x" in repr(plan)
    exact = engine.plan("cfg:scale=3", steps=STEPS)
    assert "at most" not in str(exact) and not exact.to_dict()["cost"]["at_most"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda e: CFG(3.0).adaptive(1.0), "must lie between -1 and 1, got 1"),
        (lambda e: SkipLayer(3.0, (1,)).adaptive(0.9), "stops terms with another condition"),
        (lambda e: ICG(3.0).adaptive(0.9), "compares a condition from call to call, and that of random label changes"),
        (lambda e: CFG(3.0).reused(2).adaptive(0.9), "computes its direction every 2 calls"),
        (lambda e: e.plan(CFG(3.0).adaptive(0.9) + APG(0.0, 1.0, 0.0)), "needs uncond at every call, and the rule stops it"),
        (lambda e: e.plan(CFG(3.0).adaptive(0.9) + CFG(2.0)), "stop at cosines 0.9 and None"),
        (lambda e: e.plan([CFG(3.0).adaptive(0.9), CFG(2.0).reused(2)]), "stops uncond, and another reuses its directions"),
    ],
)
def test_what_cannot_stop_is_refused(engine, make, words):
    with pytest.raises(ValueError, match=words):
        make(engine)


def test_a_reduction_over_the_whole_sees_what_guides_still(engine):
    """Rescale after a stop: the guided prediction is the conditional one, whose deviation is its own."""
    rule, plain = CFG(3.0).adaptive(-0.999) + Rescale(0.7), CFG(3.0, window=Window.steps(1, 1)) + Rescale(0.7)
    ours, expected = (engine.sample(LABELS, own, steps=STEPS, seeds=SEEDS).latents for own in (rule, plain))
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)
