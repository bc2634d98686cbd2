"""The second half of the output of a DiT: a range of variances, fitted to the variational bound under a frozen mean.

Source: improved DDPM (arXiv 2102.09672), equations 4 to 7 and 15 to 16; the likelihood of the last step is DDPM's (2006.11239,
equation 13).
"""

import math

import torch
from torch import Tensor

from segue.models.parameterization import Parameterization

VARIANCE_COLUMNS = 4  # of a table: the weight of x0 in the posterior mean, both ends of the log variance, 1 at index 0
BIN = 1 / 255  # half of the distance of two of 256 levels in [-1, 1]
SMALLEST = 1e-12  # probability


def variance_table(index: Tensor, parameterization: Parameterization) -> Tensor:
    """The numbers [B, 4] fp64 of the posterior ``q(x_(i-1) | x_i, x0)`` at chain indices [B] int64."""
    alpha = torch.from_numpy(parameterization.chain[0])
    here = alpha.square()
    before = torch.cat([torch.ones(1, dtype=here.dtype), here[:-1]])
    beta = 1 - here / before
    mean = before.sqrt() * beta / (1 - here)
    smallest = (beta * (1 - before) / (1 - here)).clamp(min=0)
    smallest[0] = smallest[1]  # at index 0 there is nothing left to draw, whose logarithm is taken here
    first = torch.zeros_like(mean)
    first[0] = 1
    return torch.stack([mean, smallest.log(), beta.log(), first], dim=1)[index]


def variance_loss(variance: Tensor, predicted: Tensor, x0: Tensor, eps: Tensor, state: Tensor, numbers: Tensor) -> Tensor:
    """The bound, in bits per element, as a mean over the batch: its gradient reaches ``variance`` alone.

    variance [B, C, H, W]: the output that chooses between both ends, -1 the smallest; predicted [B, C, H, W]: the noise
    prediction, taken as it is; x0, eps [B, C, H, W]; state [B, 2 or more]: alpha, s; numbers [B, 4] of :func:`variance_table`.
    """
    alpha, s = (column[:, None, None, None] for column in state[:, :2].unbind(1))
    mean, smallest, largest, first = (column[:, None, None, None] for column in numbers.unbind(1))
    fraction = (variance + 1) / 2
    log_variance = fraction * largest + (1 - fraction) * smallest
    # both means are mean * x0 + (..) * x, and the estimate of x0 errs by s / alpha of the error in the noise
    distance = mean * (s / alpha) * (predicted.detach() - eps)
    divergence = 0.5 * (log_variance - smallest - 1 + (smallest - log_variance).exp() + distance.square() / log_variance.exp())
    estimate = x0 - (s / alpha) * (predicted.detach() - eps)  # at index 0 the mean is the estimate
    bound = torch.where(first == 1, -_log_likelihood(x0, estimate, log_variance), divergence)
    return bound.mean() / math.log(2)


def _log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The logarithm of a normal distribution's share of the bin of x0, one of 256 levels; the outer bins have no end."""
    inverse = (-0.5 * log_variance).exp()
    above, below = _cumulative((x0 - mean + BIN) * inverse), _cumulative((x0 - mean - BIN) * inverse)
    share = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
    return share.clamp(min=SMALLEST).log()


def _cumulative(x: Tensor) -> Tensor:
    """The cumulative distribution of a unit normal, by the approximation that DiT was trained with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
