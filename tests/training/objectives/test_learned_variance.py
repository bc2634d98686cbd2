"""The variance of a DiT against the bound written with distributions, term by term."""

import math

import pytest
import torch
from official_ddpm import respaced_chain
from tiny_models import tiny_sit
from torch.distributions import Normal, kl_divergence

from segue.models.parameterization import Parameterization
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.objectives.learned_variance import variance_loss, variance_table
from segue.training.objectives.noising import Noising, noised
from segue.training.objectives.objective import Objective
from segue.training.objectives.velocity_task import VelocityTask

DIT = {"prediction": "epsilon", "time": "discrete", "channels": 2, "height": 2, "width": 4, "out_channels": 4, "exits": ()}
# the stated approximation of the normal distribution errs by 2e-4 at most, in shares of at least a hundredth here
APPROXIMATED = 0.03


def naive_bound(output, predicted, x0, eps, index: int) -> torch.Tensor:
    """Bits per element of one sample: the divergence of two posteriors, or the likelihood of the last step's bins."""
    place = respaced_chain(1000)[index]
    x = math.sqrt(place.here) * x0 + math.sqrt(1 - place.here) * eps
    clean = (x - math.sqrt(1 - place.here) * predicted) / math.sqrt(place.here)

    def mean(data):
        first = math.sqrt(place.before) * place.beta / (1 - place.here)
        return first * data + math.sqrt(place.here / place.before) * (1 - place.before) / (1 - place.here) * x

    own = respaced_chain(1000)[max(index, 1)]
    smallest = own.beta * (1 - own.before) / (1 - own.here)
    fraction = (output + 1) / 2
    deviation = (0.5 * (fraction * math.log(place.beta) + (1 - fraction) * math.log(smallest))).exp()
    if index:
        nats = kl_divergence(Normal(mean(x0), math.sqrt(smallest)), Normal(mean(clean), deviation))
    else:
        bins = Normal(mean(clean), deviation)
        nats = -(bins.cdf(x0 + 1 / 255) - bins.cdf(x0 - 1 / 255)).log()
    return nats.mean() / math.log(2)


def made_up(seed: int, indices: list[int], error: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    noising = Noising(tiny_sit(0, **DIT).spec, Objective())
    times = noising.at_indices(torch.tensor(indices), torch.float64)
    shape = (len(indices), 2, 2, 4)
    variance, x0, eps, off = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    return variance.requires_grad_(True), (eps + error * off).requires_grad_(True), x0.clamp(-0.9, 0.9), eps, times


@pytest.mark.parametrize("indices", ([1, 2, 3], [500, 17, 999, 250, 731]))
def test_the_bound_is_the_divergence_of_the_posteriors(indices, seed):
    variance, predicted, x0, eps, times = made_up(seed, indices)
    numbers = variance_table(times.index, Parameterization(tiny_sit(0, **DIT).spec))
    loss = variance_loss(variance, predicted, x0, eps, times.table, numbers)
    terms = [naive_bound(variance[i], predicted[i].detach(), x0[i], eps[i], index) for i, index in enumerate(indices)]
    expected = torch.stack(terms).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    ours, reached = torch.autograd.grad(loss, [variance, predicted], allow_unused=True)
    assert reached is None, "the mean is frozen"
    assert torch.allclose(ours, torch.autograd.grad(expected, variance)[0], rtol=1e-9, atol=0)


def test_the_last_step_is_the_likelihood_of_the_bins(seed):
    variance, predicted, x0, eps, times = made_up(seed, [0, 0], error=0.5)
    numbers = variance_table(times.index, Parameterization(tiny_sit(0, **DIT).spec))
    loss = variance_loss(variance, predicted, x0, eps, times.table, numbers)
    expected = sum(naive_bound(variance[i], predicted[i].detach(), x0[i], eps[i], 0) for i in range(2)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=APPROXIMATED)


def test_the_outer_bins_have_no_end():
    table = torch.tensor([[1.0, 0.01]], dtype=torch.float64)
    numbers = torch.tensor([[1.0, math.log(1e-6), math.log(1e-4), 1.0]], dtype=torch.float64)
    far = torch.full((1, 1, 1, 1), 1.0, dtype=torch.float64)
    for side in (-1.0, 1.0):  # an estimate beyond the end is in the outer bin for certain
        beyond = -side * 5 * far  # x0 - s / alpha * (predicted - eps) lies 0.05 further out
        assert variance_loss(-far, beyond, side * far, 0 * far, table, numbers).item() == pytest.approx(0, abs=1e-9)


def test_half_of_the_output_learns_the_noise_and_half_the_variance(seed):
    model = tiny_sit(seed, **DIT).double().requires_grad_(True)
    task = VelocityTask(model.spec, LabelDropout(0.1), 0.2)
    x0, eps = (torch.randn(7, 2, 2, 4, generator=torch.Generator().manual_seed(seed + i)).double() for i in range(2))
    index = torch.randint(0, 1000, (7,), generator=torch.Generator().manual_seed(seed))
    drawn = task.draw_at(x0, torch.arange(7) % 6, task.noising.at_indices(index, torch.float64), eps)
    losses = task.losses(model, drawn)
    x, target = noised(x0, eps, drawn.table)
    output = model(x, drawn.time, drawn.labels)
    bound = sum(naive_bound(output[i, 2:], output[i, :2].detach(), x0[i], eps[i], int(index[i])) for i in range(7)) / 7
    assert losses["noise"].item() == pytest.approx((output[:, :2] - target).square().mean().item(), rel=1e-11)
    assert losses["variance"].item() == pytest.approx(bound.item(), rel=1e-9 if (index > 0).all() else APPROXIMATED)
    assert losses["loss"].item() == pytest.approx((losses["noise"] + losses["variance"]).item(), rel=1e-12)


def test_bounds_stay_finite_in_single_precision(seed):
    """At every index, for outputs far from any that a network makes, and estimates far from the sample."""
    variance, predicted, x0, eps, times = made_up(seed, list(range(1000)), error=30.0)
    numbers = variance_table(times.index, Parameterization(tiny_sit(0, **DIT).spec)).float()
    single = [each.detach().float() for each in (predicted, x0, eps, times.table)]
    output = (3 * variance.detach()).float().requires_grad_(True)
    loss = variance_loss(output, *single, numbers)
    assert math.isfinite(loss.item())
    assert torch.autograd.grad(loss, output)[0].isfinite().all()
