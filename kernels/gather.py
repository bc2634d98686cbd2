"""Rows of tables on the device, found by the per-sample counter: numbers of the call, and the modulation of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch_lookup import launch_config
from .triton_runtime import architecture, await_previous, dense, jit, launch, next_power_of_two, tl


def gather_rows(table: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows of a device table.  table [N, W] or [N], index [R] int64 -> [R, W] or [R], written to ``out`` when given.

    Of tables [R, N, W], one for each index, ``out[r] = table[r, index[r]]``.
    """
    if table.dim() < 3:
        return torch.index_select(table, 0, index, out=out)
    found = torch.gather(table, 1, index[:, None, None].expand(-1, 1, table.shape[2]))[:, 0]
    return found if out is None else out.copy_(found)


def gather_modulation(
    table: Tensor,
    times: Tensor,
    call: Tensor,
    condition: Tensor,
    conditions: int,
    out: Tensor,
    held: Tensor | None = None,
) -> Tensor:
    """The modulation of every row at its sample's call, ``table[times[call] * conditions + condition]``, into ``out``.

    table [T * conditions, W]; times [N], or [B, N] where samples have their own, the time index of every call; call [B];
    condition [J, B] of every row block and sample, int64; out [J * B, W], returned.

    With ``held`` [T * conditions] int64 the table is a ring over times, ``table[times[call] % T * conditions + condition]``;
    a row of another time than that one's ``held`` is NaN.
    """
    time = times[call] if times.dim() == 1 else times.gather(1, call[:, None])[:, 0]
    place = time if held is None else time % (len(table) // conditions)
    index = torch.add(condition, place, alpha=conditions).flatten()
    found = torch.index_select(table, 0, index, out=out)
    if held is None:
        return found
    missing = held[index] != time.repeat(len(condition))
    return found.masked_fill_(missing[:, None], float("nan"))


@jit()
def copy_row(p_table, p_out, index, entries, table_row, W: tl.constexpr, BLOCK: tl.constexpr, FLOATING: tl.constexpr):
    """One block of columns of a table row; one beyond the table reads as NaN (-1 of integers), not as foreign memory."""
    o_w = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_w = o_w < W
    index += tl.zeros([BLOCK], tl.int64)
    m_x = m_w & (index >= 0) & (index < entries)
    if FLOATING:
        b_x = tl.load(p_table + index * table_row + o_w, mask=m_x, other=float("nan"))
    else:
        b_x = tl.load(p_table + index * table_row + o_w, mask=m_x, other=-1)
    tl.store(p_out + o_w, b_x, mask=m_w)


@jit(do_not_specialize=["entries", "table_own"])
def gather_kernel(
    p_table,
    p_index,
    p_out,
    entries,
    table_own,
    table_row,
    index_step,
    out_row,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    FLOATING: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Grid (column blocks, R).  ``table_own`` leads from the table of one row to the next one's; 0 where they share it."""
    await_previous(DEPENDENT)
    row = tl.program_id(1).to(tl.int64)
    index = tl.load(p_index + row * index_step).to(tl.int64)
    copy_row(p_table + row * table_own, p_out + row * out_row, index, entries, table_row, W, BLOCK, FLOATING)


@jit(do_not_specialize=["entries", "calls", "samples", "conditions", "ahead", "times_own", "condition_block"])
def modulation_kernel(
    p_table, p_times, p_call, p_condition, p_out, p_held, entries, calls, samples, conditions, ahead, table_row, times_own,
    call_step, condition_block, condition_sample, out_row, W: tl.constexpr, BLOCK: tl.constexpr, RING: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (column blocks, J * B).  ``times_own`` leads from one sample's times to the next one's; 0 where they share them."""
    await_previous(DEPENDENT)
    row = tl.program_id(1)
    sample = row % samples
    call = tl.load(p_call + sample * call_step)
    time = tl.load(p_times + sample.to(tl.int64) * times_own + call, mask=(call >= 0) & (call < calls), other=-1)
    condition = tl.load(p_condition + row // samples * condition_block + sample * condition_sample)
    if RING:
        place = tl.maximum(time, 0) % ahead * conditions + condition
        index = tl.where(tl.load(p_held + place) == time, place, -1).to(tl.int64)
    else:
        index = tl.where(time < 0, -1, time * conditions + condition).to(tl.int64)
    copy_row(p_table, p_out + row.to(tl.int64) * out_row, index, entries, table_row, W, BLOCK, True)


def gather_modulation_triton(
    table: Tensor,
    times: Tensor,
    call: Tensor,
    condition: Tensor,
    conditions: int,
    out: Tensor,
    held: Tensor | None = None,
) -> Tensor:
    """:func:`gather_modulation` as one kernel; a call beyond ``times`` gives NaN."""
    times = dense(times)
    (blocks, samples), width = condition.shape, table.shape[1]
    if out.shape != (blocks * samples, width) or out.dtype != table.dtype or out.stride(1) != 1:
        raise ValueError(f"out must be {(blocks * samples, width)} {table.dtype}, got {tuple(out.shape)} {out.dtype}")
    table = dense(table)
    config = launch_config("gather", "any", architecture(table.device))
    block = min(config.block, next_power_of_two(width))
    arguments = {"p_table": table, "p_times": times, "p_call": call, "p_condition": condition, "p_out": out}
    arguments |= {"p_held": times if held is None else held, "entries": len(table), "calls": times.shape[-1]}
    arguments |= {"samples": samples, "conditions": conditions, "ahead": len(table) // conditions}
    arguments |= {
        "table_row": table.stride(0),
        "times_own": times.stride(0) if times.dim() == 2 else 0,
        "call_step": call.stride(0),
        "condition_block": condition.stride(0),
    }
    arguments |= {"condition_sample": condition.stride(1), "out_row": out.stride(0), "W": width, "BLOCK": block}
    arguments |= {"RING": held is not None}
    launch(modulation_kernel, (-(-width // block), blocks * samples), arguments, config.warps)
    return out


def gather_rows_triton(table: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """:func:`gather_rows` as one kernel."""
    own = table.dim() == 3
    if own and len(table) != len(index):
        raise ValueError(f"tables {tuple(table.shape)} are one for each index, and there are {len(index)}")
    width = table.shape[-1] if table.dim() > 1 else 1
    shape = (len(index), *table.shape[2 if own else 1 :])
    if out is None:
        out = torch.empty(shape, dtype=table.dtype, device=table.device)
    elif out.shape != shape or out.dtype != table.dtype or out.stride(-1) != 1:
        raise ValueError(f"out must be {shape} {table.dtype} with contiguous rows, got {tuple(out.shape)} {out.dtype}")
    table = dense(table) if table.dim() > 1 else table
    config = launch_config("gather", "any", architecture(table.device))
    block = min(config.block, next_power_of_two(width))
    arguments = {"p_table": table, "p_index": index, "p_out": out, "entries": table.shape[1 if own else 0]}
    arguments |= {"table_own": table.stride(0) if own else 0, "table_row": table.stride(1 if own else 0)}
    arguments |= {"index_step": index.stride(0), "out_row": out.stride(0), "W": width, "BLOCK": block}
    arguments |= {"FLOATING": table.is_floating_point()}
    launch(gather_kernel, (-(-width // block), len(index)), arguments, config.warps)
    return out


def modulation_bytes_moved(rows: int, width: int, itemsize: int) -> int:
    """Each row in and out, and the three indices that find it."""
    return rows * (2 * width * itemsize + 3 * 8)


def bytes_moved(rows: int, width: int, itemsize: int) -> int:
    """Each gathered row in and out, and its index."""
    return rows * (2 * width * itemsize + 8)
