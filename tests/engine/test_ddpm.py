"""`solver="ddpm"` is the official sampler of DiT: three guided channels, and the learned variance of the conditional row."""

import numpy as np
import pytest
import torch
from official_ddpm import p_sample, respaced_chain, sample
from official_dit import random_state

from segue import CFG, AutoGuidance, CFGZeroStar, Engine, Rescale
from segue.engine.core import resolve_plan
from segue.engine.planning.solvers import DDPM
from segue.kernels.combine import solver_update
from segue.kernels.philox import normal_noise
from segue.models.sizes import dit_spec, sit_spec

LABELS, SEEDS = [1, 4, 2], [5, 2**40 + 6, 7]
# relative to the largest value: fp32 against fp64 over up to 25 calls, each rounding 6e-8, of a network with random weights
ERROR = 1e-5


def relative_error(ours, theirs) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def network(path, state) -> Engine:
    torch.save(state, path)
    return Engine.from_pretrained(path, family="dit", heads=2, device="cpu")


@pytest.fixture
def state():
    """Weights whose variance channels reach beyond [-1, 1], as those of a network may."""
    return random_state(11)


@pytest.fixture
def engine(tmp_path, state):
    return network(tmp_path / "dit.pt", state)


def loop_noise(seeds, shape):
    keys = torch.tensor(seeds)
    return lambda call: normal_noise(keys, torch.full_like(keys, call), shape.numel()).view(len(seeds), *shape)


@pytest.mark.parametrize("steps", [2, 9, 25])
def test_a_run_is_that_of_the_official_sampler(engine, state, steps):
    run = engine.sample(LABELS, CFG(4.0, channels=3), steps=steps, solver="ddpm", seeds=SEEDS)
    noise = engine.draw_noise(run.plan, SEEDS)
    expected = sample(state, noise, torch.tensor(LABELS), steps, 4.0, 2, loop_noise(SEEDS, noise.shape[1:]))
    assert relative_error(run.latents, expected) < ERROR
    assert run.plan.calls == steps


