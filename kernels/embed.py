"""The beginning of a network call: the fp32 state cut into patches, projected to tokens, and given positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .compensated import add_product
from .launch_lookup import launch_config
from .shape_class import embed_class
from .triton_runtime import architecture, await_previous, jit, launch, next_power_of_two, tl


def embed_patches(
    x: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, out: Tensor, scale: Tensor | None = None
) -> Tensor:
    """Tokens of the state plus positions, written to every row block of ``out``, which is returned.

    A convolution with stride = kernel = P, on ``x`` times ``scale`` in the dtype of the weight.  x [B, C, H, W] fp32; scale
    [B] fp32; weight [D, C, P, P]; bias [D]; positions [L, D]; out [J, B, L, D].
    """
    if scale is not None:
        x = x * scale[:, None, None, None]
    tokens = F.conv2d(x.to(weight.dtype), weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)  # [B, L, D]
    return torch.add(tokens.expand(len(out), *tokens.shape), positions, out=out)


@jit(do_not_specialize=["height", "width"])
def embed_kernel(
    p_x, p_scale, p_weight, p_bias, p_positions, p_out, height, width, scale_sample, out_block, out_sample,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr, D: tl.constexpr, ROOTS: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (token blocks x column blocks, B).  Sums in fp32, rounded once; the tokens are computed once for all row blocks."""
    await_previous(DEPENDENT)
    K: tl.constexpr = CHANNELS * PATCH * PATCH
    blocks_n: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    sample = tl.program_id(1).to(tl.int64)
    columns = width // PATCH
    tokens = height // PATCH * columns
    o_t = tl.program_id(0) // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_t = o_t < tokens
    m_n = o_n < D
    o_pixel = o_t // columns * PATCH * width + o_t % columns * PATCH
    factor = 1.0
    if SCALED:
        factor = tl.load(p_scale + sample * scale_sample)
    b_y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_lost = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, K, BLOCK_K):
        o_k = first + tl.arange(0, BLOCK_K)
        m_k = o_k < K
        o_in = (o_k // (PATCH * PATCH) * height + o_k // PATCH % PATCH) * width + o_k % PATCH
        p_xt = p_x + sample * (CHANNELS * height * width) + o_pixel[:, None] + o_in[None, :]
        b_x = tl.load(p_xt, mask=m_t[:, None] & m_k[None, :], other=0.0) * factor
        b_w = tl.load(p_weight + (o_n * K)[None, :] + o_k[:, None], mask=m_n[None, :] & m_k[:, None], other=0.0)
        b_y, b_lost = add_product(b_x.to(b_w.dtype), b_w, b_y, b_lost)
    m_y = m_t[:, None] & m_n[None, :]
    b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    o_y = o_t[:, None] * D + o_n[None, :]
    b_y += tl.load(p_positions + o_y, mask=m_y, other=0.0).to(tl.float32)
    p_y = p_out + sample * out_sample + o_y
    for root in tl.static_range(ROOTS):
        tl.store(p_y + root * out_block.to(tl.int64), b_y.to(p_out.dtype.element_ty), mask=m_y)


def embed_patches_triton(
    x: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, out: Tensor, scale: Tensor | None = None
) -> Tensor:
    """:func:`embed_patches` as one kernel; the tokens of ``out`` must be contiguous."""
    (samples, channels, height, width), (dim, inputs, patch, _) = x.shape, weight.shape
    shape = (samples, height // patch * (width // patch), dim)
    if inputs != channels or height % patch or width % patch:
        raise ValueError(f"a state {tuple(x.shape)} cannot be cut into patches for a weight {tuple(weight.shape)}")
    if out.shape[1:] != shape or positions.shape != shape[1:] or out.stride()[2:] != (dim, 1):
        raise ValueError(
            f"tokens and positions must be [J, {', '.join(map(str, shape))}] with contiguous tokens and {list(shape[1:])}, "
            f"got {list(out.shape)} and {list(positions.shape)}"
        )
    config = launch_config("embed", embed_class(samples * shape[1], channels * patch**2), architecture(x.device))
    arguments = {"p_x": x.contiguous(), "p_scale": x if scale is None else scale, "p_weight": weight.contiguous()}
    arguments |= {"p_bias": bias.contiguous(), "p_positions": positions.contiguous(), "p_out": out}
    arguments |= {"height": height, "width": width}
    arguments |= {"scale_sample": 0 if scale is None else scale.stride(0), "out_block": out.stride(0)}
    arguments |= {"out_sample": out.stride(1), "CHANNELS": channels, "PATCH": patch, "D": dim, "ROOTS": len(out)}
    arguments |= {"SCALED": scale is not None, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    arguments |= {"BLOCK_K": min(config.block_k, max(16, next_power_of_two(channels * patch**2)))}
    blocks = -(-shape[1] // config.block_m) * -(-dim // config.block_n)
    launch(embed_kernel, (blocks, samples), arguments, config.warps, config.stages)
    return out


def bytes_moved(samples: int, roots: int, tokens: int, inputs: int, width: int, itemsize: int) -> int:
    """Least traffic: the state in fp32, weight and positions in once, the tokens of every row block out."""
    return 4 * samples * tokens * inputs + itemsize * (inputs * width + (1 + roots * samples) * tokens * width)


def flops(samples: int, tokens: int, inputs: int, width: int) -> int:
    """The product, and bias and position per token and channel."""
    return samples * tokens * width * (2 * inputs + 2)
