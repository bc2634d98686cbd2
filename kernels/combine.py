"""Combination of branches, and the solver update on the fp32 state, which ends a call."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch_lookup import launch_config
from .triton_runtime import architecture, await_previous, dense, jit, launch, tl

MAX_BRANCHES, MAX_ROW_BLOCKS = 7, 256  # row blocks are packed into one 64-bit constant, eight bits each


def solver_update(
    x: Tensor,
    output: Tensor,
    history: Tensor,
    noise: Tensor | None,
    row: Tensor,
    call: Tensor | None = None,
    earlier: Tensor | None = None,
) -> None:
    """One solver row per sample, in place; then the counters ``call`` [B] int64 go on by one.

    ``x' = a x + b o + c h + d z + sum_k g_k h_k`` and ``h' = e x + f o`` with ``o`` the guided network output, ``h`` what the
    previous row left behind, ``h_k`` what was left 1 + k rows before that one, and ``z`` unit noise.  x, output, history, noise
    [B, C, H, W] fp32; earlier [B, E, C, H, W] fp32, ``h_0`` and so on, for solvers that look further back than one row;
    row [B, 6 + E] = (a, b, c, d, e, f, g_0, ...) fp32.
    """
    a, b, c, d, e, f, *further = (row[:, i, None, None, None] for i in range(6 + further_rows(earlier, row)))
    updated = a * x + b * output + c * history
    if noise is not None:
        updated += d * noise
    if earlier is not None:
        for g, before in zip(further, earlier.unbind(1), strict=True):
            updated += g * before
        earlier.copy_(torch.cat([history[:, None], earlier[:, :-1]], dim=1))
    torch.add(e * x, f * output, out=history)
    x.copy_(updated)
    if call is not None:
        call += 1


def further_rows(earlier: Tensor | None, row: Tensor) -> int:
    """How many rows before the previous one a row weighs.  Raises ``ValueError`` unless ``earlier`` holds as many."""
    held = 0 if earlier is None else earlier.shape[1]
    if row.shape[1] != 6 + held:
        raise ValueError(f"a solver row must have {6 + held} numbers where {held} earlier rows are held, got {row.shape[1]}")
    return held


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """[B, L, P * P * C] with (p, q, c) order inside a patch -> [B, C, height, width]."""
    rows, columns = height // patch, width // patch
    grid = patches.reshape(patches.shape[0], rows, columns, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, height, width)


def combine_branches(
    outputs: Tensor, coefficients: Tensor | None, rows: tuple[int, ...], patch: int, height: int, width: int
) -> Tensor:
    """``sum_j c_j o_j`` over branches that are patches still -> [B, C, height, width] fp32.

    outputs [J', B, L, P P C] of any float dtype, branch ``j`` in row block ``rows[j]``; coefficients [B, len(rows)] fp32,
    [B, len(rows), 1], or [B, len(rows), C] where a rule treats channels differently; None adds the branches up.
    """
    if coefficients is not None:
        check_coefficients(coefficients, outputs.shape[1], len(rows), outputs.shape[-1] // patch**2)
    total = None
    for j, row in enumerate(rows):
        part = outputs[row].unflatten(-1, (patch * patch, -1)).float()  # [B, L, P P, C]
        if coefficients is not None:
            part = part * coefficients[:, j].reshape(len(part), 1, 1, -1)
        total = part if total is None else total + part
    return unpatchify(total, patch, height, width)


def check_coefficients(coefficients: Tensor, samples: int, branches: int, channels: int) -> None:
    """Raise ``ValueError`` unless there is one number for each sample and branch, or one for each of their channels."""
    shape = samples, branches
    if coefficients.shape not in (shape, (*shape, 1), (*shape, channels)):
        raise ValueError(
            f"coefficients must be {shape}, {(*shape, 1)} or {(*shape, channels)}, got {tuple(coefficients.shape)}"
        )


def packed(rows: tuple[int, ...], blocks: int) -> int:
    """Row blocks as one constant of a kernel, eight bits each.  Raises ``ValueError`` for one that ``blocks`` do not hold."""
    if not 1 <= len(rows) <= MAX_BRANCHES or not all(0 <= row < min(blocks, MAX_ROW_BLOCKS) for row in rows):
        raise ValueError(f"rows must name 1 to {MAX_BRANCHES} of {blocks} row blocks, got {rows}")
    return sum(row << (8 * j) for j, row in enumerate(rows))


@jit()
def count_call(p_call, sample, call_step):
    """The counter of a sample goes on: by one program of the kernel that ends a call, and nothing in it reads the counter."""
    if tl.program_id(0) == 0:
        tl.store(p_call + sample * call_step, tl.load(p_call + sample * call_step) + 1)


@jit()
def update_block(
    p_x, p_history, p_noise, p_earlier, p_row, b_o, m_x, elements, row_column, NOISE: tl.constexpr, EARLIER: tl.constexpr
):  # fmt: skip
    """The solver update of a block of elements whose output is ``b_o``.  The pointers are those of its elements, in
    ``p_earlier`` of the first earlier row, which is ``elements`` before the next, and ``p_row`` that of the sample's row.

    In a small block several threads hold the same element, and each reads it for itself.  So no thread may write what another
    has still to read: all wait for each other in between.
    """
    b_x = tl.load(p_x, mask=m_x)
    b_h = tl.load(p_history, mask=m_x)
    b_new = tl.load(p_row).to(tl.float32) * b_x + tl.load(p_row + row_column).to(tl.float32) * b_o
    b_new += tl.load(p_row + 2 * row_column).to(tl.float32) * b_h
    if NOISE:
        b_new += tl.load(p_row + 3 * row_column).to(tl.float32) * tl.load(p_noise, mask=m_x)
    for k in tl.static_range(EARLIER):
        b_before = tl.load(p_earlier + k * elements, mask=m_x)
        b_new += tl.load(p_row + (6 + k) * row_column).to(tl.float32) * b_before
        tl.debug_barrier()
        tl.store(p_earlier + k * elements, b_h, mask=m_x)
        b_h = b_before
    b_kept = tl.load(p_row + 4 * row_column).to(tl.float32) * b_x + tl.load(p_row + 5 * row_column).to(tl.float32) * b_o
    tl.debug_barrier()
    tl.store(p_history, b_kept, mask=m_x)
    tl.store(p_x, b_new, mask=m_x)


@jit(do_not_specialize=["elements"])
def solver_kernel(
    p_x, p_output, p_history, p_noise, p_earlier, p_row, p_call, elements, row_sample, row_column, call_step,
    NOISE: tl.constexpr, EARLIER: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (element blocks, B); all operands are contiguous."""
    await_previous(DEPENDENT)
    sample = tl.program_id(1).to(tl.int64)
    if COUNT:
        count_call(p_call, sample, call_step)
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < elements
    p_earlier += sample * (EARLIER * elements) + o_x
    o_x = sample * elements + o_x
    update_block(
        p_x + o_x, p_history + o_x, p_noise + o_x, p_earlier, p_row + sample * row_sample,
        tl.load(p_output + o_x, mask=m_x), m_x, elements, row_column, NOISE, EARLIER,
    )  # fmt: skip


def check_memory(x: Tensor, history: Tensor, earlier: Tensor | None) -> None:
    """Raise ``ValueError`` for what a kernel could not write in place."""
    if not (x.is_contiguous() and history.is_contiguous() and (earlier is None or earlier.is_contiguous())):
        raise ValueError("the state and the history must be contiguous to be updated in place")


def solver_update_triton(
    x: Tensor,
    output: Tensor,
    history: Tensor,
    noise: Tensor | None,
    row: Tensor,
    call: Tensor | None = None,
    earlier: Tensor | None = None,
) -> None:
    """:func:`solver_update` as one kernel; ``x``, ``history`` and ``earlier`` must be contiguous."""
    further = further_rows(earlier, row)
    check_memory(x, history, earlier)
    if len(x) == 0:
        return
    config = launch_config("solver", "any", architecture(x.device))
    arguments = {"p_x": x, "p_output": output.contiguous(), "p_history": history}
    arguments |= {"p_noise": x if noise is None else noise.contiguous(), "p_row": row, "elements": x[0].numel()}
    arguments |= {"row_sample": row.stride(0), "row_column": row.stride(1), "NOISE": noise is not None, "BLOCK": config.block}
    arguments |= {"p_call": row if call is None else call, "call_step": 0 if call is None else call.stride(0)}
    arguments |= {"COUNT": call is not None, "p_earlier": x if earlier is None else earlier, "EARLIER": further}
    launch(solver_kernel, (-(-x[0].numel() // config.block), len(x)), arguments, config.warps)


@jit(do_not_specialize=["height", "width"])
def branches_kernel(
    p_outputs, p_coefficients, p_out, height, width, block_stride, sample_stride, token_stride,
    coefficient_sample, coefficient_branch, coefficient_channel,
    ROWS: tl.constexpr, BRANCHES: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    COMBINE: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (blocks of pixels, B); every pixel finds its place in the patches."""
    await_previous(DEPENDENT)
    sample = tl.program_id(1).to(tl.int64)
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < CHANNELS * height * width
    column = o_x % width
    row = o_x // width % height
    channel = o_x // (width * height)
    token = row // PATCH * (width // PATCH) + column // PATCH
    p_x = p_outputs + sample * sample_stride + token.to(tl.int64) * token_stride
    p_x += (row % PATCH * PATCH + column % PATCH) * CHANNELS + channel
    p_c = p_coefficients + sample * coefficient_sample + channel * coefficient_channel
    b_x = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(BRANCHES):
        o_block = tl.full([], (ROWS >> (8 * j)) & 255, tl.int64) * block_stride
        b_o = tl.load(p_x + o_block, mask=m_x).to(tl.float32)
        if COMBINE:
            b_o *= tl.load(p_c + j * coefficient_branch, mask=m_x)
        b_x += b_o
    tl.store(p_out + sample * (CHANNELS * height * width) + o_x, b_x, mask=m_x)


def combine_branches_triton(
    outputs: Tensor, coefficients: Tensor | None, rows: tuple[int, ...], patch: int, height: int, width: int
) -> Tensor:
    """:func:`combine_branches` as one kernel."""
    batch, tokens, numbers = outputs.shape[1:]
    channels = numbers // patch**2
    if tokens * patch**2 != height * width or height % patch or width % patch or numbers % patch**2:
        raise ValueError(f"{tokens} patches of {numbers} numbers do not fill {height} x {width} pixels in patches of {patch}")
    outputs = dense(outputs)
    out = torch.empty(batch, channels, height, width, dtype=torch.float32, device=outputs.device)
    config = launch_config("solver", "any", architecture(outputs.device))
    arguments = {"p_outputs": outputs, "p_coefficients": outputs, "p_out": out, "height": height, "width": width}
    arguments |= {"block_stride": outputs.stride(0), "sample_stride": outputs.stride(1), "token_stride": outputs.stride(2)}
    arguments |= {"coefficient_sample": 0, "coefficient_branch": 0, "coefficient_channel": 0, "COMBINE": False}
    if coefficients is not None:
        check_coefficients(coefficients, batch, len(rows), channels)
        strides = (*(coefficients.squeeze(2) if coefficients.shape[2:] == (1,) else coefficients).stride(), 0)[:3]
        arguments |= {"coefficient_sample": strides[0], "coefficient_branch": strides[1], "coefficient_channel": strides[2]}
        arguments |= {"p_coefficients": coefficients, "COMBINE": True}
    arguments |= {"ROWS": packed(rows, len(outputs)), "BRANCHES": len(rows), "PATCH": patch, "CHANNELS": channels}
    arguments |= {"BLOCK": config.block}
    launch(branches_kernel, (-(-channels * height * width // config.block), batch), arguments, config.warps)
    return out


def combine_bytes_moved(samples: int, branches: int, elements: int, itemsize: int) -> int:
    """The outputs of the branches in, their combination out in fp32."""
    return samples * elements * (branches * itemsize + 4)


def combine_flops(samples: int, branches: int, elements: int) -> int:
    """A product and a sum per branch and element."""
    return 2 * samples * branches * elements


def bytes_moved(samples: int, elements: int, noise: bool, earlier: int = 0) -> int:
    """Of the solver update: state, output, history in (and noise), state and history out, in fp32; earlier rows both ways."""
    return 4 * samples * elements * (5 + noise + 2 * earlier)


def flops(samples: int, elements: int, noise: bool, earlier: int = 0) -> int:
    """Of the solver update: three products and two sums for the state, two and one for the history, two for the noise.

    Two for every earlier row.
    """
    return samples * elements * (8 + 2 * noise + 2 * earlier)
