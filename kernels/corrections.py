"""Guidance corrections that need a reduction over each sample: CFG-Zero*, rescale and adaptive projected guidance (APG).

They do not commute with a change of prediction, so each states its space.  Every operand [B, C, H, W] is fp32, every scalar
a [B] fp32 tensor that a captured step may read.  The kernels reduce in two deterministic passes: sums per block of elements,
then, in the pass that writes the result, the sum of those.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch_lookup import launch_config
from .triton_runtime import architecture, jit, launch, next_power_of_two, tl


def cfg_zero_star(cond: Tensor, uncond: Tensor, scale: Tensor) -> Tensor:
    """``a u + s (c - a u)`` with ``a = <c, u> / <u, u>`` per sample, on velocities.  Source: CFG-Zero* (arXiv 2503.18886).

    Its other half, zero velocity in the first steps, is a matter of the plan (``Plan.silent``).
    """
    c, u = cond.flatten(1), uncond.flatten(1)
    a = (c * u).sum(1) / (u * u).sum(1).clamp_min(TINY)
    projected = u * a[:, None]
    return (projected + scale[:, None] * (c - projected)).view_as(cond)


def rescale(guided: Tensor, cond: Tensor, phi: Tensor) -> Tensor:
    """``phi g std(c) / std(g) + (1 - phi) g`` per sample, on the prediction itself.  Source: arXiv 2305.08891, 3.4."""
    ratio = cond.flatten(1).std(1) / guided.flatten(1).std(1).clamp_min(TINY)
    return guided * (phi * ratio + 1 - phi)[:, None, None, None]


def adaptive_projection(
    cond: Tensor, uncond: Tensor, average: Tensor, scale: Tensor, momentum: Tensor, radius: Tensor, eta: Tensor
) -> Tensor:
    """Adaptive projected guidance on clean estimates (x0).  Source: APG (arXiv 2410.02416), algorithm 1.

    ``D = c - u + momentum * average``, kept in ``average`` in place; clipped to norm ``radius`` (infinite: not at all); its
    component parallel to ``c`` scaled by ``eta``; the result is ``c + (s - 1) (D_orthogonal + eta D_parallel)``.
    """
    difference = cond - uncond + momentum[:, None, None, None] * average
    average.copy_(difference)
    d, c = difference.flatten(1), cond.flatten(1)
    shrink = (radius / (d * d).sum(1).sqrt().clamp_min(TINY)).clamp_max(1)
    parallel = (d * c).sum(1) / (c * c).sum(1).clamp_min(TINY)
    update = shrink[:, None] * (d + ((eta - 1) * parallel)[:, None] * c)
    return (c + (scale - 1)[:, None] * update).view_as(cond)


TINY = 1e-30  # a zero tensor has no direction and no deviation: its ratios are zero, not NaN
ZERO_STAR, RESCALE, PROJECTION = 0, 1, 2


@jit(do_not_specialize=["elements", "blocks"])
def sums_kernel(p_c, p_u, p_average, p_momentum, p_sums, elements, blocks, RULE: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (blocks, B).  Four sums per block of elements; deviations are about the block's own mean, two-pass."""
    block = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    o_x = block * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < elements
    o_x = sample * elements + o_x
    b_c = tl.load(p_c + o_x, mask=m_x, other=0.0)
    b_u = tl.load(p_u + o_x, mask=m_x, other=0.0)
    p_sums += (sample * blocks + block) * 4
    if RULE == 0:
        tl.store(p_sums, tl.sum(b_c * b_u, 0))
        tl.store(p_sums + 1, tl.sum(b_u * b_u, 0))
    elif RULE == 1:
        count = tl.minimum(BLOCK, elements - block * BLOCK).to(tl.float32)
        b_c0 = tl.where(m_x, b_c - tl.sum(b_c, 0) / count, 0.0)
        b_u0 = tl.where(m_x, b_u - tl.sum(b_u, 0) / count, 0.0)
        tl.store(p_sums, tl.sum(b_c, 0))
        tl.store(p_sums + 1, tl.sum(b_u, 0))
        tl.store(p_sums + 2, tl.sum(b_c0 * b_c0, 0))
        tl.store(p_sums + 3, tl.sum(b_u0 * b_u0, 0))
    else:
        b_d = b_c - b_u + tl.load(p_momentum + sample) * tl.load(p_average + o_x, mask=m_x, other=0.0)
        tl.store(p_average + o_x, b_d, mask=m_x)
        tl.store(p_sums, tl.sum(b_d * b_d, 0))
        tl.store(p_sums + 1, tl.sum(b_d * b_c, 0))
        tl.store(p_sums + 2, tl.sum(b_c * b_c, 0))


@jit()
def squared_deviations(b_sum, b_squares, b_count):
    """Squared deviations about the mean of all blocks, from each block's sum, squares about its own mean, and count."""
    mean = tl.sum(b_sum, 0) / tl.sum(b_count, 0)
    b_shift = tl.where(b_count > 0, b_sum / tl.maximum(b_count, 1.0) - mean, 0.0)
    return tl.sum(b_squares + b_count * b_shift * b_shift, 0)


