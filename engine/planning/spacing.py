"""Levels between two given ones, spaced as Karras et al., evenly in their logarithm, or as the quantiles of a beta law."""

import math

import numpy as np

TERMS = 64  # of a power series at 1/2 and below: the last is 2^-64 of the first
HALVINGS = 60  # of [0, 1], to less than the spacing of fp64 numbers near 1


def karras(first: float, last: float, count: int, rho: float = 7.0) -> np.ndarray:
    """Even in the ``rho``-th root, [count].  Source: EDM (arXiv 2206.00364) equation 5."""
    return np.linspace(first ** (1 / rho), last ** (1 / rho), count) ** rho


def exponential(first: float, last: float, count: int) -> np.ndarray:
    """Even in the logarithm, [count]."""
    return np.exp(np.linspace(math.log(first), math.log(last), count))


def beta(first: float, last: float, count: int, alpha: float = 0.6, beta: float = 0.6) -> np.ndarray:
    """Dense at both ends: quantiles of the beta law, [count].  Source: Beta Sampling (arXiv 2407.12173)."""
    return last + (first - last) * beta_quantiles(1 - np.linspace(0, 1, count), alpha, beta)


def beta_quantiles(shares: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The numbers below which the beta law has ``shares``, [N] in [0, 1]; by bisection, fp64."""
    low, high = np.zeros_like(shares), np.ones_like(shares)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = beta_shares(middle, alpha, beta) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shares <= 0, 0.0, np.where(shares >= 1, 1.0, high))


def beta_shares(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The share of the beta law below ``x`` [N]: the regularised incomplete beta function."""
    lower = _series(np.minimum(x, 0.5), alpha, beta)
    return np.where(x <= 0.5, lower, 1 - _series(np.minimum(1 - x, 0.5), beta, alpha))


def _series(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """``x^a / B(a, b) sum_n (1 - b)_n / n! x^n / (a + n)``, for ``x`` up to 1/2."""
    n = np.arange(TERMS)
    factors = np.cumprod(np.append(1.0, (n[1:] - beta) / n[1:])) / (alpha + n)
    constant = math.exp(math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta))
    return constant * x**alpha * (factors * x[:, None] ** n).sum(axis=1)
