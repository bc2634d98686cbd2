"""The k-diffusion contract, driven by loops written here: Euler over denoised estimates equals the engine's own run."""

import pytest
import torch
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import APG, CFG, SGG, Engine, HiGS, SkipLayer, Window

LABELS, SEEDS = [0, 3, 5], [7, 8, 9]
ERROR = 2e-5  # the loop divides by sigma and multiplies again: a few more roundings per call than the engine
LEVELS = (1.0, 0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.0)
PROJECTION = APG(-0.5, 3.0, 0.3)
WITH_MEMORY = {
    "reuse": SkipLayer(2.0, (1, 3)).reused(3),
    "average": CFG(4.0) + PROJECTION,
    "average, late": CFG(4.0, window=Window.sigma(0.0, 0.7)) + PROJECTION,
    "both": CFG(4.0, window=Window.sigma(0.2, 0.8)) + SkipLayer(2.0, (1, 3)).reused(2) + PROJECTION,
}


@pytest.fixture(scope="module", params=[{}, {"prediction": "data_velocity", "time": "data_time"}], ids=["flow", "sit"])
def engine(request):
    return Engine(tiny_sit(**request.param), device="cpu")


def euler_step(denoiser, x, s, t):
    """x [B, C, H, W]; the levels before and after, each [B]."""
    derivative = (x - denoiser(x, s)) / s.view(-1, 1, 1, 1)
    return x + derivative * (t - s).view(-1, 1, 1, 1)


def euler_over_denoised(denoiser, x, sigmas):
    for levels in zip(sigmas, sigmas[1:], strict=False):
        x = euler_step(denoiser, x, *(torch.full((len(x),), level) for level in levels))
    return x


@pytest.mark.parametrize("first", (0, 3))
def test_an_average_begins_with_the_first_estimate_wherever_a_loop_begins(engine, first):
    """A loop that begins late has no estimate before: its first call is without history guidance, not away from zero."""
    x = torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    with_history, plain = (engine.denoiser(rule, LABELS, schedule=LEVELS) for rule in (CFG(3.0) + HiGS(2.0, low=0.1), CFG(3.0)))
    level, after = (torch.full((3,), LEVELS[i]) for i in (first, first + 1))
    assert torch.allclose(with_history(x, level), plain(x, level), rtol=1e-4, atol=1e-5)
    assert (with_history(x, after) - plain(x, after)).abs().max() > 1e-3


@pytest.mark.parametrize("known", [True, False], ids=["levels known", "levels as they come"])
@pytest.mark.parametrize("rule", [None, CFG(2.5), SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5)], ids=["none", "cfg", "sgg"])
def test_a_foreign_euler_loop_equals_the_engine(engine, rule, known):
    run = engine.sample(LABELS, rule, steps=7, seeds=SEEDS, schedule="shift")
    sigmas = run.plan.schedule.sigmas
    denoiser = engine.denoiser(rule, LABELS, schedule=sigmas if known else None)
    x = euler_over_denoised(denoiser, engine.draw_noise(run.plan, SEEDS), sigmas)
    assert (x - run.latents).abs().max() <= ERROR * run.latents.abs().max()


def test_samples_at_different_levels_are_evaluated_together(engine):
    rule = SGG(CFG(3.0), SkipLayer(2.0, (1, 3)), 0.5)
    x = torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.9, 0.3, 0.7])
    together = engine.denoiser(rule, LABELS)(x, sigma)
    for i in range(3):
        alone = engine.denoiser(rule, LABELS[i : i + 1])(x[i : i + 1], sigma[i : i + 1])
        assert (alone[0] - together[i]).abs().max() <= ERROR * together.abs().max()