@pytest.mark.parametrize("steps", [2, 250])
def test_rows_make_the_official_steps_of_any_output(steps):
    """In fp64: a row, and a deviation by element, on random states, outputs and variances."""
    plan = resolve_plan({"main": dit_spec("S/8")}, None, steps, solver="ddpm")
    generator = torch.Generator().manual_seed(steps)
    for call, place in enumerate(reversed(respaced_chain(steps))):
        x, eps, noise = torch.randn(3, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
        variance = torch.empty_like(x).uniform_(-1.2, 1.2, generator=generator)
        expected = p_sample(x, torch.cat([eps, variance], dim=1), place, noise)
        row = torch.from_numpy(plan.table[call]).expand(2, -1)
        y, scaled = x / row[0, 0], noise * torch.exp(float(plan.spreads[call, 0]) * (variance + 1) / 2)
        solver_update(y, eps, torch.zeros_like(y), scaled, row[:, 1:])
        following = 1.0 if call + 1 == plan.calls else plan.table[call + 1, 0]
        assert torch.allclose(y * following, expected, rtol=1e-9, atol=1e-11)


def test_the_oracle_is_what_diffusers_calls_a_learned_range():
    """But for its fp32 tables, whose roundings grow where ``1 - alpha^2`` is small."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(9)
    generator = torch.Generator().manual_seed(3)
    for place in reversed(respaced_chain(9)):
        x = torch.randn(2, 4, 3, 3, generator=generator)
        output = torch.randn(2, 8, 3, 3, generator=generator)
        drawn = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(8))
        theirs = scheduler.step(output, place.time, x, generator=torch.Generator().manual_seed(8)).prev_sample
        assert relative_error(theirs, p_sample(x, output, place, drawn)) < 1e-4


def test_a_sample_does_not_depend_on_its_batch(engine):
    rule, options = CFG(4.0, channels=3), {"steps": 5, "solver": "ddpm"}
    together = engine.sample(LABELS, rule, seeds=SEEDS, **options).latents
    for i in range(3):
        alone = engine.sample(LABELS[i : i + 1], rule, seeds=SEEDS[i : i + 1], **options).latents
        assert relative_error(alone[0], together[i]) < ERROR


def test_guidance_does_not_reach_the_variance(engine, state, tmp_path):
    """Branches kept apart for a correction that is off, and a second network that equals the first, change nothing."""
    options = {"steps": 5, "solver": "ddpm", "seeds": SEEDS}
    plain = engine.sample(LABELS, CFG(3.0), **options).latents
    assert relative_error(engine.sample(LABELS, CFG(3.0) + Rescale(0.0), **options).latents, plain) < ERROR
    other = {name: value.clone() for name, value in state.items()}
    for name in ("weight", "bias"):  # of [P P, 2 C]: other variances, the same noise prediction
        other[f"final_layer.linear.{name}"].unflatten(0, (4, 8))[:, 4:] *= -1
    weak = network(tmp_path / "weak.pt", other).models["main"]
    pair = Engine(engine.models["main"], {"weak": weak}, device="cpu")
    guided = pair.sample(LABELS, CFG(3.0) + AutoGuidance(2.0), **options).latents
    assert relative_error(guided, plain) < ERROR


def test_the_variance_is_that_of_the_weights_that_are(engine):
    options = {"guidance": CFG(3.0), "steps": 4, "solver": "ddpm", "seeds": SEEDS}
    before = engine.sample(LABELS, **options).latents
    main = engine.models["main"]
    with torch.no_grad():
        main.final_layer.linear.bias.unflatten(0, (4, 8))[:, 4:] -= 1.0
    after = engine.sample(LABELS, **options).latents
    assert relative_error(after, before) > 0.01
    assert torch.equal(after, Engine(main, device="cpu").sample(LABELS, **options).latents)


def test_a_step_of_no_length_changes_nothing(engine):
    """At the end, where the number of no later call, and so no noise, moves."""
    levels = [0.98, 0.6, 0.3, 0.0]
    runs = [engine.sample(LABELS, None, schedule=given, solver="ddpm", seeds=SEEDS) for given in (levels, [*levels, 0.0])]
    assert relative_error(runs[1].latents, runs[0].latents) < ERROR


def test_small_steps_without_growth_keep_the_marginal():
    """Data at one point: whatever the steps, the states of the chain are ``alpha x0 + s eps`` in mean and deviation."""
    sigmas = np.array([0.9, 0.5, 0.2])
    alpha, s = ((1 - sigmas) / np.hypot(sigmas, 1 - sigmas), sigmas / np.hypot(sigmas, 1 - sigmas))
    mean, variance = alpha[0] * 0.7, s[0] ** 2
    for i, row in enumerate(DDPM.rows(sigmas)):
        k, k_next = alpha[i] + s[i], alpha[i + 1] + s[i + 1]
        # v = (y - x0) / sigma makes the step affine in x, all in the variance-preserving state
        slope, offset = (row.a + row.b / row.sigma) * k_next / k, -row.b / row.sigma * 0.7 * k_next
        mean, variance = slope * mean + offset, slope**2 * variance + (row.d * k_next) ** 2
        assert mean == pytest.approx(alpha[i + 1] * 0.7, rel=1e-12)
        assert variance == pytest.approx(s[i + 1] ** 2, rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        (sit_spec("S/8"), {}, "SiT-S/8-256 predicts data_velocity in 8 channels for 4: it has none; use another solver"),
        (dit_spec("S/8", out_channels=4), {}, "DiT-S/8-256 predicts epsilon in 4 channels for 4: it has none"),
        (dit_spec("S/8"), {"guidance": CFG(3.0) + CFGZeroStar(zero_steps=1)}, "which zero_steps=1 leaves out"),
        (dit_spec("S/8"), {"schedule": [0.2, 0.6]}, "ddpm draws down to data, and the levels rise from"),
    ],
)
def test_what_has_no_learned_variance_is_refused(spec, given, message):
    with pytest.raises(ValueError, match=message):
        resolve_plan({"main": spec}, **given, solver="ddpm")
