"""What PyTorch's counter must be told: the FLOPs of oneDNN's linear layer."""

from math import prod

import torch


def linear_flops(x, weight, *_others, out_shape=None, **_options) -> int:
    """2 per multiply-add.  x [..., D]; weight [E, D]: shapes."""
    return 2 * prod(x) * weight[0]


COUNTED = {torch.ops.mkldnn._linear_pointwise: linear_flops} if torch.backends.mkldnn.is_available() else {}
