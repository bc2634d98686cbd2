"""Frechet and kernel distances against closed forms, naive sums, and torchmetrics where it is installed."""

import math

import pytest
import torch
from torch import Tensor, nn

from segue.bench.scores.frechet import Moments, frechet_distance
from segue.bench.scores.kernel_distance import kernel_distance, kernel_distance_by_subsets

# fp64 sums of at most 1e4 terms, and roots of eigenvalues that are at least 1e-3 of the largest
FP64 = 1e-9


def gaussian(seed: int, count: int, features: int, shift: float = 0.0) -> Tensor:
    """Correlated features [N, F] fp64 with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.randn(count, features, generator=generator, dtype=torch.float64) @ mixing + shift


def moments(mean, covariance) -> Moments:
    return Moments(100, torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def test_axes_of_their_own_have_a_closed_form():
    """Diagonal covariances commute: ``|m|^2 + sum (sqrt a - sqrt b)^2``."""
    a, b = [4.0, 9.0, 0.25], [1.0, 16.0, 0.0]
    first, second = (
        moments([1.0, 2.0, 3.0], torch.diag(torch.tensor(a)).tolist()),
        moments([0.0, 2.0, 5.0], torch.diag(torch.tensor(b)).tolist()),
    )
    expected = 1 + 4 + sum((math.sqrt(x) - math.sqrt(y)) ** 2 for x, y in zip(a, b, strict=True))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=FP64)


def test_a_common_rotation_changes_nothing_and_a_scale_squares(seed):
    first, second = gaussian(seed, 300, 7), gaussian(seed + 1, 200, 7, shift=0.5)
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    plain = frechet_distance(Moments.of(first), Moments.of(second))
    assert frechet_distance(Moments.of(second), Moments.of(first)) == pytest.approx(plain, rel=FP64)
    assert frechet_distance(Moments.of(first @ rotation), Moments.of(second @ rotation)) == pytest.approx(plain, rel=FP64)
    assert frechet_distance(Moments.of(3 * first), Moments.of(3 * second)) == pytest.approx(9 * plain, rel=FP64)


def test_two_dimensions_have_a_closed_form(seed):
    """``tr (A B)^1/2 = sqrt(tr AB + 2 sqrt(det AB))`` for 2 x 2 matrices, by Cayley and Hamilton."""
    first, second = (Moments.of(gaussian(seed + i, 50, 2)) for i in range(2))
    product = first.covariance @ second.covariance
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (first.mean - second.mean).square().sum() + first.covariance.trace() + second.covariance.trace() - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=FP64)


@pytest.mark.parametrize("count", [2, 10, 63])
def test_fewer_samples_than_features_are_no_matter(count, seed):
    """All samples lie in a plane of ``count`` - 1 dimensions, in which the distance is that of the coordinates there."""
    features, inner = 64, count - 1
    axes = torch.linalg.qr(torch.randn(features, inner, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    first, second = (gaussian(seed + i, count, inner) for i in range(2))
    expected = frechet_distance(Moments.of(first), Moments.of(second))
    found = frechet_distance(Moments.of(first @ axes.T), Moments.of(second @ axes.T))
    # eigenvalues that are zero but for rounding are dropped below 64 * 2e-16 of the largest: their roots are 1e-7 of its root
    assert found == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(Moments.of(first @ axes.T), Moments.of(first @ axes.T)) <= 1e-6 * float(first.var(dim=0).sum())


def test_moments_of_batches_are_those_of_the_whole_and_survive_a_large_mean(seed):
    features = gaussian(seed, 199, 5)
    whole = Moments.of(features + 1e6)
    batches = Moments.of(part + 1e6 for part in features.split([1, 63, 100, 35]))
    assert batches.count == whole.count == 199
    assert torch.allclose(batches.mean, features.mean(dim=0) + 1e6, rtol=1e-14)
    # a value of 1e6 is rounded to 1e-10
    assert torch.allclose(batches.covariance, features.T.cov(), rtol=0, atol=1e-8)
    assert torch.allclose(whole.covariance, batches.covariance, rtol=0, atol=1e-8)


def naive_kernel_distance(first: Tensor, second: Tensor) -> float:
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    n, m = len(first), len(second)
    within = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + other - 2 * sum(kernel(x, y) for x in first for y in second) / (n * m)


def test_the_kernel_distance_is_its_double_sum(seed):
    first, second = gaussian(seed, 13, 5), gaussian(seed + 1, 9, 5, shift=0.3)
    assert kernel_distance(first, second) == pytest.approx(naive_kernel_distance(first, second), rel=1e-10)


def test_the_kernel_distance_is_unbiased(seed):
    """Between halves of one distribution its mean over many draws is zero, within five standard errors."""
    generator = torch.Generator().manual_seed(seed)
    values = [kernel_distance(*torch.randn(2, 20, 3, generator=generator)) for _ in range(300)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / math.sqrt(len(values))
    assert abs(mean) <= 5 * error and min(values) < 0


def test_subsets_of_everything_are_the_whole(seed):
    first, second = gaussian(seed, 40, 4), gaussian(seed + 1, 40, 4)
    mean, deviation = kernel_distance_by_subsets(first, second, subsets=3, size=40)
    assert (mean, deviation) == (pytest.approx(kernel_distance(first, second), rel=1e-12), pytest.approx(0, abs=1e-9))
    small = kernel_distance_by_subsets(first, second, subsets=5, size=10, seed=3)
    assert small == kernel_distance_by_subsets(first, second, subsets=5, size=10, seed=3) and small[1] > 0


class Passed(nn.Module):
    """Features as pictures, for torchmetrics: pixels [N, 3, 4, 4] flattened are the features."""

    num_features = 48

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1).double()


def pictures(seed: int, count: int) -> tuple[Tensor, Tensor]:
    both = torch.rand(2, count, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return both[0], both[1] ** 1.3


def test_the_frechet_distance_is_that_of_torchmetrics(seed):
    fid = pytest.importorskip("torchmetrics.image.fid")
    real, drawn = pictures(seed, 150)
    metric = fid.FrechetInceptionDistance(feature=Passed(), normalize=True, input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    ours = frechet_distance(Moments.of(drawn.flatten(1)), Moments.of(real.flatten(1)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric")
def test_the_kernel_distance_is_that_of_torchmetrics(seed):
    kid = pytest.importorskip("torchmetrics.image.kid")
    real, drawn = pictures(seed, 60)
    metric = kid.KernelInceptionDistance(feature=Passed(), subsets=2, subset_size=60, normalize=True).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    assert kernel_distance(drawn.flatten(1), real.flatten(1)) == pytest.approx(float(metric.compute()[0]), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Moments.of(torch.zeros(1, 3)), "at least two features, got 1"),
        (lambda: Moments.of(torch.zeros(3)), r"shape \[N, F\], got \[3\]"),
        (lambda: Moments.of([torch.zeros(2, 3), torch.zeros(2, 4)]), "3 features, got 4"),
        (lambda: Moments.of(torch.tensor([[0.0], [math.nan]])), "finite, and sample 1 is not"),
        (lambda: frechet_distance(Moments.of(torch.eye(3)), Moments.of(torch.eye(4))), "got 3 and 4"),
        (lambda: kernel_distance(torch.eye(3), torch.eye(4)), "got 3 and 4"),
        (lambda: kernel_distance_by_subsets(torch.eye(3), torch.eye(3), size=4), "2 to 3 samples, got 4"),
        (lambda: kernel_distance_by_subsets(torch.eye(3), torch.eye(3), subsets=1, size=2), "at least two subsets, got 1"),
    ],
)
def test_bad_input_is_one_sentence_with_the_value(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_features_are_tensors_of_real_numbers():
    with pytest.raises(TypeError, match="must be a tensor"):
        kernel_distance([[1.0]], torch.eye(2))
    with pytest.raises(TypeError, match=r"floating-point dtype, got torch\.int64"):
        kernel_distance(torch.eye(2).long(), torch.eye(2))
