"""What corrections of a guided prediction are made of: inner products of a few states, and their linear combinations.

A correction such as adaptive projection or a rescaled deviation looks at norms and angles within each sample alone, and its
result is a sum of the same states with other factors.  So one pass over the states finds all sums that any correction needs
(:func:`moments`), the correction itself is arithmetic on a few numbers per sample (:mod:`segue.engine.running.vectors`),
and one pass writes the result (:func:`linear_combination`).

States are [B, C, H, W] fp32.  ``relative`` names those that stand for their difference from the first, ``x_0 - x_k``: a
difference of near states is taken before its products are, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launch_lookup import launch_config
from .triton_runtime import architecture, await_previous, jit, launch, next_power_of_two, tl

MAX_STATES = 8


def moments(relative: tuple[int, ...], *states: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample, the means [B, K] of K states and their centred products [B, K, K], both fp32.

    The products are ``sum_e (x_i - mean_i) (x_j - mean_j)`` over the E elements of a sample, so that a deviation far below
    its mean is exact; an inner product is that plus ``E mean_i mean_j``.
    """
    found = torch.stack(_basis(states, relative), dim=1).flatten(2)  # [B, K, E]
    mean = found.mean(2)
    centred = found - mean[:, :, None]
    return mean, torch.stack([(centred * own[:, None]).sum(2) for own in centred.unbind(1)], dim=1)


def linear_combination(relative: tuple[int, ...], coefficients: Tensor, *states: Tensor) -> Tensor:
    """``sum_k a_ok x_k`` for each of O outputs.  coefficients [B, O, K] fp32 -> [O, B, C, H, W] fp32."""
    found = _basis(states, relative)
    factors = coefficients.permute(1, 2, 0)[..., None, None, None]  # [O, K, B, 1, 1, 1]
    outputs = []
    for own in factors:
        total = own[0] * found[0]
        for factor, state in zip(own[1:], found[1:], strict=True):
            total = total + factor * state
        outputs.append(total)
    return torch.stack(outputs)


def _basis(states: Sequence[Tensor], relative: tuple[int, ...]) -> list[Tensor]:
    return [states[0] - state if k in relative else state for k, state in enumerate(states)]


@jit()
def load_states(p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7, o_k, o_x, m_x, COUNT: tl.constexpr, RELATIVE: tl.constexpr):
    """A block of every state, [K', BLOCK], zero beyond the COUNT-th and where ``m_x`` is false."""
    p_x = tl.where(o_k[:, None] == 1, p_1 + o_x[None, :], p_0 + o_x[None, :])
    p_x = tl.where(o_k[:, None] == 2, p_2 + o_x[None, :], p_x)
    p_x = tl.where(o_k[:, None] == 3, p_3 + o_x[None, :], p_x)
    p_x = tl.where(o_k[:, None] == 4, p_4 + o_x[None, :], p_x)
    p_x = tl.where(o_k[:, None] == 5, p_5 + o_x[None, :], p_x)
    p_x = tl.where(o_k[:, None] == 6, p_6 + o_x[None, :], p_x)
    p_x = tl.where(o_k[:, None] == 7, p_7 + o_x[None, :], p_x)
    b_x = tl.load(p_x, mask=m_x[None, :] & (o_k < COUNT)[:, None], other=0.0)
    if RELATIVE > 0:
        b_first = tl.load(p_0 + o_x, mask=m_x, other=0.0)
        b_x = tl.where((((RELATIVE >> o_k) & 1) == 1)[:, None], b_first[None, :] - b_x, b_x)
    return b_x


