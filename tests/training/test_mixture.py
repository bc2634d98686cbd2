"""The exact mixtures: density, score and velocity agree with each other by differences and integrals, at all levels."""

import math

import pytest
import torch

from segue.training.leaf_trees import leaf_mixture
from segue.training.mixture import GaussianMixture

LEVELS = (0.0, 0.05, 0.3, 0.62, 0.97, 1.0)
# a central difference of step h errs by h^2 / 6 of the third derivative and 1e-16 / h of the value: 1e-7 of the score at most
DIFFERENCE = 1e-6
# sums over a grid finer than every Gaussian on it: the error of the trapezoid rule is 2 exp(-2 (pi s / h)^2), s / h above 1.3
QUADRATURE = 1e-6


@pytest.fixture(scope="module")
def mixture():
    """Four classes in two superclasses, trees of two levels."""
    return leaf_mixture(4, 2, siblings=2)


def labels_of(mixture) -> dict[str, int]:
    return {"class": 1, "superclass": mixture.num_classes + 1, "everything": mixture.null_label}


def points(seed: int, count: int = 7) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(half: float, step: float) -> torch.Tensor:
    """The points of a square of half side ``half``, [N, 2]."""
    axis = torch.arange(-half, half + step / 2, step, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("name", ["class", "superclass", "everything"])
def test_the_score_is_the_slope_of_the_density(mixture, name, sigma, seed):
    x, label, step = points(seed), labels_of(mixture)[name], 1e-5
    shifts = step * torch.eye(2, dtype=torch.float64)
    slopes = [
        (mixture.log_density(x + shift, sigma, label) - mixture.log_density(x - shift, sigma, label)) / (2 * step)
        for shift in shifts
    ]
    score = mixture.score(x, sigma, label)
    assert (torch.stack(slopes, dim=1) - score).abs().max() <= DIFFERENCE * score.abs().max()


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("name", ["class", "everything"])
def test_the_density_integrates_to_one(mixture, name, sigma):
    thinnest = math.sqrt((1 - sigma) ** 2 * float(mixture.variances.min()) + sigma**2)
    step = 0.7 * thinnest
    x = grid((1 - sigma) * 1.8 + 6 * sigma, step)
    total = sum(mixture.log_density(part, sigma, labels_of(mixture)[name]).exp().sum() for part in x.split(20_000))
    assert float(total) * step**2 == pytest.approx(1, abs=QUADRATURE)


@pytest.fixture(scope="module")
def clean(mixture):
    """Clean points on a grid that is finer than every Gaussian, and their log density by label."""
    points = grid(1.8, 0.7 * float(mixture.variances.min().sqrt()))
    return points, {label: mixture.log_density(points, 0.0, label) for label in labels_of(mixture).values()}


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.62, 0.97])
@pytest.mark.parametrize("name", ["class", "superclass", "everything"])
def test_the_velocity_is_the_expectation_of_noise_less_data(mixture, clean, name, sigma, seed):
    """``E[eps - x0 | x]`` as an integral over clean points: their density times that of the noise that leads to x."""
    label = labels_of(mixture)[name]
    clean, density = clean[0], clean[1][label]
    x = (1 - sigma) * mixture.draw(torch.full((4,), label), torch.Generator().manual_seed(seed)) + sigma * points(seed, 4)
    velocity = mixture.velocity(x, sigma, label)
    for own, expected in zip(x, velocity, strict=True):
        noise = (own - (1 - sigma) * clean) / sigma
        share = (density - 0.5 * (noise**2).sum(dim=1)).softmax(dim=0)
        assert (share @ (noise - clean) - expected).abs().max() <= QUADRATURE * velocity.abs().max()


@pytest.mark.parametrize("name", ["class", "superclass", "everything"])
def test_the_velocity_at_the_ends(mixture, name, seed):
    """A clean point is known, its noise is not: ``-x``; of pure noise only the mean of the data is known: ``x - mean``."""
    x, label = points(seed), labels_of(mixture)[name]
    assert torch.allclose(mixture.velocity(x, 0.0, label), -x, rtol=0, atol=1e-12)
    assert torch.allclose(mixture.velocity(x, 1.0, label), x - mixture.moments(label)[0], rtol=0, atol=1e-12)


