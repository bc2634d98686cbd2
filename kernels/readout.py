"""The end of a network call: final norm and modulation, branch combination, projection to latent patches, solver update."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaln import modulated_norm
from .combine import check_memory, count_call, further_rows, packed, solver_update, unpatchify, update_block
from .compensated import add_product
from .launch import ReadoutLaunch
from .launch_lookup import launch_config
from .shape_class import readout_class
from .triton_runtime import architecture, await_previous, dense, jit, launch, next_power_of_two, tl

MAX_OUTPUTS = 256  # numbers in a patch: one tile of the product
LONGEST_SUM = 128  # products in fp32 that one part of a compensated sum adds up


def combine_then_project(
    h: Tensor,
    shift: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    rows: tuple[int, ...],
    weight: Tensor,
    bias: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Project the combination of the branches that share one head; the projection runs once instead of once per branch.

    ``sum_j c_j (W z_j + b) = W (sum_j c_j z_j) + (sum_j c_j) b`` with ``z_j`` the modulated final norm of row block
    ``rows[j]``.  h [J', B, L, D]; shift, scale [J', B, D]; coefficients [B, len(rows)] fp32; weight [O, D]; bias [O]
    -> [B, L, O] fp32, written to ``out`` when given.
    """
    combined = None
    for j, row in enumerate(rows):
        z = modulated_norm(h[row].float(), shift[row, :, None].float(), scale[row, :, None].float())
        z.mul_(coefficients[:, j, None, None])
        combined = z if combined is None else combined.add_(z)
    projected = F.linear(combined.to(weight.dtype), weight).float()
    return torch.addcmul(projected, coefficients.sum(1)[:, None, None], bias.float(), out=out)