@jit(do_not_specialize=["elements", "blocks"])
def block_moments_kernel(
    p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7, p_part, elements, blocks,
    COUNT: tl.constexpr, RELATIVE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (blocks, B).  Of each block of elements K sums, then K x K products about the block's own means, two-pass."""
    await_previous(DEPENDENT)
    block = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    o_k = tl.arange(0, K)
    o_e = block * BLOCK + tl.arange(0, BLOCK)
    m_e = o_e < elements
    b_x = load_states(p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7, o_k, sample * elements + o_e, m_e, COUNT, RELATIVE)
    count = tl.minimum(BLOCK, elements - block * BLOCK).to(tl.float32)
    b_sum = tl.sum(b_x, 1)
    p_part += (sample * blocks + block) * (K + K * K)
    tl.store(p_part + o_k, b_sum)
    b_x = tl.where(m_e[None, :], b_x - (b_sum / count)[:, None], 0.0)
    for k in tl.static_range(COUNT):
        b_own = tl.sum(tl.where((o_k == k)[:, None], b_x, 0.0), 0)
        tl.store(p_part + K + k * K + o_k, tl.sum(b_x * b_own[None, :], 1))


@jit(do_not_specialize=["elements", "blocks"])
def merge_moments_kernel(
    p_part, p_mean, p_product, elements, blocks,
    COUNT: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (COUNT, B).  The mean of a state, and its products with all, from those of the blocks about their own means."""
    await_previous(DEPENDENT)
    own = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    o_k = tl.arange(0, K)
    o_b = tl.arange(0, BLOCKS)
    m_b = o_b < blocks
    p_block = p_part + (sample * blocks + o_b) * (K + K * K)
    b_count = tl.where(m_b, tl.minimum(elements - o_b * BLOCK, BLOCK), 0).to(tl.float32)
    b_sum = tl.load(p_block[None, :] + o_k[:, None], mask=m_b[None, :], other=0.0)
    b_mean = tl.sum(b_sum, 1) / elements
    b_shift = tl.where(m_b[None, :], b_sum / tl.maximum(b_count, 1.0)[None, :] - b_mean[:, None], 0.0)
    b_own = tl.sum(tl.where((o_k == own)[:, None], b_shift, 0.0), 0)
    b_product = tl.load(p_block[None, :] + K + own * K + o_k[:, None], mask=m_b[None, :], other=0.0)
    b_product = tl.sum(b_product + b_shift * (b_own * b_count)[None, :], 1)
    tl.store(p_product + (sample * COUNT + own) * COUNT + o_k, b_product, mask=o_k < COUNT)
    tl.store(p_mean + sample * COUNT + o_k, b_mean, mask=o_k == own)


@jit(do_not_specialize=["elements", "samples"])
def linear_combination_kernel(
    p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7, p_a, p_out, elements, samples,
    COUNT: tl.constexpr, RELATIVE: tl.constexpr, K: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (blocks, B)."""
    await_previous(DEPENDENT)
    sample = tl.program_id(1).to(tl.int64)
    o_k = tl.arange(0, K)
    o_e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_e = o_e < elements
    o_x = sample * elements + o_e
    b_x = load_states(p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7, o_k, o_x, m_e, COUNT, RELATIVE)
    for output in tl.static_range(OUTPUTS):
        b_a = tl.load(p_a + (sample * OUTPUTS + output) * COUNT + o_k, mask=o_k < COUNT, other=0.0)
        tl.store(p_out + (output * samples + sample) * elements + o_e, tl.sum(b_a[:, None] * b_x, 0), mask=m_e)


def _arguments(relative: tuple[int, ...], states: Sequence[Tensor]) -> dict:
    """What the launches over the states share."""
    first = states[0]
    if len(states) > MAX_STATES or any(state.shape != first.shape for state in states):
        shapes = ", ".join(str(tuple(state.shape)) for state in states)
        raise ValueError(f"moments are of 1 to {MAX_STATES} states of one shape, got {shapes}")
    if not all(0 < k < len(states) for k in relative):
        raise ValueError(f"states 1 to {len(states) - 1} may be relative to the first, got {relative}")
    dense = [state.contiguous() for state in states]
    pointers = {f"p_{k}": dense[k if k < len(dense) else 0] for k in range(MAX_STATES)}
    sizes = {"elements": first[0].numel(), "COUNT": len(states), "RELATIVE": sum(1 << k for k in relative)}
    return pointers | sizes | {"K": next_power_of_two(max(2, len(states)))}


def moments_triton(relative: tuple[int, ...], *states: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`moments` as two kernels: of blocks, then of what these left; in a fixed order."""
    shared, first = _arguments(relative, states), states[0]
    samples, count, elements = len(first), len(states), shared["elements"]
    mean = torch.empty(samples, count, dtype=torch.float32, device=first.device)
    product = torch.empty(samples, count, count, dtype=torch.float32, device=first.device)
    if not first.numel():
        return mean.zero_(), product.zero_()
    config = launch_config("gram", "any", architecture(first.device))
    blocks, width = -(-elements // config.block), shared["K"]
    part = torch.empty(samples, blocks, width + width * width, dtype=torch.float32, device=first.device)
    sizes = {"blocks": blocks, "BLOCK": config.block}
    launch(block_moments_kernel, (blocks, samples), shared | sizes | {"p_part": part}, config.warps)
    merged = {"p_part": part, "p_mean": mean, "p_product": product, "elements": elements, "COUNT": count, "K": width}
    launch(merge_moments_kernel, (count, samples), merged | sizes | {"BLOCKS": next_power_of_two(blocks)}, 4)
    return mean, product


def linear_combination_triton(relative: tuple[int, ...], coefficients: Tensor, *states: Tensor) -> Tensor:
    """:func:`linear_combination` as one kernel."""
    shared, first = _arguments(relative, states), states[0]
    samples, outputs, count = coefficients.shape
    if (samples, count) != (len(first), len(states)):
        wanted = len(first), outputs, len(states)
        raise ValueError(f"coefficients must be {wanted}, got {tuple(coefficients.shape)}")
    out = torch.empty(outputs, *first.shape, dtype=torch.float32, device=first.device)
    if out.numel():
        config = launch_config("gram", "any", architecture(first.device))
        own = {"p_a": coefficients.contiguous(), "p_out": out, "samples": samples, "OUTPUTS": outputs, "BLOCK": config.block}
        launch(linear_combination_kernel, (-(-shared["elements"] // config.block), samples), shared | own, config.warps)
    return out


def bytes_moved(samples: int, elements: int, states: int, outputs: int = 0) -> int:
    """Every state in, every output out, in fp32; the numbers per sample are not counted."""
    return 4 * samples * elements * (states + outputs)


def flops(samples: int, elements: int, states: int, outputs: int = 0) -> int:
    """Per element: means and centring 2 a state, products 2 a pair; or 2 a state and output."""
    return samples * elements * (2 * states * outputs if outputs else 2 * states + 2 * states * states)
