"""The first half of the feed-forward layer: linear with a GELU epilogue."""

import torch.nn.functional as F
from torch import Tensor


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x W^T + b)`` with the tanh approximation.  x [R, L, D]; weight [E, D]; bias [E] -> [R, L, E]."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")
