"""Counter-based normal noise: Philox 4x32-10 keyed by seed and call, so a sample's noise depends on nothing else.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); constants are theirs.
"""

import math

import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
ROUNDS = 10


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox 4x32.  All tensors int64 holding 32-bit words, broadcast together; returns four such tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 wraps modulo 2^64, so the low word and, after masking the sign extension, the high word are exact
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


def uniform(word: Tensor) -> Tensor:
    """A 32-bit word as fp32 in the open interval (0, 1), from its upper 24 bits."""
    return ((word >> 8).float() + 0.5) * 2.0**-24


def normal_noise(seed: Tensor, call: Tensor, numel: int) -> Tensor:
    """Unit normal noise [B, numel] fp32 for sample seeds and call numbers [B] int64.

    Element ``4 i + j`` of a sample is word pair ``j`` of counter ``(i, call, 0, 0)`` under key ``seed``, by Box-Muller.
    """
    blocks = torch.arange((numel + 3) // 4, device=seed.device, dtype=torch.int64)[None]
    zero = torch.zeros_like(blocks)
    key = (seed[:, None] & MASK, (seed[:, None] >> 32) & MASK)
    w0, w1, w2, w3 = philox4x32((blocks, call[:, None].expand(-1, blocks.shape[1]), zero, zero), key)
    pairs = []
    for first, second in ((w0, w1), (w2, w3)):
        radius = torch.sqrt(-2.0 * torch.log(uniform(first)))
        angle = 2.0 * math.pi * uniform(second)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :numel]