@jit(do_not_specialize=["elements", "blocks"])
def apply_kernel(
    p_c, p_u, p_average, p_sums, p_first, p_radius, p_eta, p_out, elements, blocks,
    RULE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks, B).  ``p_first`` is the scale, or phi; ``p_c``, ``p_u`` are the operands of the sums."""
    sample = tl.program_id(1).to(tl.int64)
    o_b = tl.arange(0, BLOCKS)
    m_b = o_b < blocks
    p_sum = p_sums + (sample * blocks + o_b) * 4
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < elements
    first = tl.load(p_first + sample)
    b_c = tl.load(p_c + sample * elements + o_x, mask=m_x)
    if RULE == 0:
        product = tl.sum(tl.load(p_sum, mask=m_b, other=0.0), 0)
        square = tl.sum(tl.load(p_sum + 1, mask=m_b, other=0.0), 0)
        b_u = tl.load(p_u + sample * elements + o_x, mask=m_x) * (product / tl.maximum(square, 1e-30))
        b_out = b_u + first * (b_c - b_u)
    elif RULE == 1:
        b_count = tl.maximum(tl.minimum(elements - o_b * BLOCK, BLOCK), 0).to(tl.float32)
        b_sum, b_sum2 = tl.load(p_sum, mask=m_b, other=0.0), tl.load(p_sum + 1, mask=m_b, other=0.0)
        b_squares, b_squares2 = tl.load(p_sum + 2, mask=m_b, other=0.0), tl.load(p_sum + 3, mask=m_b, other=0.0)
        guided = tl.sqrt_rn(squared_deviations(b_sum, b_squares, b_count))
        wanted = tl.sqrt_rn(squared_deviations(b_sum2, b_squares2, b_count))
        b_out = b_c * (first * (wanted / tl.maximum(guided, 1e-30)) + 1.0 - first)
    else:
        length = tl.sqrt_rn(tl.sum(tl.load(p_sum, mask=m_b, other=0.0), 0))
        product = tl.sum(tl.load(p_sum + 1, mask=m_b, other=0.0), 0)
        square = tl.sum(tl.load(p_sum + 2, mask=m_b, other=0.0), 0)
        shrink = tl.minimum(tl.load(p_radius + sample) / tl.maximum(length, 1e-30), 1.0)
        parallel = (tl.load(p_eta + sample) - 1.0) * product / tl.maximum(square, 1e-30)
        b_d = tl.load(p_average + sample * elements + o_x, mask=m_x)
        b_out = b_c + (first - 1.0) * shrink * (b_d + parallel * b_c)
    tl.store(p_out + sample * elements + o_x, b_out, mask=m_x)


def _correct(
    rule: int,
    c: Tensor,
    u: Tensor,
    first: Tensor,
    average: Tensor | None = None,
    momentum: Tensor | None = None,
    radius: Tensor | None = None,
    eta: Tensor | None = None,
) -> Tensor:
    """Both passes of one rule."""
    if c.shape != u.shape or (average is not None and (average.shape != c.shape or not average.is_contiguous())):
        raise ValueError(
            f"the operands must have one shape and the average be contiguous, got {tuple(c.shape)}, {tuple(u.shape)}"
        )
    c, u = c.contiguous(), u.contiguous()
    out = torch.empty(c.shape, dtype=torch.float32, device=c.device)
    if not out.numel():
        return out
    samples, elements = len(c), c[0].numel()
    config = launch_config("correction", "any", architecture(c.device))
    blocks = -(-elements // config.block)
    sums = torch.empty(samples, blocks, 4, dtype=torch.float32, device=c.device)
    shared = {"p_c": c, "p_u": u, "p_average": c if average is None else average, "p_sums": sums, "elements": elements}
    shared |= {"blocks": blocks, "RULE": rule, "BLOCK": config.block}
    launch(sums_kernel, (blocks, samples), shared | {"p_momentum": first if momentum is None else momentum}, config.warps)
    scalars = {"p_first": first, "p_radius": first if radius is None else radius, "p_eta": first if eta is None else eta}
    arguments = shared | scalars | {"p_out": out, "BLOCKS": next_power_of_two(blocks)}
    launch(apply_kernel, (blocks, samples), arguments, config.warps)
    return out


def cfg_zero_star_triton(cond: Tensor, uncond: Tensor, scale: Tensor) -> Tensor:
    """:func:`cfg_zero_star` as two kernels."""
    return _correct(ZERO_STAR, cond, uncond, scale.contiguous())


def rescale_triton(guided: Tensor, cond: Tensor, phi: Tensor) -> Tensor:
    """:func:`rescale` as two kernels."""
    return _correct(RESCALE, guided, cond, phi.contiguous())


def adaptive_projection_triton(
    cond: Tensor, uncond: Tensor, average: Tensor, scale: Tensor, momentum: Tensor, radius: Tensor, eta: Tensor
) -> Tensor:
    """:func:`adaptive_projection` as two kernels; ``average`` must be contiguous."""
    scalars = (momentum.contiguous(), radius.contiguous(), eta.contiguous())
    return _correct(PROJECTION, cond, uncond, scale.contiguous(), average, *scalars)


def bytes_moved(samples: int, elements: int, operation: str) -> int:
    """Two passes in fp32.  CFG-Zero*: c and u in, both again, the result out; rescale needs only the guided output again; the
    projection reads its average too, writes it, and reads it again beside c."""
    return 4 * samples * elements * {"cfg_zero_star": 5, "rescale": 4, "adaptive_projection": 7}[operation]


def flops(samples: int, elements: int, operation: str) -> int:
    """Sums, then application, per element.  CFG-Zero*: 4 and 4; rescale, about its means: 8 and 1; projection: 9 and 4."""
    return samples * elements * {"cfg_zero_star": 8, "rescale": 9, "adaptive_projection": 13}[operation]
