"""Counter-based normal noise: Philox 4x32-10 keyed by seed and call, so a sample's noise depends on nothing else.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); constants are theirs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .launch_lookup import launch_config
from .triton_runtime import architecture, await_previous, jit, launch, tl

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
    """A 32-bit word as fp32 in (0, 1], from its upper 24 bits; 1 is what the largest rounds to."""
    return ((word >> 8).float() + 0.5) * 2.0**-24


def random_words(seed: Tensor, call: Tensor, numel: int) -> Tensor:
    """32-bit words [B, numel] int64 for sample seeds and call numbers [B] int64.

    Element ``4 i + j`` of a sample is word ``j`` of counter ``(i, call, 0, 0)`` under key ``seed``.
    """
    blocks = torch.arange((numel + 3) // 4, device=seed.device, dtype=torch.int64)[None]
    zero = torch.zeros_like(blocks)
    key = (seed[:, None] & MASK, (seed[:, None] >> 32) & MASK)
    words = philox4x32((blocks, call[:, None].expand(-1, blocks.shape[1]), zero, zero), key)
    return torch.stack(words, dim=-1).flatten(1)[:, :numel]


def normal_noise(seed: Tensor, call: Tensor, numel: int) -> Tensor:
    """Unit normal noise [B, numel] fp32 for sample seeds and call numbers [B] int64.

    Elements ``4 i + 2 j`` and ``4 i + 2 j + 1`` come from that pair of :func:`random_words`, by Box-Muller.
    """
    words = random_words(seed, call, (numel + 3) // 4 * 4)
    radius = torch.sqrt(-2.0 * torch.log(uniform(words[:, ::2])))
    angle = 2.0 * math.pi * uniform(words[:, 1::2])
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :numel]


@jit()
def unit_circle(turns):
    """``(cos, sin)`` of ``2 pi turns`` for fp32 numbers in [0, 1].

    Quarter turns are split off exactly; on the rest, at most pi / 4, the polynomials of Cephes (sinf, cosf).  The functions
    of the vendor reduce angles of any size by way of local memory, which some releases of Triton do not optimise away.
    """
    quarter = (4.0 * turns + 0.5).to(tl.int32)
    b_x = (4.0 * turns - quarter.to(tl.float32)) * 1.5707963267948966
    b_z = b_x * b_x
    b_sin = b_x + b_x * b_z * (-1.6666654611e-1 + b_z * (8.3321608736e-3 - b_z * 1.9515295891e-4))
    b_cos = 1.0 - 0.5 * b_z + b_z * b_z * (4.166664568298827e-2 + b_z * (-1.388731625493765e-3 + b_z * 2.443315711809948e-5))
    odd = (quarter & 1) != 0
    b_first, b_second = tl.where(odd, b_sin, b_cos), tl.where(odd, b_cos, b_sin)
    return tl.where(((quarter + 1) & 2) != 0, -b_first, b_first), tl.where((quarter & 2) != 0, -b_second, b_second)


@jit()
def normal_pair(first, second):
    """Two 32-bit words to two unit normal numbers by Box-Muller."""
    u = ((first >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08  # 2^-24
    b_cos, b_sin = unit_circle(((second >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08)
    radius = tl.sqrt_rn(-2.0 * tl.log(u))
    return radius * b_cos, radius * b_sin


@jit(do_not_specialize=["elements"])
def philox_kernel(
    p_seed,
    p_call,
    p_out,
    elements,
    seed_step,
    call_step,
    BLOCK: tl.constexpr,
    NORMAL: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Grid (blocks of ``BLOCK`` counters, B); writes four numbers per counter: normal, or the words themselves."""
    await_previous(DEPENDENT)
    sample = tl.program_id(1).to(tl.int64)
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(p_seed + sample * seed_step).to(tl.uint64)
    k0 = tl.zeros([BLOCK], tl.uint32) + (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = tl.zeros([BLOCK], tl.uint32) + (seed >> 32).to(tl.uint32)
    c0 = counter.to(tl.uint32)
    c1 = tl.zeros([BLOCK], tl.uint32) + tl.load(p_call + sample * call_step).to(tl.uint32)
    c2 = tl.zeros([BLOCK], tl.uint32)
    c3 = tl.zeros([BLOCK], tl.uint32)
    for _ in tl.static_range(10):
        b_p0 = c0.to(tl.uint64) * 0xD2511F53
        b_p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b_p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b_p1.to(tl.uint32)
        c2 = (b_p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = b_p0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    if NORMAL:
        b_0, b_1 = normal_pair(c0, c1)
        b_2, b_3 = normal_pair(c2, c3)
    else:
        b_0, b_1, b_2, b_3 = c0.to(tl.int64), c1.to(tl.int64), c2.to(tl.int64), c3.to(tl.int64)
    b_z = tl.interleave(tl.interleave(b_0, b_2), tl.interleave(b_1, b_3))
    o_z = tl.program_id(0) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(p_out + sample * elements + o_z, b_z, mask=o_z < elements)


def _generate(seed: Tensor, call: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty(len(seed), numel, dtype=dtype, device=seed.device)
    config = launch_config("philox", "any", architecture(seed.device))
    arguments = {"p_seed": seed, "p_call": call, "p_out": out, "elements": numel, "seed_step": seed.stride(0)}
    arguments |= {"call_step": call.stride(0), "BLOCK": config.block, "NORMAL": dtype == torch.float32}
    launch(philox_kernel, (-(-numel // (4 * config.block)), len(seed)), arguments, config.warps)
    return out


def random_words_triton(seed: Tensor, call: Tensor, numel: int) -> Tensor:
    """:func:`random_words` as one kernel: the same words to the bit."""
    return _generate(seed, call, numel, torch.int64)


def normal_noise_triton(seed: Tensor, call: Tensor, numel: int) -> Tensor:
    """:func:`normal_noise` as one kernel: the same words, and the same numbers up to the rounding of log, sin and cos."""
    return _generate(seed, call, numel, torch.float32)


def bytes_moved(samples: int, elements: int) -> int:
    """Only the noise is written."""
    return 4 * samples * elements


def flops(samples: int, elements: int) -> int:
    """Floating-point work of Box-Muller, about 7 per number (log, root, sine count one each); Philox itself is integer."""
    return 7 * samples * elements
