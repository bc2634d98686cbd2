"""Levels that rise: a picture integrated upwards to noise, and back, against integrators in fp64 written without tables."""

import copy
import math

import pytest
import torch
from attached_runs import PATHS, forced, relative_error
from naive_sampler import NaiveSampler
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import APG, CFG, SGG, Engine, Schedule, SkipLayer, SpectralRefine, Window
from segue.engine.planning.schedule import flow_shift

LABELS = [0, 3, 5]
ERROR = 2e-5  # fp32 outputs of a network against fp64, over a run
RISING = flow_shift(6, 2.0).reversed()
RULES = {
    "none": None,
    "cfg": CFG(1.5, window=Window.sigma(0.2, 0.8)),
    "steps": SkipLayer(0.5, (1, 3), window=Window.steps(1, 3)),
    "sgg": SGG(CFG(1.6), SkipLayer(0.5, (1, 3)), 0.5),
    "average": CFG(1.4, window=Window.sigma(0, 1)) + APG(-0.5, 3.0, 0.3),
}
MODELS = {"flow": {}, "sit": {"prediction": "data_velocity", "time": "data_time"}}
SOLVERS = {"euler": 1, "heun": 2, "ab2": 2, "dpm++2m": 2}  # and their orders


def picture(batch=3, shape=(4, 6, 10)):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=MODELS)
def engine(request):
    return Engine(tiny_sit(**MODELS[request.param]), device="cpu")


def naive(engine, rule, schedule, solver, start):
    """The same run in fp64, every branch evaluated in full."""
    model = copy.deepcopy(engine.models["main"]).double()
    sampler = NaiveSampler({"main": model}, rule or CFG(1.0), torch.tensor(LABELS), list(schedule.sigmas))
    return sampler.run(solver, start)


@pytest.mark.parametrize(("solver", "rule"), [*zip([*SOLVERS, "euler"], RULES.values(), strict=True)], ids=RULES)
def test_both_ways_are_those_of_a_naive_integrator(engine, rule, solver):
    up = engine.sample(LABELS, rule, schedule=RISING, solver=solver, latents=picture(), seeds=0)
    assert relative_error(up.latents, naive(engine, rule, RISING, solver, picture())) < ERROR
    falling = RISING.reversed()
    down = engine.sample(LABELS, rule, schedule=falling, solver=solver, noise=up.latents, seeds=0)
    assert relative_error(down.latents, naive(engine, rule, falling, solver, up.latents)) < ERROR


