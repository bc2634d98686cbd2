"""Inception-style score: how sure a classifier is of each sample, and how evenly it spreads them over the classes.

``exp(mean KL(p(y | x) || p(y)))``.  Source: Salimans et al. (arXiv 1606.03498).
"""

from statistics import fmean, stdev

import torch
from torch import Tensor

from .features import check_features

SPLITS = 10


def inception_score(logits: Tensor) -> float:
    """Of logits [N, classes]; between 1 and the number of classes."""
    return _score(check_features(logits, "logits", least=1))


def inception_score_by_splits(logits: Tensor, splits: int = SPLITS, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over ``splits`` disjoint parts of the samples in random order, as it is usually reported."""
    logits = check_features(logits, "logits", least=splits)
    if splits < 2:
        raise ValueError(f"a deviation needs at least two splits, got {splits}")
    shuffled = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]
    values = [_score(part) for part in shuffled.tensor_split(splits)]
    return fmean(values), stdev(values)


def _score(logits: Tensor) -> float:
    log_probability = logits.log_softmax(dim=1)
    log_marginal = log_probability.logsumexp(dim=0) - torch.tensor(len(logits), dtype=torch.float64).log()
    divergence = (log_probability.exp() * (log_probability - log_marginal)).sum(dim=1)
    return float(divergence.mean().exp())