def project(h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """Project one branch.  h [B, L, D]; shift, scale [B, D]; weight [O, D]; bias [O] -> [B, L, O] fp32 (``out``)."""
    z = modulated_norm(h.float(), shift[:, None].float(), scale[:, None].float())
    projected = F.linear(z.to(weight.dtype), weight, bias)
    return projected.float() if out is None else out.copy_(projected)


def readout_update(
    x: Tensor,
    history: Tensor,
    row: Tensor,
    noise: Tensor | None,
    h: Tensor,
    shift: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    rows: tuple[int, ...],
    weight: Tensor,
    bias: Tensor,
    patch: int,
    call: Tensor | None = None,
    earlier: Tensor | None = None,
) -> None:
    """:func:`combine_then_project`, :func:`unpatchify` and the solver update of ``x`` and ``history``, in place.

    For calls whose branches all share one head and combine early.  x, history, noise [B, C, H, W] fp32; row [B, 6 + E] and
    earlier [B, E, C, H, W] as in :func:`solver_update`; the counters ``call`` [B] int64 go on by one.
    """
    output = unpatchify(combine_then_project(h, shift, scale, coefficients, rows, weight, bias), patch, *x.shape[-2:])
    solver_update(x, output, history, noise, row, call, earlier)


@jit()
def update_patches(
    p_x, p_history, p_noise, p_earlier, p_row, b_y, sample, o_t, o_o, m_y, row_sample, row_column, height, width,
    PATCH: tl.constexpr, CHANNELS: tl.constexpr, NOISE: tl.constexpr, EARLIER: tl.constexpr,
):  # fmt: skip
    """The solver update of the pixels that a block of patches covers."""
    columns = width // PATCH
    o_c = o_o % CHANNELS
    o_y = (o_t // columns * PATCH)[:, None] + (o_o // (PATCH * CHANNELS))[None, :]
    o_x = (o_t % columns * PATCH)[:, None] + (o_o // CHANNELS % PATCH)[None, :]
    o_pixel = sample * (CHANNELS * height * width) + (o_c[None, :] * height + o_y) * width + o_x
    elements = CHANNELS * height * width
    update_block(
        p_x + o_pixel, p_history + o_pixel, p_noise + o_pixel, p_earlier + sample * ((EARLIER - 1) * elements) + o_pixel,
        p_row + sample * row_sample, b_y, m_y, elements, row_column, NOISE, EARLIER,
    )  # fmt: skip


@jit(do_not_specialize=["tokens", "height", "width", "coefficient_branch"])
def readout_kernel(
    p_h, p_shift, p_scale, p_coefficients, p_weight, p_bias, p_out, p_x, p_history, p_noise, p_earlier, p_row, p_call,
    tokens, h_block, h_sample, h_token, shift_block, shift_sample, scale_block, scale_sample,
    coefficient_sample, coefficient_branch, row_sample, row_column, call_step, height, width, eps,
    D: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, BRANCHES: tl.constexpr, PATCH: tl.constexpr,
    COMBINE: tl.constexpr, UPDATE: tl.constexpr, NOISE: tl.constexpr, EARLIER: tl.constexpr, COUNT: tl.constexpr,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_O: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (token blocks, B).  Reads the hidden state twice (the second time from L2): statistics by merging two-pass
    moments of ``WIDTH`` channels, then norm, modulation, combination in fp32 and the product."""
    await_previous(DEPENDENT)
    sample = tl.program_id(1).to(tl.int64)
    o_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    o_j = tl.arange(0, BLOCK_J)
    o_d = tl.arange(0, WIDTH)
    o_o = tl.arange(0, BLOCK_O)
    m_j = o_j < BRANCHES
    block = (ROWS >> (8 * o_j).to(tl.int64)) & 255
    o_token = tl.minimum(o_t, tokens - 1).to(tl.int64) * h_token  # beyond the end: the last token again, not stored
    p_hj = p_h + (block * h_block + sample * h_sample)[None, :, None] + o_token[:, None, None]
    b_mean = tl.zeros([TOKENS, BLOCK_J], tl.float32)
    b_squares = tl.zeros([TOKENS, BLOCK_J], tl.float32)
    for first in range(0, D, WIDTH):
        m_d = first + o_d < D
        b_h = tl.load(p_hj + (first + o_d)[None, None, :], mask=m_j[None, :, None] & m_d[None, None, :], other=0.0)
        b_h = b_h.to(tl.float32)
        count = tl.minimum(WIDTH, D - first).to(tl.float32)
        b_part = tl.sum(b_h, 2) / count
        b_centred = tl.where(m_d[None, None, :], b_h - b_part[:, :, None], 0.0)
        b_delta = b_part - b_mean
        share = count / (count + first)
        b_squares += tl.sum(b_centred * b_centred, 2) + b_delta * b_delta * (share * first)
        b_mean += b_delta * share
    b_rstd = tl.rsqrt(b_squares / D + eps)
    b_c = tl.where(m_j, 1.0, 0.0)
    if COMBINE:
        p_c = p_coefficients + sample * coefficient_sample + o_j * coefficient_branch
        b_c = tl.load(p_c, mask=m_j, other=0.0).to(tl.float32)
    p_shift += (block * shift_block + sample * shift_sample)[:, None]
    p_scale += (block * scale_block + sample * scale_sample)[:, None]
    b_bias = tl.load(p_bias + o_o, mask=o_o < OUTPUTS, other=0.0).to(tl.float32)
    b_y = tl.zeros([TOKENS, BLOCK_O], tl.float32) + (b_bias * tl.sum(b_c, 0))[None, :]
    b_lost = tl.zeros([TOKENS, BLOCK_O], tl.float32)
    for first in range(0, D, WIDTH):
        m_d = first + o_d < D
        m_jd = m_j[:, None] & m_d[None, :]
        b_h = tl.load(p_hj + (first + o_d)[None, None, :], mask=m_jd[None, :, :], other=0.0).to(tl.float32)
        b_shift = tl.load(p_shift + (first + o_d)[None, :], mask=m_jd, other=0.0).to(tl.float32)
        b_scale = tl.load(p_scale + (first + o_d)[None, :], mask=m_jd, other=0.0).to(tl.float32) + 1.0
        b_z = (b_h - b_mean[:, :, None]) * b_rstd[:, :, None] * b_scale[None, :, :] + b_shift[None, :, :]
        b_z = tl.sum(b_z * b_c[None, :, None], 1)
        m_w = m_d[:, None] & (o_o < OUTPUTS)[None, :]
        b_w = tl.load(p_weight + (o_o * D)[None, :] + (first + o_d)[:, None], mask=m_w, other=0.0)
        b_y, b_lost = add_product(b_z.to(b_w.dtype), b_w, b_y, b_lost)
    m_y = (o_t < tokens)[:, None] & (o_o < OUTPUTS)[None, :]
    if COUNT:
        count_call(p_call, sample, call_step)
    if UPDATE:
        update_patches(
            p_x, p_history, p_noise, p_earlier, p_row, b_y, sample, o_t, o_o, m_y, row_sample, row_column, height, width,
            PATCH, OUTPUTS // (PATCH * PATCH), NOISE, EARLIER,
        )  # fmt: skip
    else:
        o_y = ((sample * tokens + o_t) * OUTPUTS)[:, None] + o_o[None, :]
        tl.store(p_out + o_y, b_y, mask=m_y)


def _arguments(h: Tensor, shift: Tensor, scale: Tensor, rows: tuple[int, ...], weight: Tensor, bias: Tensor) -> dict:
    """What every launch of the kernel shares; h [J', B, L, D]."""
    constant = packed(rows, len(h))
    if weight.shape[1] != h.shape[3] or shift.shape[1:] != (h.shape[1], h.shape[3]) or shift.shape != scale.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (h, shift, scale, weight))
        raise ValueError(f"state, shift, scale and weight do not fit: {shapes}")
    if len(weight) > MAX_OUTPUTS:
        raise ValueError(f"the readout kernel takes patches of at most {MAX_OUTPUTS} numbers, got {len(weight)}")
    h, shift, scale = dense(h), dense(shift), dense(scale)
    config = _config(h, weight)
    width = min(config.width, LONGEST_SUM) if weight.dtype == torch.float32 else config.width
    arguments = {"p_h": h, "p_shift": shift, "p_scale": scale, "p_coefficients": h, "p_weight": weight.contiguous()}
    arguments |= {"p_bias": bias.contiguous(), "p_out": h, "p_x": h, "p_history": h, "p_noise": h, "p_row": h}
    arguments |= {"p_earlier": h, "EARLIER": 0, "p_call": h, "call_step": 0, "COUNT": False}
    arguments |= {"tokens": h.shape[2], "h_block": h.stride(0), "h_sample": h.stride(1), "h_token": h.stride(2)}
    arguments |= {"shift_block": shift.stride(0), "shift_sample": shift.stride(1), "scale_block": scale.stride(0)}
    arguments |= {"scale_sample": scale.stride(1), "coefficient_sample": 0, "coefficient_branch": 0, "row_sample": 0}
    arguments |= {"row_column": 0, "height": 0, "width": 0, "eps": 1e-6, "D": h.shape[3], "OUTPUTS": len(weight)}
    arguments |= {"ROWS": constant, "BRANCHES": len(rows), "PATCH": 1}
    arguments |= {"COMBINE": False, "UPDATE": False, "NOISE": False, "TOKENS": config.tokens, "WIDTH": width}
    return arguments | {"BLOCK_J": next_power_of_two(len(rows)), "BLOCK_O": max(16, next_power_of_two(len(weight)))}


def _config(h: Tensor, weight: Tensor) -> ReadoutLaunch:
    return launch_config("readout", readout_class(h.shape[1] * h.shape[2], len(weight)), architecture(h.device))


def _launch(h: Tensor, weight: Tensor, arguments: dict) -> None:
    config = _config(h, weight)
    launch(readout_kernel, (-(-h.shape[2] // config.tokens), h.shape[1]), arguments, config.warps, config.stages)


def _combination(coefficients: Tensor, h: Tensor, rows: tuple[int, ...]) -> dict:
    if coefficients.shape != (h.shape[1], len(rows)):
        raise ValueError(f"coefficients must be {(h.shape[1], len(rows))}, got {tuple(coefficients.shape)}")
    strides = {"coefficient_sample": coefficients.stride(0), "coefficient_branch": coefficients.stride(1)}
    return strides | {"p_coefficients": coefficients, "COMBINE": True}


def _patches(h: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Where the kernel writes the patches [B, L, O] fp32 of a state [J', B, L, D]: contiguous."""
    shape = (h.shape[1], h.shape[2], len(weight))
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=h.device)
    if out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {shape} torch.float32, got {tuple(out.shape)} {out.dtype}")
    return out


def combine_then_project_triton(
    h: Tensor,
    shift: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    rows: tuple[int, ...],
    weight: Tensor,
    bias: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`combine_then_project` as one kernel; the product is accumulated and returned in fp32."""
    arguments = _arguments(h, shift, scale, rows, weight, bias) | _combination(coefficients, h, rows)
    out = _patches(h, weight, out)
    _launch(h, weight, arguments | {"p_out": out})
    return out


def project_triton(h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """:func:`project` as one kernel."""
    arguments = _arguments(h[None], shift[None], scale[None], (0,), weight, bias)
    out = _patches(h[None], weight, out)
    _launch(h[None], weight, arguments | {"p_out": out})
    return out


def readout_update_triton(
    x: Tensor,
    history: Tensor,
    row: Tensor,
    noise: Tensor | None,
    h: Tensor,
    shift: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    rows: tuple[int, ...],
    weight: Tensor,
    bias: Tensor,
    patch: int,
    call: Tensor | None = None,
    earlier: Tensor | None = None,
) -> None:
    """:func:`readout_update` as one kernel; ``x``, ``history`` and ``earlier`` must be contiguous."""
    height, width = x.shape[-2:]
    further = further_rows(earlier, row)
    check_memory(x, history, earlier)
    if x[0].numel() != h.shape[2] * len(weight) or len(x) != h.shape[1] or height % patch or width % patch:
        raise ValueError(f"a state {tuple(x.shape)} does not consist of {h.shape[2]} patches of {len(weight)} numbers")
    arguments = _arguments(h, shift, scale, rows, weight, bias) | _combination(coefficients, h, rows)
    arguments |= {"p_x": x, "p_history": history, "p_row": row, "row_sample": row.stride(0), "row_column": row.stride(1)}
    arguments |= {"p_noise": h if noise is None else noise.contiguous(), "NOISE": noise is not None, "UPDATE": True}
    if earlier is not None:
        arguments |= {"p_earlier": earlier, "EARLIER": further}
    if call is not None:
        arguments |= {"p_call": call, "call_step": call.stride(0), "COUNT": True}
    _launch(h, weight, arguments | {"height": height, "width": width, "PATCH": patch})


def bytes_moved(
    samples: int, branches: int, tokens: int, width: int, outputs: int, itemsize: int, update: bool, earlier: int = 0
) -> int:
    """Least traffic: hidden state, vectors and weight in once; patches out in fp32, or state and history in and out.

    ``earlier`` counts the rows before the previous one, which an update moves on.
    """
    read = itemsize * (samples * branches * (tokens + 2) * width + outputs * width)
    return read + 4 * samples * tokens * outputs * (4 + 2 * earlier if update else 1)


def flops(samples: int, branches: int, tokens: int, width: int, outputs: int) -> int:
    """Norm 5, modulation 2 and combination 2 per hidden element and branch; one product."""
    return samples * tokens * width * (9 * branches + 2 * outputs)
