"""The regression of a batch: outputs against targets that may be extrapolated from a weak signal, and the heads' own."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Pulled(NamedTuple):
    """What a weak signal does to the regression: ``output`` [B, C, H, W], detached, and W [B], 0 where it does not act."""

    output: Tensor
    weight: Tensor


def wide(tensor: Tensor) -> Tensor:
    """At least fp32: losses are summed in it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def regression_error(output: Tensor, target: Tensor, pulled: Pulled | None, inverse: bool) -> Tensor:
    """What is squared: ``v - (u* + W sg[v - v_weak])``, or the inverse target ``(v + (s - 1) v_weak) / s - u*``.

    output, target [B, C, H, W].  With ``s = 1 / (1 - W)`` both have the same value; the gradient of the second is ``1 - W``
    times that of the first.
    """
    if pulled is None:
        return output - target
    weight = pulled.weight[:, None, None, None]
    if inverse:
        return (1 - weight) * output + weight * pulled.output - target
    return output - (target + weight * (output.detach() - pulled.output))


def head_losses(
    heads: Mapping[int, Tensor], output: Tensor, target: Tensor, agreeing: int | None, below: Tensor
) -> dict[str, Tensor]:
    """``exit<layer>``: the mean of ``|m - u*|^2`` of every early-exit head ``m`` [B, C, H, W].

    The head ``agreeing`` is not fitted where ``below`` [B] holds: there, ``agreement`` is ``|v - m|^2``, which moves both.
    """
    losses = {}
    for layer, head in heads.items():
        error = (wide(head) - target).square()
        if layer == agreeing:
            apart = below[:, None, None, None]
            losses["agreement"] = torch.where(apart, (output - wide(head)).square(), 0.0).mean()
            error = torch.where(apart, 0.0, error)
        losses[f"exit{layer}"] = error.mean()
    return losses