@pytest.mark.parametrize("solver", SOLVERS)
def test_inversion_and_sampling_come_back_with_the_order_of_the_solver(solver):
    engine, errors = Engine(tiny_sit(), device="cpu"), []
    for steps in (12, 24):
        levels = Schedule(tuple(torch.linspace(0, 1, steps + 1).tolist()))
        noise = engine.sample(LABELS, CFG(1.3), schedule=levels, solver=solver, latents=picture(), seeds=0).latents
        back = engine.sample(LABELS, CFG(1.3), schedule=levels.reversed(), solver=solver, noise=noise, seeds=0).latents
        assert relative_error(noise, picture()) > 0.5  # it went somewhere
        errors.append(float((back - picture()).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[1]) > SOLVERS[solver] - 0.4
    assert errors[1] < {1: 0.1, 2: 0.02}[SOLVERS[solver]]


def test_a_model_of_discrete_times_comes_back_too():
    """Level 0 is not on its chain: the network is asked at its last index there.  The noise is in the model's own scale."""
    engine = Engine(tiny_sit(prediction="epsilon", time="discrete"), device="cpu")
    errors = []
    for steps in (20, 40):
        levels = tuple(torch.linspace(0, 0.5, steps + 1).tolist())  # above, a random network's errors are multiplied
        noise = engine.sample(LABELS, None, schedule=levels, latents=picture(), seeds=0).latents
        back = engine.sample(LABELS, None, schedule=levels[::-1], noise=noise, seeds=0).latents
        errors.append(relative_error(back, picture()))
    assert errors[1] < 0.7 * errors[0] < 0.1  # of first order, but for the rounding of levels to the chain


def test_a_start_above_level_0_is_mixed_with_noise(engine):
    """As image-to-image: the same levels either way begin with the same state."""
    noise, seen = engine.draw_noise(engine.plan(), [1, 2, 3]), []
    for levels in ([0.3, 0.6, 1.0], [0.3, 0.1, 0.0]):
        options = {"schedule": levels, "latents": picture(), "seeds": [1, 2, 3]}
        run = engine.sample(LABELS, None, callback=lambda info: False, **options)
        start = 0.3 * noise + 0.7 * picture()
        state = naive(engine, None, Schedule(tuple(levels[:2])), "euler", start)
        assert relative_error(run.latents, state) < ERROR
        seen.append(run.latents)
    assert relative_error(*seen) > 0.1


def test_what_cannot_rise_says_so(engine):
    with pytest.raises(ValueError, match="levels that rise from 0 to 1 invert a picture: give it as latents"):
        engine.sample(LABELS, schedule=RISING)
    with pytest.raises(ValueError, match="euler-maruyama draws down to data, and the levels rise from 0 to 1"):
        engine.sample(LABELS, schedule=RISING, latents=picture(), solver="euler-maruyama")
    with pytest.raises(
        ValueError, match=r"fall throughout or rise throughout, got 0\.5 followed by 0\.2 in a list from 0 to 1"
    ):
        engine.sample(LABELS, schedule=[0.0, 0.5, 0.2, 1.0], latents=picture())
    with pytest.raises(ValueError, match=r"strength 0\.5 keeps the last part of levels that fall, and these rise from 0 to 1"):
        RISING.truncate(0.5)
    with pytest.raises(
        ValueError, match=r"clean estimates, which at level 0 are the sample itself .* give its term Window\.sigma\(0, 1\)"
    ):
        engine.sample(LABELS, CFG(2.0) + APG(0.0, 3.0, 0.0), schedule=RISING, latents=picture())
    above = CFG(2.0, window=Window.sigma(0, 1)) + APG(0.0, 3.0, 0.0)
    engine.sample(LABELS, above, schedule=RISING, latents=picture())
    with pytest.raises(ValueError, match=r"SpectralRefinement .* at level 0 .* begin the levels above"):
        engine.sample(LABELS, above + SpectralRefine(0.2), schedule=RISING, latents=picture())


# --- other loops ------------------------------------------------------------------------------------------------------


def upwards(velocity, x, sigmas):
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        x = x + (t - s) * velocity(x, torch.full((len(x),), s))
    return x


@pytest.mark.parametrize("known", [True, False], ids=["levels known", "levels as they come"])
@pytest.mark.parametrize("rule", [RULES["none"], RULES["sgg"]], ids=["none", "sgg"])
def test_the_velocity_of_a_denoiser_is_integrated_upwards(engine, rule, known):
    denoiser = engine.denoiser(rule, LABELS, schedule=RISING if known else None)
    found = upwards(denoiser.velocity, picture(), RISING.sigmas)
    assert relative_error(found, naive(engine, rule, RISING, "euler", picture())) < ERROR


def test_the_velocity_of_a_denoiser_refuses_other_shapes(engine):
    with pytest.raises(ValueError, match=r"each sample must have shape \(4, 6, 10\), got \(4, 6, 1\)"):
        engine.denoiser(None, LABELS).velocity(picture()[..., :1], torch.zeros(3))


def test_the_estimate_at_level_0_is_the_state(engine):
    for schedule in (None, RISING, [1.0, 0.5, 0.0, 0.0]):
        assert torch.equal(engine.denoiser(CFG(2.0), LABELS, schedule=schedule)(picture(), torch.zeros(3)), picture())


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts():
    return Engine.from_pipe(tiny_pipeline(seed=33))


def diffusers_flow(pipe, rule_scale, sigmas, x):
    """Euler's method in fp64 on diffusers' own transformer."""
    transformer = copy.deepcopy(pipe.transformer).double()
    text = pipe.encode_prompt("leaf", None, None, negative_prompt="dull", max_sequence_length=T5_TOKENS)
    (cond, uncond, pooled, unpooled), x = (part.double() for part in text), x.double()
    with torch.no_grad():
        for s, t in zip(sigmas, sigmas[1:], strict=False):
            time = torch.full((len(x),), 1000 * s, dtype=torch.float64)
            c, u = (transformer(x, *own, time, return_dict=False)[0] for own in ((cond, pooled), (uncond, unpooled)))
            x = x + (t - s) * (u + rule_scale * (c - u))
    return x


@pytest.mark.parametrize("path", PATHS)
def test_prompts_invert_and_come_back_as_diffusers_network_says(prompts, path):
    x, levels = picture(1, (4, 8, 8)), RISING.sigmas
    embeddings = prompts.encode("leaf", "dull", max_sequence_length=T5_TOKENS)
    wanted = diffusers_flow(prompts.pipe, 1.5, levels, x)
    with forced(prompts.pipe, path):
        up = prompts.sample(embeddings, CFG(1.5), schedule=levels, latents=x).latents
        foreign = upwards(prompts.denoiser(CFG(1.5), embeddings, schedule=levels).velocity, x, levels)
        down = prompts.sample(embeddings, CFG(1.5), schedule=levels[::-1], noise=up).latents
    assert relative_error(up, wanted) < ERROR
    assert relative_error(foreign, wanted) < ERROR
    assert relative_error(down, diffusers_flow(prompts.pipe, 1.5, levels[::-1], up)) < ERROR


def test_a_live_denoiser_stays_in_one_run_on_the_way_up(prompts, monkeypatch):
    """It looks at the transformer when a run begins, and at no other call; a second run begins anew."""
    embeddings, looked = prompts.encode("leaf", "dull", max_sequence_length=T5_TOKENS), []
    denoiser = prompts.denoiser(CFG(1.5), embeddings, schedule=RISING)
    refresh = prompts.refresh
    monkeypatch.setattr(prompts, "refresh", lambda: looked.append(1) or refresh())
    runs = [upwards(denoiser.velocity, picture(1, (4, 8, 8)), RISING.sigmas) for _ in range(2)]
    assert torch.equal(*runs) and len(looked) == 2


def test_generate_inverts_a_picture_whole(prompts):
    """Strength is for levels that fall; without one, an inversion makes all its steps."""
    x, options = picture(1, (4, 8, 8)), {"schedule": RISING, "max_sequence_length": T5_TOKENS}
    run = prompts.generate("leaf", "dull", CFG(1.5), latents=x, **options)
    assert relative_error(run.latents, diffusers_flow(prompts.pipe, 1.5, RISING.sigmas, x)) < ERROR
    with pytest.raises(ValueError, match=r"strength 0\.6 keeps the last part of levels that fall"):
        prompts.generate("leaf", latents=x, strength=0.6, **options)
    with pytest.raises(ValueError, match="levels that rise from 0 to 1 invert a picture: give it as latents"):
        prompts.generate("leaf", **options)