@pytest.mark.parametrize("rule", WITH_MEMORY.values(), ids=WITH_MEMORY)
def test_denoisers_that_take_turns_keep_their_memory(engine, rule):
    """With each other, and with runs of the engine."""
    start = engine.draw_noise(engine.plan(), SEEDS)
    alone = [euler_over_denoised(engine.denoiser(rule, own, schedule=LEVELS), start, LEVELS) for own in (LABELS, [1, 1, 2])]
    first, second = (engine.denoiser(rule, own, schedule=LEVELS) for own in (LABELS, [1, 1, 2]))
    x = y = start
    for levels in zip(LEVELS, LEVELS[1:], strict=False):
        s, t = (torch.full((3,), level) for level in levels)
        x, y = euler_step(first, x, s, t), euler_step(second, y, s, t)
        engine.sample(LABELS, rule, steps=2, seeds=SEEDS)
    assert torch.equal(x, alone[0]) and torch.equal(y, alone[1])


@pytest.mark.parametrize("rule", WITH_MEMORY.values(), ids=WITH_MEMORY)
def test_what_a_sample_remembers_does_not_depend_on_those_beside_it(engine, rule):
    """Three samples enter the loop at different levels; at the end one of them begins a second run."""
    start, levels = engine.draw_noise(engine.plan(), SEEDS), torch.tensor(LEVELS)
    calls = torch.tensor([[0, 2, 1], [1, 3, 2], [2, 4, 3], [3, 5, 4], [4, 0, 5], [5, 1, 6]])
    denoiser, x = engine.denoiser(rule, LABELS, schedule=LEVELS), start
    for row in calls:
        x = euler_step(denoiser, x, levels[row], levels[row + 1])
    for i, own in enumerate(calls.T):
        alone, y = engine.denoiser(rule, LABELS[i : i + 1], schedule=LEVELS), start[i : i + 1]
        for call in own:
            y = euler_step(alone, y, levels[call].view(1), levels[call + 1].view(1))
        assert (x[i] - y[0]).abs().max() <= ERROR * y.abs().max()


def heun_over_denoised(denoiser, x, sigmas):
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        slope = (x - denoiser(x, torch.full((len(x),), s))) / s
        if t > 0:
            ahead = x + (t - s) * slope
            slope = (slope + (ahead - denoiser(ahead, torch.full((len(x),), t))) / t) / 2
        x = x + (t - s) * slope
    return x


def check_heun(engine, conditions, rule):
    run = engine.sample(conditions, rule, schedule=LEVELS, solver="heun", seeds=SEEDS)
    denoiser = engine.denoiser(rule, conditions, schedule=LEVELS)
    for _ in range(2):  # a second run begins anew
        x = heun_over_denoised(denoiser, engine.draw_noise(run.plan, SEEDS), LEVELS)
        assert (x - run.latents).abs().max() <= ERROR * run.latents.abs().max()


@pytest.mark.parametrize("rule", [CFG(4.0) + PROJECTION, CFG(2.5)], ids=["average", "none"])
def test_a_foreign_heun_loop_equals_the_engine(engine, rule):
    """Its second stage asks for a level that the next step asks for again: the memory is that of one run."""
    check_heun(engine, LABELS, rule)


def test_a_foreign_heun_loop_on_a_live_pipeline_equals_the_engine():
    live = Engine.from_pipe(tiny_pipeline(seed=21))
    check_heun(live, live.encode(["leaf", "bee", "oak"], "dull", max_sequence_length=T5_TOKENS), CFG(4.0) + PROJECTION)


def test_levels_that_a_discrete_model_cannot_tell_apart():
    discrete = Engine(tiny_sit(prediction="epsilon", time="discrete", out_channels=8), device="cpu")
    x = discrete.draw_noise(discrete.plan(), SEEDS)
    denoiser = discrete.denoiser(CFG(3.0), LABELS)
    together = denoiser.velocity(x, torch.tensor([0.5, 0.50005, 0.002]))
    for i, level in enumerate((0.5, 0.5, 0.0001)):  # the nearest levels of the chain, and the last one
        alone = discrete.denoiser(CFG(3.0), LABELS[i : i + 1]).velocity(x[i : i + 1], torch.tensor([level]))
        assert (alone[0] - together[i]).abs().max() <= ERROR * together[i].abs().max()
    with pytest.raises(ValueError, match=r"noise levels 0\.005 and 0\.002 are the same to tiny: .* 1000 levels is 0\.0099"):
        discrete.denoiser(CFG(3.0), LABELS, schedule=[1.0, 0.5, 0.02, 0.005, 0.002, 0.0])


