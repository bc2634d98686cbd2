"""Times, states and targets: as each convention defines them, and the inverse of what the engine does with an output."""

import math

import numpy as np
import pytest
import torch
from naive_sampler import variance_preserving_levels
from tiny_models import tiny_sit

from segue.models.parameterization import Parameterization
from segue.training.objectives.noising import Noising, noised
from segue.training.objectives.objective import Objective

DIT = {"prediction": "epsilon", "time": "discrete"}
SPECS = {
    "repa": {},
    "sit": {"prediction": "data_velocity", "time": "data_time"},
    "cosine": {"path": "cosine"},
    "cosine-sit": {"path": "cosine", "prediction": "data_velocity", "time": "data_time"},
    "dit": DIT,
}


def noising(convention: str, **changes) -> Noising:
    return Noising(tiny_sit(0, **SPECS[convention]).spec, Objective(**changes))


@pytest.mark.parametrize("convention", SPECS)
def test_the_engine_makes_the_velocity_of_the_targets_and_the_state_of_its_own(convention, seed):
    """What is trained is what is sampled: ``m y + n o`` of the target is ``eps - x0``, at the network's time and input."""
    made = noising(convention)
    times = made.draw(50, torch.Generator().manual_seed(seed))
    if convention == "dit":
        times = made.at_indices(times.index, torch.float64)
    else:
        times = made.at_times(torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(50, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    x, target = noised(x0, eps, times.table)
    convert, level = Parameterization(made.spec), times.level.numpy()
    m, n, scale = (torch.from_numpy(v)[:, None, None, None] for v in (*convert.velocity(level), convert.input_scale(level)))
    y = (1 - times.level)[:, None, None, None] * x0 + times.level[:, None, None, None] * eps
    # a chain's slope reaches 157 at its noisiest index
    assert torch.allclose(scale * y, x, rtol=0, atol=1e-12)
    assert torch.allclose(m * y + n * target, eps - x0, rtol=0, atol=1e-11)
    assert np.allclose(convert.network_time(level), times.network.numpy(), rtol=0, atol=1e-12)


def test_the_target_of_the_cosine_path_is_the_derivative_of_its_state(seed):
    made, step = noising("cosine"), 1e-6
    x0, eps = (torch.randn(9, 1, 1, 1, generator=torch.Generator().manual_seed(seed + i)).double() for i in range(2))
    time = torch.rand(9, generator=torch.Generator().manual_seed(seed)).double() * 0.9 + 0.05
    before, after = (noised(x0, eps, made.at_times(time + d).table)[0] for d in (-step, step))
    target = noised(x0, eps, made.at_times(time).table)[1]
    assert torch.allclose((after - before) / (2 * step), target, rtol=0, atol=1e-8)  # the error is step^2 and eps / step


def test_the_noise_of_a_chain_is_that_of_its_index(seed):
    times = noising("dit").draw(200, torch.Generator().manual_seed(seed))
    levels = variance_preserving_levels()
    for i, index in enumerate(times.index.tolist()):
        alpha, s = levels[index]
        assert times.table[i].tolist() == pytest.approx([alpha, s, 0, 1], abs=1e-7)
        assert times.network[i] == index
        assert times.level[i].item() == pytest.approx(s / (alpha + s), abs=1e-7)


def test_indices_of_a_chain_are_uniform(seed):
    index = noising("dit").draw(50_000, torch.Generator().manual_seed(seed)).index
    assert (int(index.min()), int(index.max())) == (0, 999)
    counts = torch.bincount(index // 100, minlength=10).double()
    assert ((counts - 5000).abs() < 5 * math.sqrt(5000)).all()


@pytest.mark.parametrize("convention", ("repa", "sit", "cosine", "cosine-sit"))
def test_the_ratio_of_noise_to_data_is_log_normal(convention, seed):
    mean, std, count = -0.4, 1.3, 40_000
    times = noising(convention, time_mean=mean, time_std=std).draw(count, torch.Generator().manual_seed(seed))
    assert times.network.min() > 0 and times.network.max() < 1
    ratio = torch.log(times.table[:, 1].double() / times.table[:, 0].double())
    assert abs(ratio.mean() - mean) < 5 * std / count**0.5
    assert abs(ratio.std() - std) < 5 * std / (2 * count) ** 0.5


@pytest.mark.parametrize("convention", ("repa", "cosine-sit"))
def test_uniform_times(convention, seed):
    count = 40_000
    times = noising(convention, time="uniform").draw(count, torch.Generator().manual_seed(seed)).network.double()
    assert times.min() >= 0 and times.max() <= 1
    counts = torch.bincount((times * 10).long().clamp(max=9), minlength=10)
    assert ((counts - count / 10).abs() < 5 * math.sqrt(count / 10)).all()
