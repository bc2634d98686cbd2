"""Orders of convergence on a velocity that is known exactly, in fp64: the rows of each solver, run by the update itself.

The data are normal with mean MEAN and deviation DEVIATION, so ``y = (1 - sigma) x0 + sigma eps`` is normal at every noise
level, its velocity is linear in ``y``, and the flow from one level to another is a known affine map.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_sit

import segue
from segue import CFG
from segue.engine.core import resolve_plan
from segue.engine.planning.schedule import NAMED
from segue.engine.planning.solvers import SOLVERS, euler_maruyama, get_solver, is_named
from segue.kernels.combine import solver_update
from segue.kernels.philox import normal_noise
from segue.models.parameterization import Parameterization

MEAN, DEVIATION = 0.7, 0.4
FIRST, LAST = 0.95, 0.15
STATES = torch.tensor([-2.0, -0.3, 0.1, 1.1, 2.5], dtype=torch.float64)
# the error of a p-th order method falls by 2^p when the steps are halved; at 320 and 640 steps the next term of the
# expansion shifts the measured order by a few hundredths
COARSE, ORDER_SLACK = 320, 0.08
# third and fourth order, at 640 and 1280 steps
GENTLE_SLACK = 0.15


def moments(sigma: float) -> tuple[float, float]:
    """Mean and variance of the state at a noise level."""
    return (1 - sigma) * MEAN, ((1 - sigma) * DEVIATION) ** 2 + sigma**2


def exact_flow(y: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """Where the probability flow takes states from one noise level to another."""
    (m0, v0), (m1, v1) = moments(start), moments(end)
    return m1 + math.sqrt(v1 / v0) * (y - m0)


def velocity(y: torch.Tensor, sigma: float) -> torch.Tensor:
    """``E[eps - x0 | y]``."""
    mean, variance = moments(sigma)
    return -MEAN + (sigma - (1 - sigma) * DEVIATION**2) / variance * (y - mean)


def even(steps: int) -> np.ndarray:
    return np.linspace(FIRST, LAST, steps + 1)


def uneven(steps: int) -> np.ndarray:
    """Long and short steps in turn, 3 : 1, where a multistep rule for even steps is of first order."""
    lengths = np.resize([3.0, 1.0], steps)
    return FIRST + (LAST - FIRST) * np.append(0.0, np.cumsum(lengths) / lengths.sum())


def follow(rows, y: torch.Tensor, noise=None, field=velocity) -> torch.Tensor:
    """The states [N] after all rows in the velocity ``field``; ``noise(row index)`` gives [N]."""
    x = y.clone().view(1, 1, 1, -1)
    history, further = torch.zeros_like(x), max(len(row.earlier) for row in rows)
    earlier = x.new_zeros(1, further, *x.shape[1:]) if further else None
    for index, row in enumerate(rows):
        z = None if noise is None else noise(index).view_as(x)
        solver_update(x, field(x, row.sigma), history, z, numbers(row, further), None, earlier)
    return x.flatten()


def numbers(row, further: int = 0) -> torch.Tensor:
    """The coefficients [1, 6 + further] of one row."""
    earlier = *row.earlier, *[0.0] * (further - len(row.earlier))
    return torch.tensor([[row.a, row.b, row.c, row.d, row.e, row.f, *earlier]], dtype=torch.float64)


def flow_error(solver: str, sigmas: np.ndarray) -> float:
    ours = follow(get_solver(solver).rows(sigmas), STATES)
    return float((ours - exact_flow(STATES, sigmas[0], sigmas[-1])).abs().max())


ORDERS = [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm++2m", 2), ("ab2", 2), ("dpm++2m(kind=heun)", 2), ("res_2m", 2)]
ORDERS += [("deis(order=1)", 1), ("deis", 2), ("unipc(order=1)", 2), ("unipc(order=1, kind=bh1)", 2)]
ORDERS += [("euler-ancestral(eta=0.0)", 1), ("euler-ancestral(eta=0.0, levels=flow)", 1), ("dpm++sde(eta=0.0)", 2)]
# a run begins with a step of first order, which hides all beyond the second, as UniPC's last step does
ORDERS += [("dpm++3m", 2), ("res_3m", 2), ("deis(order=3)", 2), ("unipc", 2), ("unipc(order=3)", 2)]
# with a start that is better than that, and without such an end
GENTLE_ORDERS = [("dpm++3m", 2), ("res_3m", 3), ("deis(order=3)", 3), ("unipc(order=3, corrector=false, lower_final=false)", 3)]
GENTLE_ORDERS += [(f"unipc(order={n}, kind={kind}, lower_final=false)", n + 1) for n in (2, 3) for kind in ("bh1", "bh2")]


def gentle(steps: int) -> np.ndarray:
    """Even steps after ones that begin with the cube of their length and double, so the order of the first does not matter."""
    doubling = (1 / steps) ** 3 * 2.0 ** np.arange(math.ceil(2 * math.log2(steps)))
    lengths = np.append(doubling, np.full(steps, 1 / steps))
    return FIRST + (LAST - FIRST) * np.append(0.0, np.cumsum(lengths) / lengths.sum())


@pytest.mark.parametrize("levels", [even, uneven], ids=lambda levels: levels.__name__)
@pytest.mark.parametrize("solver, order", ORDERS)
def test_order_of_convergence(solver, order, levels):
    coarse, fine = (flow_error(solver, levels(steps)) for steps in (COARSE, 2 * COARSE))
    assert abs(math.log2(coarse / fine) - order) < ORDER_SLACK


@pytest.mark.parametrize("solver, order", GENTLE_ORDERS)
def test_order_of_convergence_after_a_gentle_start(solver, order):
    """dpm++3m has the order of its published code, which takes half of the second difference."""
    coarse, fine = (flow_error(solver, gentle(steps)) for steps in (2 * COARSE, 4 * COARSE))
    assert abs(math.log2(coarse / fine) - order) < GENTLE_SLACK


def test_the_velocity_is_that_of_the_flow():
    """The oracle itself: the exact map moves with the velocity."""
    for sigma in (0.9, 0.5, 0.2):
        ahead, behind = (exact_flow(STATES, sigma, sigma + step) for step in (1e-5, -1e-5))
        assert torch.allclose((ahead - behind) / 2e-5, velocity(STATES, sigma), atol=1e-8)


@pytest.mark.parametrize("solver", ["heun", "dpm++2m", "ab2", "dpm++3m", "unipc", "deis", "res_2m", "res_3m"])
def test_two_orders_beat_one_at_equal_calls(solver):
    calls = 40
    steps = calls // 2 if solver == "heun" else calls
    assert flow_error(solver, even(steps)) < 0.2 * flow_error("euler", even(calls))


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "euler-maruyama"])
@pytest.mark.parametrize("steps", [1, 2, 7, 16])  # the last not few: the order stays
def test_data_at_one_point_are_reached_in_any_number_of_steps(solver, steps):
    """With all data at one point the clean estimate is exact at every call, and the last step lands on it."""
    rows = SOLVERS[solver].rows(np.linspace(1, 0, steps + 1))
    end = follow(rows, STATES, field=lambda x, sigma: (x - MEAN) / sigma)
    assert (end - MEAN).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_ddim_is_eulers_method_in_flow_coordinates(steps):
    """The table of a noise-predicting model makes the update ``alpha' x0 + s' eps`` of DDIM (arXiv 2010.02502)."""
    spec = tiny_sit(prediction="epsilon", time="discrete").spec
    plan = resolve_plan({"main": spec}, CFG(1.0), steps, solver="ddim")
    alphas, noises, _ = Parameterization(spec).chain
    indices = Parameterization(spec).index(plan.sigmas)
    y, eps = 0.8, np.random.default_rng(0).standard_normal(plan.calls)
    for call, index in enumerate(indices):
        alpha, s = alphas[index], noises[index]
        last = call + 1 == plan.calls
        alpha_next, s_next = (1.0, 0.0) if last else (alphas[indices[call + 1]], noises[indices[call + 1]])
        x = (alpha + s) * y  # the variance-preserving state
        scale, a, b, *others = plan.table[call]
        assert scale == pytest.approx(alpha + s, rel=1e-12) and not any(others[:2])
        expected = alpha_next * (x - s * eps[call]) / alpha + s_next * eps[call]
        y = a * y + b * eps[call]
        assert (alpha_next + s_next) * y == pytest.approx(expected, rel=1e-9)


# --- the stochastic solver --------------------------------------------------------------------------------------------

DIFFUSIONS = {
    "default": lambda sigma: 2 * sigma,
    "constant": lambda sigma: 0.8,
    "vanishing": lambda sigma: math.sin(math.pi * sigma) ** 2,
}


def stochastic_rows(diffusion, sigmas: np.ndarray):
    """The rows down to the last level of ``sigmas``; the step from there to 0, the one without noise, is left out."""
    return euler_maruyama(diffusion).rows(np.append(sigmas, 0.0))[:-1]


def chain_moments(rows, sigmas: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the chain from the exact ones at its start: the update is affine, so they follow exactly."""
    mean, variance = moments(sigmas[0])
    for row in rows:
        offset = float(velocity(torch.zeros(1, dtype=torch.float64), row.sigma))
        slope = float(velocity(torch.ones(1, dtype=torch.float64), row.sigma)) - offset
        gain = row.a + row.b * slope
        mean, variance = gain * mean + row.b * offset, gain**2 * variance + row.d**2
    return mean, variance


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_weak_order_of_euler_maruyama(diffusion):
    """Whatever the diffusion, the variance approaches that of the data with order one; the mean is on a line and exact."""
    errors = []
    for steps in (COARSE, 2 * COARSE):
        sigmas = even(steps)
        mean, variance = chain_moments(stochastic_rows(DIFFUSIONS[diffusion], sigmas), sigmas)
        expected_mean, expected_variance = moments(sigmas[-1])
        assert mean == pytest.approx(expected_mean, rel=1e-12)
        errors.append(abs(variance - expected_variance))
    assert abs(math.log2(errors[0] / errors[1]) - 1) < ORDER_SLACK


