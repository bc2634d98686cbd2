"""The product kernel: persistent, of one or two streams, with what follows a product in its epilogue.

Where the chip can, operands come through descriptors of the tensor memory accelerator: one thread asks for a whole tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .compensated import add_product
from .descriptors import describable, descriptor, has_descriptors
from .launch_lookup import launch_config
from .shape_class import product_class
from .triton_runtime import architecture, await_previous, dense, jit, launch, processors, tl

NO_EPILOGUE, GELU, GATED_RESIDUAL, HEADS = 0, 1, 2, 3
# the entry of the launch table of each epilogue: the last two hold more registers than the product alone
ENTRIES = {NO_EPILOGUE: "linear", GELU: "linear", GATED_RESIDUAL: "linear_residual", HEADS: "linear_heads"}


@jit(do_not_specialize=["rows", "tokens", "length"])
def matmul_tile(
    p_x,
    p_weight,
    p_bias,
    p_out,
    p_gate,
    p_q_weight,
    p_k_weight,
    tile,
    rows,
    tokens,
    length,
    x_row,
    x_token,
    out_row,
    out_token,
    out_part,
    gate_row,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EPILOGUE: tl.constexpr,
    HEAD: tl.constexpr,
    NORM: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """One output tile of ``x W^T + b``; tiles go down ``GROUP`` row tiles before the next column, to reuse W from L2.

    x [rows, tokens, K]; a tile lies in one of the rows.  The output has rows of ``length`` tokens.
    """
    tiles_l = tl.cdiv(tokens, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    first_m = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(rows * tiles_l - first_m, GROUP)
    inner = tile % (GROUP * tiles_n)
    tile_m = first_m + inner % height
    row, token, column = tile_m // tiles_l, tile_m % tiles_l * BLOCK_M, inner // height * BLOCK_N
    o_l = token + tl.arange(0, BLOCK_M)
    o_n = column + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    if not DESCRIPTORS:
        # rows and columns beyond the end read the last valid one and are not stored
        p_xt = p_x + row.to(tl.int64) * x_row + (tl.minimum(o_l, tokens - 1).to(tl.int64) * x_token)[:, None] + o_k[None, :]
        p_wt = p_weight + (tl.minimum(o_n, N - 1).to(tl.int64) * K)[None, :] + o_k[:, None]
    m_n = o_n < N
    # from zero: in a flattened loop a sum that begins with the bias ties the loads of a tile to the products of the one before
    b_y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_lost = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        if DESCRIPTORS:
            b_x = tl.reshape(p_x.load([row, token, k]), [BLOCK_M, BLOCK_K])
            b_w = tl.trans(p_weight.load([column, k]))
        elif K % BLOCK_K == 0:
            b_x = tl.load(p_xt + k)
            b_w = tl.load(p_wt + k)
        else:
            b_x = tl.load(p_xt + k, mask=(o_k < K - k)[None, :], other=0.0)
            b_w = tl.load(p_wt + k, mask=(o_k < K - k)[:, None], other=0.0)
        b_y, b_lost = add_product(b_x, b_w, b_y, b_lost)
    b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    out, at = (row + o_l // length).to(tl.int64), (o_l % length).to(tl.int64)
    m_y = (o_l < tokens)[:, None] & m_n[None, :]
    p_y = p_out + (out * out_row + at * out_token)[:, None]
    if EPILOGUE == 3:
        part = o_n // (N // 3)
        p_y += (part.to(tl.int64) * out_part + o_n % (N // 3))[None, :]
        if NORM:
            b_heads = tl.reshape(b_y, [BLOCK_M, BLOCK_N // HEAD, HEAD])
            b_scale = tl.rsqrt(tl.sum(b_heads * b_heads, 2) / HEAD + eps)
            of_head = (column + tl.arange(0, BLOCK_N // HEAD) * HEAD) // (N // 3)
            b_scale = tl.where((of_head < 2)[None, :], b_scale, 1.0)  # values have no norm
            b_y = tl.reshape(b_heads * b_scale[:, :, None], [BLOCK_M, BLOCK_N])
            b_weight = tl.load(p_q_weight + o_n % HEAD, mask=part == 0, other=1.0).to(tl.float32)
            b_weight *= tl.load(p_k_weight + o_n % HEAD, mask=part == 1, other=1.0).to(tl.float32)
            b_y *= b_weight[None, :]
    else:
        p_y += o_n[None, :]
    if EPILOGUE == 1:
        # y / 2 (1 + tanh(z)) = y sigmoid(2 z) = y / (1 + 2^(-2 z log2 e)) with z = sqrt(2 / pi) (y + 0.044715 y^3); the square
        # of a reciprocal root is two instructions, a division eight; in fp32 the root's four ulp would show
        b_divisor = 1.0 + tl.exp2(b_y * (-2.302208198144325 - 0.1029432395800235 * b_y * b_y))
        if p_out.dtype.element_ty == tl.float32:
            b_y = tl.div_rn(b_y, b_divisor)
        else:
            b_root = tl.rsqrt(b_divisor)
            b_y = b_y * b_root * b_root
    elif EPILOGUE == 2:
        b_gate = tl.load(p_gate + (out * gate_row)[:, None] + o_n[None, :], mask=m_y, other=0.0)
        b_y = tl.load(p_y, mask=m_y, other=0.0).to(tl.float32) + b_gate.to(tl.float32) * b_y
    tl.store(p_y, b_y.to(p_out.dtype.element_ty), mask=m_y)


@jit(do_not_specialize=["rows", "tokens", "length", "rows2", "tokens2", "length2"])
def linear_kernel(
    p_x,
    p_weight,
    p_bias,
    p_out,
    p_q_weight,
    p_k_weight,
    p_x2,
    p_weight2,
    p_bias2,
    p_out2,
    p_q_weight2,
    p_k_weight2,
    p_gate,
    rows,
    tokens,
    length,
    x_row,
    x_token,
    out_row,
    out_token,
    rows2,
    tokens2,
    length2,
    x_row2,
    x_token2,
    out_row2,
    out_token2,
    out_part,
    gate_row,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EPILOGUE: tl.constexpr,
    HEAD: tl.constexpr,
    NORM: tl.constexpr,
    GROUPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Persistent: each program walks tiles of the first product, then of the second, so the few tiles of a short stream
    fill the gaps of the long one instead of costing a wave of their own."""
    await_previous(DEPENDENT)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles = rows * tl.cdiv(tokens, BLOCK_M) * tiles_n
    every = tiles
    if GROUPED:
        every += rows2 * tl.cdiv(tokens2, BLOCK_M) * tiles_n
    # flattened, the loads of a tile begin while the one before it is stored
    for tile in tl.range(tl.program_id(0), every, tl.num_programs(0), flatten=DESCRIPTORS):
        # one body for both streams: two would hold two sets of shared-memory buffers
        t_x, t_weight, t_bias, t_out, t_q_weight, t_k_weight = p_x, p_weight, p_bias, p_out, p_q_weight, p_k_weight
        t_rows, t_tokens, t_length, index = rows, tokens, length, tile
        t_x_row, t_x_token, t_out_row, t_out_token = x_row, x_token, out_row, out_token
        if GROUPED:  # noqa: SIM102 (a constexpr is decided before the kernel is compiled)
            if tile >= tiles:
                t_x, t_weight, t_bias, t_out, t_q_weight, t_k_weight = (
                    p_x2, p_weight2, p_bias2, p_out2, p_q_weight2, p_k_weight2,
                )  # fmt: skip
                t_rows, t_tokens, t_length, index = rows2, tokens2, length2, tile - tiles
                t_x_row, t_x_token, t_out_row, t_out_token = x_row2, x_token2, out_row2, out_token2
        matmul_tile(
            t_x, t_weight, t_bias, t_out, p_gate, t_q_weight, t_k_weight, index, t_rows, t_tokens, t_length,
            t_x_row, t_x_token, t_out_row, t_out_token, out_part, gate_row, eps,
            N, K, BLOCK_M, BLOCK_N, BLOCK_K, GROUP, EPILOGUE, HEAD, NORM, DESCRIPTORS,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stream:
    """One product: x [R, L, D], weight [E, D], bias [E], out [R, L, ...] of which a token's numbers are contiguous.

    ``norm_weights``: those of the heads of queries and keys [K], of the epilogue that splits them.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor
    norm_weights: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """Rows of the product, R L."""
        return self.x.shape[0] * self.x.shape[1]

    def walked(self) -> Tensor:
        """``x`` as the tiles walk it, [rows, tokens, D]: in one row where the tokens of all rows follow each other."""
        x = self.x
        rows, tokens, width = x.shape
        if rows > 1 and x.stride(0) != tokens * x.stride(1):
            return x
        return x.as_strided((1, rows * tokens, width), (0, x.stride(1), 1))  # of one row the stride says nothing


def run_product(
    streams: Sequence[Stream],
    epilogue: int = NO_EPILOGUE,
    gate: Tensor | None = None,
    out_part: int = 0,
    head_dim: int = 0,
    eps: float = 0.0,
) -> None:
    """Write ``out`` of one or two streams of one weight shape.

    ``gate`` [R, 1, E] for the residual; ``out_part``, ``head_dim`` and ``eps`` for the heads: elements of ``out`` from the
    queries to the keys and on to the values.  Raises ``ValueError`` for shapes that do not fit.
    """
    streams = [Stream(dense(s.x), s.weight.contiguous(), s.bias.contiguous(), s.out, s.norm_weights) for s in streams]
    first, second = streams[0], streams[-1]
    for s in streams:
        if s.weight.shape != first.weight.shape or s.x.shape[-1] != s.weight.shape[1] or s.bias.shape != s.weight.shape[:1]:
            raise ValueError(f"x {tuple(s.x.shape)}, weight {tuple(s.weight.shape)} and bias {tuple(s.bias.shape)} do not fit")
    kinds = {tuple(x.dtype for x in (s.x, s.weight, s.bias, s.out, *(s.norm_weights or ()))) for s in streams}
    if len(kinds) > 1:
        raise ValueError(f"both streams must have the same dtypes, got {' and '.join(sorted(map(str, kinds)))}")
    outputs, inputs = first.weight.shape
    device = first.x.device
    shape_class = product_class(max(s.count for s in streams), inputs, outputs)
    config = launch_config(ENTRIES[epilogue], shape_class, architecture(device))
    if first.x.dtype == torch.float32:  # without tensor cores, on registers, with what a sum has lost beside it
        config = replace(config, block_m=min(64, config.block_m), block_n=min(max(64, head_dim), config.block_n), warps=8)
    block_k = config.block_k * 2 // max(2, first.x.element_size())
    walks = [s.walked() for s in streams]
    described = has_descriptors(device) and all(map(describable, (*walks, *(s.weight for s in streams))))
    arguments: dict = {"p_gate": first.bias if gate is None else gate, "gate_row": 0 if gate is None else gate.stride(0)}
    for suffix, s, x in (("", first, walks[0]), ("2", second, walks[-1])):
        q_weight, k_weight = (weight.contiguous() for weight in s.norm_weights or (s.bias, s.bias))
        operands = (x, [1, config.block_m, block_k]), (s.weight, [config.block_n, block_k])
        p_x, p_weight = (descriptor(*operand) if described else operand[0] for operand in operands)
        arguments |= {f"p_x{suffix}": p_x, f"p_weight{suffix}": p_weight, f"p_bias{suffix}": s.bias, f"p_out{suffix}": s.out}
        arguments |= {f"p_q_weight{suffix}": q_weight, f"p_k_weight{suffix}": k_weight}
        arguments |= {f"rows{suffix}": x.shape[0], f"tokens{suffix}": x.shape[1], f"length{suffix}": s.x.shape[1]}
        arguments |= {f"x_row{suffix}": x.stride(0), f"x_token{suffix}": x.stride(1)}
        arguments |= {f"out_row{suffix}": s.out.stride(0), f"out_token{suffix}": s.out.stride(1)}
    arguments |= {"out_part": out_part, "eps": eps, "N": outputs, "K": inputs, "BLOCK_M": config.block_m}
    arguments |= {"BLOCK_N": config.block_n, "BLOCK_K": block_k, "GROUP": config.group, "EPILOGUE": epilogue}
    arguments |= {"HEAD": head_dim, "NORM": first.norm_weights is not None, "GROUPED": len(streams) == 2}
    arguments |= {"DESCRIPTORS": described}
    tiles = sum(x.shape[0] * -(-x.shape[1] // config.block_m) for x in walks) * -(-outputs // config.block_n)
    launch(linear_kernel, (min(processors(device) * config.resident, tiles),), arguments, config.warps, config.stages)


def run_products(layers: Sequence[tuple[Tensor, Tensor, Tensor]], epilogue: int) -> list[Tensor]:
    """The outputs [R, L, E] of one or two layers (x, weight, bias), in one launch."""
    outputs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for x, weight, _ in layers]
    run_product([Stream(*layer, output) for layer, output in zip(layers, outputs, strict=True)], epilogue)
    return outputs