def test_a_batch_of_labels_and_levels_is_its_samples_alone(mixture, seed):
    x = points(seed, 7)
    labels, sigmas = torch.arange(7) % mixture.num_labels, torch.linspace(0, 1, 7, dtype=torch.float64)
    for function in (mixture.log_density, mixture.score, mixture.velocity):
        together = function(x, sigmas, labels)
        alone = [function(x[i : i + 1], float(sigmas[i]), int(labels[i]))[0] for i in range(7)]
        assert torch.allclose(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_a_superclass_and_everything_are_equal_shares_of_their_classes(mixture, seed):
    x = points(seed)
    density = {label: mixture.log_density(x, 0.2, label).exp() for label in range(mixture.num_labels)}
    assert (mixture.num_labels, mixture.null_label) == (7, 6)
    assert torch.allclose(density[4], (density[0] + density[1]) / 2)
    assert torch.allclose(density[5], (density[2] + density[3]) / 2)
    assert torch.allclose(density[6], (density[4] + density[5]) / 2)


@pytest.mark.parametrize("name", ["class", "superclass", "everything"])
def test_draws_have_the_moments_of_their_label(mixture, name, seed):
    label, count = labels_of(mixture)[name], 20_000
    drawn = mixture.draw(torch.full((count,), label), torch.Generator().manual_seed(seed))
    mean, covariance = mixture.moments(label)
    assert (drawn.mean(dim=0) - mean).abs().max() <= 5 * math.sqrt(float(covariance.diagonal().max()) / count)
    # a product of two coordinates varies by less than three times their variances
    assert (drawn.T.cov() - covariance).abs().max() <= 5 * 3 * float(covariance.diagonal().max()) / math.sqrt(count)


def test_integration_from_noise_reaches_the_distribution(seed):
    """Runge-Kutta of fourth order along the velocity, from noise at level 1 to clean points of three classes."""
    mixture, each = leaf_mixture(3, 2), 1500
    labels = torch.arange(3).repeat(each)
    x = points(seed, 3 * each)
    levels = (torch.linspace(1, 0, 31, dtype=torch.float64) ** 1.5).tolist()
    for s, t in zip(levels, levels[1:], strict=False):
        h, middle = t - s, (s + t) / 2
        k1 = mixture.velocity(x, s, labels)
        k2 = mixture.velocity(x + h / 2 * k1, middle, labels)
        k3 = mixture.velocity(x + h / 2 * k2, middle, labels)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + mixture.velocity(x + h * k3, t, labels))
    for label in range(3):
        own, (mean, covariance) = x[labels == label], mixture.moments(label)
        error = math.sqrt(float(covariance.diagonal().max()) / each)
        assert (own.mean(dim=0) - mean).abs().max() <= 5 * error
        assert (own.T.cov() - covariance).abs().max() <= 15 * math.sqrt(float(covariance.diagonal().max())) * error
    # more than moments: the points are as likely as points drawn from the mixture are
    likely = [mixture.log_density(of, 0.0, labels) for of in (x, mixture.draw(labels, torch.Generator().manual_seed(seed)))]
    assert abs(float(likely[0].mean() - likely[1].mean())) <= 5 * float(likely[1].std()) * math.sqrt(2 / len(labels))


def test_blur_is_noise_that_was_not_scaled(mixture, seed):
    """``x = (1 - s) x0 + s eps`` over ``1 - s`` is the clean point moved by ``s / (1 - s)`` of noise."""
    x, sigma = points(seed), 0.3
    blurred = mixture.underfitted(blur=sigma / (1 - sigma)).log_density(x, 0.0, 1)
    assert torch.allclose(blurred, mixture.log_density((1 - sigma) * x, sigma, 1) + 2 * math.log(1 - sigma), rtol=1e-12)


def test_confusion_takes_a_share_from_all_classes(mixture, seed):
    x = points(seed)
    own, every = (mixture.log_density(x, 0.1, label).exp() for label in (1, mixture.null_label))
    confused = mixture.underfitted(confusion=0.25)
    assert torch.allclose(confused.log_density(x, 0.1, 1).exp(), 0.75 * own + 0.25 * every)
    assert torch.allclose(confused.log_density(x, 0.1, mixture.null_label).exp(), every)


def test_a_shallower_tree_has_the_means_and_covariances_of_the_whole():
    whole = leaf_mixture(6, 3, siblings=3)
    counts = []
    for resolved in (1, 2, 3):
        mixture = leaf_mixture(6, 3, siblings=3, resolved=resolved)
        counts.append(len(mixture.means) // 6)
        for label in range(whole.num_labels):
            for value, expected in zip(mixture.moments(label), whole.moments(label), strict=True):
                assert torch.allclose(value, expected, rtol=0, atol=1e-12)
    assert counts == [1, 4, 13]  # one branch with three twigs, of three twigs each


def test_the_knobs_turn_what_they_say(seed):
    """Many classes are closer to each other than few, deep trees of few classes are not."""
    confused = {}
    for classes, depth in ((4, 1), (24, 1), (4, 3)):
        mixture = leaf_mixture(classes, depth).underfitted(blur=0.06)
        labels = torch.arange(classes).repeat(50)
        found = mixture.class_probabilities(mixture.draw(labels, torch.Generator().manual_seed(seed))).argmax(dim=1)
        confused[classes, depth] = float((found != labels).double().mean())
    assert max(confused[4, 1], confused[4, 3]) < 0.08 and confused[24, 1] > 0.2


def test_class_probabilities_are_bayes_rule(mixture, seed):
    x = points(seed)
    density = torch.stack([mixture.log_density(x, 0.0, label).exp() for label in range(4)], dim=1)
    assert torch.allclose(mixture.class_probabilities(x), density / density.sum(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.velocity(torch.zeros(3), 0.5, 0), r"shape \[B, 2\], got \[3\]"),
        (lambda m: m.velocity(torch.zeros(1, 2), 1.5, 0), r"lie in \[0, 1\], got 1.5"),
        (lambda m: m.velocity(torch.zeros(1, 2), 0.5, 7), r"labels must lie in \[0, 6\], got 7"),
        (lambda m: m.underfitted(blur=-1), "at least 0, got -1"),
        (lambda m: m.underfitted(confusion=1.5), "between 0 and 1, got 1.5"),
        (lambda _: leaf_mixture(5, 2, siblings=2), "5 classes cannot be shared out in superclasses of 2"),
        (lambda _: leaf_mixture(4, 0), "depth must be a whole number of at least 1, got 0"),
        (lambda _: leaf_mixture(4, 2, resolved=3), "3 levels cannot be told apart in trees of 2"),
        (lambda m: GaussianMixture(m.means, m.axes, -m.variances, m.weights), "variances must be positive, got -"),
        (lambda m: GaussianMixture(m.means, m.axes, m.variances, 2 * m.weights), r"sum to one, got sums \[2"),
        (lambda m: GaussianMixture(m.means, 2 * m.axes, m.variances, m.weights), "axes are unit vectors, got lengths"),
        (lambda m: GaussianMixture(m.means.float(), m.axes, m.variances, m.weights), "means must be fp64"),
    ],
)
def test_bad_input_is_one_sentence_with_the_value(mixture, call, said):
    with pytest.raises(ValueError, match=said):
        call(mixture)