def test_two_denoisers_may_take_turns(engine):
    """Each has a program, and numbers, of its own."""
    x = torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((3,), 0.6)
    first, second = engine.denoiser(CFG(2.0), LABELS), engine.denoiser(CFG(4.0), [1, 1, 2])
    expected = first(x, sigma), second(x, sigma)
    assert torch.equal(first(x, sigma), expected[0])
    assert torch.equal(second(x, sigma), expected[1])
    assert not torch.equal(*expected)


def test_step_windows_need_the_levels(engine):
    rule = CFG(2.0, window=Window.steps(1, 3))
    with pytest.raises(ValueError, match="window steps 1-3 needs the schedule"):
        engine.denoiser(rule, LABELS)
    with pytest.raises(ValueError, match=r"delta 0\.5 needs the schedule"):
        engine.denoiser(CFG(2.0, delta=0.5), LABELS)
    denoiser = engine.denoiser(rule, LABELS, schedule=[1.0, 0.5, 0.0])
    x = torch.zeros(3, 4, 6, 10)
    with pytest.raises(ValueError, match=r"sigma 0\.7 is not one of the 2 levels"):
        denoiser(x, torch.full((3,), 0.7))
    with pytest.raises(ValueError, match="sigma 0 is not one of the 2 levels this was made for, which end there"):
        denoiser(x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"noise levels in \[0, 1\], got \[-0\.5, -0\.5, -0\.5\]"):
        denoiser(x, torch.full((3,), -0.5))


def test_the_levels_may_be_those_of_a_scheduler_and_not_a_name(engine):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    x, sigma = torch.zeros(3, 4, 6, 10), torch.full((3,), float(scheduler.sigmas[2]))
    rule = CFG(2.0, window=Window.steps(3, 3))
    found = engine.denoiser(rule, LABELS, schedule=scheduler)(x, sigma)
    assert torch.equal(found, engine.denoiser(rule, LABELS, schedule=scheduler.sigmas.tolist())(x, sigma))
    with pytest.raises(TypeError, match="other loops need noise levels, not the name of a schedule, got 'linear'"):
        engine.denoiser(rule, LABELS, schedule="linear")


def heun_with_choice(guided, plain, choose, x, sigmas):
    """Heun's method; ``choose(level, start)``: whether the call at ``level`` of the step from ``start`` is guided."""

    def slope(x, level, start):
        model = guided if choose(level, start) else plain
        return (x - model(x, torch.full((len(x),), level))) / level

    for s, t in zip(sigmas, sigmas[1:], strict=False):
        first = slope(x, s, s)
        ahead = x + (t - s) * first
        x = ahead if t == 0 else x + (t - s) * (first + slope(ahead, t, s)) / 2
    return x


def test_a_window_decides_by_the_start_of_a_step_and_in_a_foreign_loop_by_the_level_of_each_call(engine):
    """The step that crosses the window's edge: both calls of the engine's Heun are guided, and one of a foreign loop's."""
    edge = 0.7  # between 0.75 and 0.6
    rule = CFG(3.0, window=Window.sigma(edge, 1.0))
    run = engine.sample(LABELS, rule, schedule=LEVELS, solver="heun", seeds=SEEDS)
    start = engine.draw_noise(run.plan, SEEDS)
    everywhere, plain = engine.denoiser(CFG(3.0), LABELS), engine.denoiser(None, LABELS)
    by_start = heun_with_choice(everywhere, plain, lambda level, start: start > edge, start, LEVELS)
    by_level = heun_with_choice(everywhere, plain, lambda level, start: level > edge, start, LEVELS)
    scale = run.latents.abs().max()
    assert (by_start - by_level).abs().max() > 100 * ERROR * scale  # they are told apart
    assert (run.latents - by_start).abs().max() <= ERROR * scale
    for known in (LEVELS, None):
        foreign = heun_over_denoised(engine.denoiser(rule, LABELS, schedule=known), start, LEVELS)
        assert (foreign - by_level).abs().max() <= ERROR * scale
