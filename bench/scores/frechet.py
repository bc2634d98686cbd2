"""Frechet distance between two sets of features, each taken for a Gaussian; fp64, for any rank.

``d^2 = |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)``.  Source: Dowson and Landau, J. Multivariate Analysis 12 (1982); as
a score of generated pictures, Heusel et al. (arXiv 1706.08500).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import check_features


@dataclass(frozen=True, eq=False)
class Moments:
    """Of n >= 2 features: mean [F] and unbiased covariance [F, F], fp64."""

    count: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, batches: Tensor | Iterable[Tensor]) -> "Moments":
        """The moments of features [N, F], or of batches of such that need not be held together.

        Batches are joined by the pairwise formula of Chan, Golub and LeVeque (1979), which loses no digits to a large mean.
        """
        count, mean, products = 0, torch.zeros(0), torch.zeros(0)
        for batch in (batches,) if isinstance(batches, Tensor) else batches:
            features = check_features(batch, "features", least=1)
            own = features.mean(dim=0)
            centred = features - own
            if not count:
                mean, products = torch.zeros_like(own), torch.zeros(len(own), len(own), dtype=torch.float64)
            if own.shape != mean.shape:
                raise ValueError(f"every batch must have {len(mean)} features, got {len(own)}")
            total, apart = count + len(features), own - mean
            products = products + centred.T @ centred + torch.outer(apart, apart) * (count * len(features) / total)
            mean = mean + apart * (len(features) / total)
            count = total
        if count < 2:
            raise ValueError(f"a covariance needs at least two features, got {count}")
        return cls(count, mean, products / (count - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared Frechet distance ("FID" with Inception's features) between two Gaussians; never negative."""
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"both sides must have the same features, got {len(first.mean)} and {len(second.mean)}")
    root = _square_root(first.covariance)
    cross = _eigenvalues(root @ second.covariance @ root)[0].sqrt().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    return max(0.0, float((first.mean - second.mean).square().sum() + traces - 2 * cross))


def _eigenvalues(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of a positive semidefinite matrix; what is rounding only, of either sign, becomes zero.

    A root would turn 1e-16 of rounding into 1e-8, once for each dimension that the features do not fill.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values, 0.0), vectors


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = _eigenvalues(matrix)
    return (vectors * values.sqrt()) @ vectors.mT