def law(rows, sigmas: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the last state: of a state and what rows leave behind, each row is an affine map and noise."""
    size = 2 + max(len(row.earlier) for row in rows)
    mean, covariance = np.zeros(size), np.zeros((size, size))
    mean[0], covariance[0, 0] = moments(sigmas[0])
    for row in rows:
        offset = float(velocity(torch.zeros(1, dtype=torch.float64), row.sigma))
        slope = float(velocity(torch.ones(1, dtype=torch.float64), row.sigma)) - offset
        gain, shift = np.eye(size, k=-1), np.zeros(size)
        gain[0, : 2 + len(row.earlier)] = [row.a + row.b * slope, row.c, *row.earlier]
        gain[1, 0], shift[:2] = row.e + row.f * slope, [row.b * offset, row.f * offset]
        mean, covariance = gain @ mean + shift, gain @ covariance @ gain.T
        covariance[0, 0] += row.d**2
    return float(mean[0]), float(covariance[0, 0])


WEAK_ORDERS = [("euler-ancestral", 1), ("euler-ancestral(eta=0.5)", 1), ("euler-ancestral(levels=flow)", 1)]
WEAK_ORDERS += [("dpm++2m-sde", 2), ("dpm++2m-sde(kind=heun)", 2), ("dpm++2m-sde(eta=0.5)", 2), ("dpm++3m-sde", 2)]
WEAK_ORDERS += [("dpm++sde", 2), ("dpm++sde(eta=0.5)", 2)]


@pytest.mark.parametrize("solver, order", WEAK_ORDERS)
def test_weak_order(solver, order):
    """The variance approaches that of the data with the order; the mean is on a line and exact."""
    errors = []
    for steps in (COARSE, 2 * COARSE):
        sigmas = even(steps)
        mean, variance = law(get_solver(solver).rows(sigmas), sigmas)
        expected_mean, expected_variance = moments(sigmas[-1])
        assert mean == pytest.approx(expected_mean, rel=1e-11)
        errors.append(abs(variance - expected_variance))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1  # the next term is larger than without noise


@pytest.mark.parametrize("solver", ["dpm++2m", "dpm++3m"])
def test_without_noise_the_reverse_sde_is_the_flow(solver):
    """What ``eta`` continues to: nothing jumps where it vanishes."""
    levels = np.linspace(1, 0, 8)
    small = get_solver(f"{solver}-sde(eta=1e-9)").rows(levels)
    for ours, flow in zip(small, get_solver(solver).rows(levels), strict=True):
        assert (
            np.allclose([ours.a, ours.b, ours.c, *ours.earlier], [flow.a, flow.b, flow.c, *flow.earlier], atol=1e-7)
            or ours.sigma == 1
        )


@pytest.mark.parametrize(
    "text", ["unipc", "unipc(kind=bh1, order=3)", "dpm++2m-sde(eta=.5)", "deis(lower_final=false)", "dpm++sde"]
)
def test_the_name_of_a_solver_makes_it_again(text):
    levels, solver = np.linspace(1, 0, 6), get_solver(text)
    assert get_solver(solver.name).rows(levels) == solver.rows(levels) and get_solver(solver.name).name == solver.name
    assert is_named(solver)


def test_a_solver_that_borrows_a_name_is_found_out():
    assert is_named(segue.unipc(order=3)) and is_named(segue.dpm_multistep(3, eta=0.2))
    assert not is_named(replace(segue.unipc(), name="deis")) and not is_named(euler_maruyama(lambda sigma: 1.0))
    assert not is_named(replace(segue.lcm(), name="unknown")) and not is_named(euler_maruyama(last_sigma=0.1))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: get_solver("unipc(orde=3)"), ValueError, "solver 'unipc' has no option 'orde'; its options: order, kind"),
        (lambda: get_solver("euler(order=2)"), ValueError, "solver 'euler' has no option 'order'; its options: none"),
        (lambda: get_solver("unipc(order"), ValueError, "a solver is a name, or a name and its options as in 'unipc"),
        (lambda: get_solver("unipc(order=2, order=3)"), ValueError, "an option of a solver is given once, got 'unipc"),
        (lambda: get_solver("uni(order=3)"), ValueError, "unknown solver 'uni"),
        (lambda: get_solver("unipc(order=4)"), ValueError, "the order of a solver must be 1, 2 or 3, got 4"),
        (lambda: get_solver("unipc(order=x)"), ValueError, "the order of a solver must be a whole number, got 'x'"),
        (lambda: get_solver("deis(lower_final=1)"), ValueError, "lower_final must be true or false, got 1"),
        (lambda: get_solver("euler-ancestral(eta=much)"), ValueError, "eta must be a number, got 'much'"),
        (lambda: segue.deis(order=2.0), TypeError, "the order of a solver must be a whole number, got 2.0"),
        (lambda: segue.unipc(kind="midpoint"), ValueError, "kind must be 'bh2' or 'bh1', got 'midpoint'"),
        (lambda: segue.dpm_multistep(kind="bh2"), ValueError, "kind must be 'midpoint' or 'heun', got 'bh2'"),
        (lambda: segue.unipc(corrector=1), TypeError, "corrector must be true or false, got 1"),
        (lambda: segue.dpm_multistep(eta=1.5), ValueError, r"eta must lie in \[0, 1\], got 1.5"),
        (lambda: segue.euler_ancestral(eta=math.nan), ValueError, r"eta must lie in \[0, 1\], got nan"),
        (lambda: segue.euler_ancestral(levels="karras"), ValueError, "levels must be 'exploding' or 'flow', got 'karras'"),
        (
            lambda: get_solver("lcm").rows(np.array([0.2, 0.6])),
            ValueError,
            "lcm draws down to data, and the levels rise from 0.2",
        ),
    ],
)
def test_bad_solvers_are_refused(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_a_chain_has_no_level_between_two_of_its_own():
    spec = tiny_sit(prediction="epsilon", time="discrete", out_channels=8).spec
    with pytest.raises(
        ValueError, match=r"solver 'dpm\+\+sde' calls the network at noise level 0\.\d+, between the 1000 levels"
    ):
        resolve_plan({"main": spec}, CFG(1.0), 5, solver="dpm++sde")


def test_every_solver_and_list_of_levels_is_in_the_table_of_the_documents():
    page = (Path(__file__).parents[3] / "docs" / "solvers.md").read_text()
    first_cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name.strip("` ") for cell in first_cells for name in cell.split(",")}
    assert named == {*SOLVERS, *NAMED, "shift=2.5"}


def test_strong_order_of_euler_maruyama(seed):
    """One Brownian path at three step sizes: the noise does not depend on the state, so each path converges with order one."""
    fine, paths = 1024, 400
    path = torch.randn(fine, paths, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean, variance = moments(FIRST)
    start = mean + math.sqrt(variance) * torch.randn(
        paths, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )

    def end(steps: int) -> torch.Tensor:
        merged = path.view(steps, fine // steps, paths).sum(1) / math.sqrt(fine // steps)
        return follow(stochastic_rows(DIFFUSIONS["default"], even(steps)), start, lambda index: merged[index])

    reference = end(fine)
    coarse, finer = (float((end(steps) - reference).pow(2).mean().sqrt()) for steps in (32, 64))
    # against 1024 steps instead of infinitely many, and estimated from 400 paths: the order is known to about 0.1
    assert abs(math.log2(coarse / finer) - 1) < 0.2


def test_samples_of_euler_maruyama_have_the_moments_of_the_chain(seed):
    """The noise of the engine, through the update of the engine: sample moments within five standard errors."""
    samples, steps = 20000, 30
    sigmas = even(steps)
    rows = stochastic_rows(DIFFUSIONS["default"], sigmas)
    mean, variance = moments(FIRST)
    draw = torch.randn(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    key = torch.tensor([seed])
    ours = follow(
        rows, mean + math.sqrt(variance) * draw, lambda call: normal_noise(key, torch.tensor([call]), samples)[0].double()
    )
    mean, variance = chain_moments(rows, sigmas)
    assert abs(float(ours.mean()) - mean) < 5 * math.sqrt(variance / samples)
    assert abs(float(ours.var()) - variance) < 5 * variance * math.sqrt(2 / samples)


def test_without_diffusion_the_stochastic_solver_is_eulers():
    sigmas = even(9)
    for ours, euler in zip(euler_maruyama(lambda sigma: 0.0).rows(sigmas), SOLVERS["euler"].rows(sigmas), strict=True):
        assert ours == euler


def test_the_last_step_of_the_stochastic_solver_is_without_noise():
    rows = euler_maruyama(last_sigma=0.3).rows(np.array([0.9, 0.6, 0.3, 0.0]))
    assert [row.d > 0 for row in rows] == [True, True, False]
