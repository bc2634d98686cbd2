"""The official sampler of DiT as a textbook writes it, in fp64: ancestral sampling with a learned range of variance.

Source: improved DDPM (arXiv 2102.09672), equations 9 to 15 and its respacing; three channels are guided, as DiT's
``forward_with_cfg`` does, and the variance is that of the conditional half.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from official_dit import forward
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """One index of the respaced chain: the time that the network is told, and ``alpha^2`` here and one place before."""

    time: int
    here: float
    before: float

    @property
    def beta(self) -> float:
        return 1 - self.here / self.before


def respaced_chain(steps: int) -> list[Place]:
    """``steps`` of 1000 indices, evenly spaced, the noisiest last."""
    products, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (2e-2 - 1e-4) * i / 999)
        products.append(product)
    kept = [round(999 / (steps - 1) * i) for i in range(steps)]
    before = [1.0, *(products[i] for i in kept)]
    return [Place(time, products[time], before[i]) for i, time in enumerate(kept)]


def p_sample(x: Tensor, output: Tensor, place: Place, noise: Tensor) -> Tensor:
    """The state before: x, noise [B, C, H, W]; output [B, 2 C, H, W], noise prediction and variance in [-1, 1]."""
    eps, variance = output.chunk(2, dim=1)
    clean = (x - math.sqrt(1 - place.here) * eps) / math.sqrt(place.here)
    mean = math.sqrt(place.before) * place.beta / (1 - place.here) * clean
    mean = mean + math.sqrt(place.here / place.before) * (1 - place.before) / (1 - place.here) * x
    if place.time == 0:
        return mean
    smallest = math.log(place.beta * (1 - place.before) / (1 - place.here))
    fraction = (variance + 1) / 2
    return mean + (0.5 * (fraction * math.log(place.beta) + (1 - fraction) * smallest)).exp() * noise


def sample(
    state: dict[str, Tensor],
    x: Tensor,
    labels: Tensor,
    steps: int,
    scale: float,
    heads: int,
    loop_noise: Callable[[int], Tensor],
) -> Tensor:
    """Latents [B, C, H, W] fp64 from unit noise ``x``; ``loop_noise(i)`` is that of the i-th call."""
    state, x = {name: value.double() for name, value in state.items()}, x.double()
    null = torch.full_like(labels, state["y_embedder.embedding_table.weight"].shape[0] - 1)
    for call, place in enumerate(reversed(respaced_chain(steps))):
        time = torch.full((len(x),), float(place.time))
        output, uncond = (forward(state, x, time, y, heads) for y in (labels, null))
        output[:, :3] = uncond[:, :3] + scale * (output[:, :3] - uncond[:, :3])
        x = p_sample(x, output, place, loop_noise(call).double())
    return x
