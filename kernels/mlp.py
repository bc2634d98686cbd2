"""Linear layers with what follows them in the same kernel: GELU, or the gated residual; and two streams in one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaln import gated_residual
from .compensated import add_product
from .launch_lookup import launch_config
from .shape_class import product_class
from .triton_runtime import architecture, dense, jit, launch, processors, tl

NO_EPILOGUE, GELU, GATED_RESIDUAL = 0, 1, 2


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x W^T + b``.  x [R, L, D]; weight [E, D]; bias [E] -> [R, L, E]."""
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x W^T + b)`` with the tanh approximation.  x [R, L, D]; weight [E, D]; bias [E] -> [R, L, E]."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def linear_gated_residual(
    h: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor,
    residual: Callable = gated_residual,
    product: Callable = linear,
) -> Tensor:
    """``h += gate * (x W^T + b)`` in place; returns ``h``.  h [R, L, E]; x [R, L, D]; weight [E, D]; gate [R, 1, E].

    ``residual`` does what follows the ``product``.
    """
    return residual(h, product(x, weight, bias), gate)


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor, weight2: Tensor, bias2: Tensor, product: Callable = linear
) -> tuple[Tensor, Tensor]:
    """Two linear layers of one shape on two streams: those of image and text in a joint block.

    x [R, L, D], x2 [R', M, D]; weights [E, D] -> [R, L, E], [R', M, E].  ``product`` does each.
    """
    return product(x, weight, bias), product(x2, weight2, bias2)


def grouped_linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor, weight2: Tensor, bias2: Tensor, product: Callable = linear_gelu
) -> tuple[Tensor, Tensor]:
    """:func:`grouped_linear` with GELU (tanh) behind both: the first layers of a joint block's MLPs.  ``product`` does each."""
    return product(x, weight, bias), product(x2, weight2, bias2)


Projected = tuple[Tensor, Tensor | None]  # the output [R, L, E] of a layer, and its bias where that is yet to be added


def project_slices(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x2: Tensor | None = None,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
) -> tuple[Projected, ...]:
    """Linear layers of one shape on one or two slices of the tokens of a longer sequence.  Shapes as :func:`grouped_linear`.

    ``F.linear`` copies a slice of several rows, to fold them into one, and adds the bias in a pass of its own.  A batched
    product reads the slice where it lies, and leaves the bias to the residual that follows.
    """
    first = _project_slice(x, weight, bias)
    return (first,) if x2 is None else (first, _project_slice(x2, weight2, bias2))


def _project_slice(x: Tensor, weight: Tensor, bias: Tensor) -> Projected:
    if x.is_contiguous():
        return F.linear(x, weight, bias), None
    return torch.bmm(x, weight.t().expand(len(x), -1, -1)), bias


def with_biases(function: Callable) -> Callable[..., tuple[Tensor, ...]]:
    """A form of :func:`project_slices` that adds the biases which are left: by these outputs backends are compared."""

    def complete(*operands: Tensor) -> tuple[Tensor, ...]:
        return tuple(one if isinstance(one, Tensor) else _with_bias(*one) for one in function(*operands))

    return complete


def _with_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias


def linear_gelu_cublaslt(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`linear_gelu` with the GELU epilogue of cuBLASLt, which is the tanh approximation; CUDA only."""
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])


@jit(do_not_specialize=["tokens"])
def matmul_tile(
    p_x,
    p_weight,
    p_bias,
    p_out,
    p_gate,
    tile,
    rows,
    tokens,
    x_row,
    x_token,
    out_row,
    out_token,
    gate_row,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """One output tile of ``x W^T + b``; tiles go down ``GROUP`` row tiles before the next column, to reuse W from L2."""
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    first_m = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    inner = tile % (GROUP * tiles_n)
    o_m = (first_m + inner % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = inner // height * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    # rows and columns beyond the end read the last valid one and are not stored
    row = tl.minimum(o_m, rows - 1) // tokens
    token = tl.minimum(o_m, rows - 1) % tokens
    p_xt = p_x + (row.to(tl.int64) * x_row + token.to(tl.int64) * x_token)[:, None] + o_k[None, :]
    p_wt = p_weight + (tl.minimum(o_n, N - 1).to(tl.int64) * K)[None, :] + o_k[:, None]
    m_n = o_n < N
    b_bias = tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32) + b_bias[None, :]
    b_lost = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            b_x = tl.load(p_xt + k)
            b_w = tl.load(p_wt + k)
        else:
            b_x = tl.load(p_xt + k, mask=(o_k < K - k)[None, :], other=0.0)
            b_w = tl.load(p_wt + k, mask=(o_k < K - k)[:, None], other=0.0)
        b_y, b_lost = add_product(b_x, b_w, b_y, b_lost)
    p_y = p_out + (row.to(tl.int64) * out_row + token.to(tl.int64) * out_token)[:, None] + o_n[None, :]
    m_y = (o_m < rows)[:, None] & m_n[None, :]
    if EPILOGUE == 1:
        # y / 2 (1 + tanh(z)) = y sigmoid(2 z) = y / (1 + 2^(-2 z log2 e)) with z = sqrt(2 / pi) (y + 0.044715 y^3)
        b_y = b_y / (1.0 + tl.exp2(b_y * (-2.302208198144325 - 0.1029432395800235 * b_y * b_y)))
    elif EPILOGUE == 2:
        b_gate = tl.load(p_gate + (row.to(tl.int64) * gate_row)[:, None] + o_n[None, :], mask=m_n[None, :], other=0.0)
        b_y = tl.load(p_y, mask=m_y, other=0.0).to(tl.float32) + b_gate.to(tl.float32) * b_y
    tl.store(p_y, b_y.to(p_out.dtype.element_ty), mask=m_y)


@jit(do_not_specialize=["rows", "tokens", "rows2", "tokens2"])
def linear_kernel(
    p_x,
    p_weight,
    p_bias,
    p_out,
    p_gate,
    p_x2,
    p_weight2,
    p_bias2,
    p_out2,
    rows,
    tokens,
    x_row,
    x_token,
    out_row,
    out_token,
    gate_row,
    rows2,
    tokens2,
    x_row2,
    x_token2,
    out_row2,
    out_token2,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EPILOGUE: tl.constexpr,
    GROUPED: tl.constexpr,
):
    """Persistent: each program walks tiles of the first product, then of the second, so the few tiles of a short stream
    fill the gaps of the long one instead of costing a wave of their own."""
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles = tl.cdiv(rows, BLOCK_M) * tiles_n
    every = tiles
    if GROUPED:
        every += tl.cdiv(rows2, BLOCK_M) * tiles_n
    for tile in range(tl.program_id(0), every, tl.num_programs(0)):
        # one body for both streams: two would hold two sets of shared-memory buffers
        t_x, t_weight, t_bias, t_out, t_rows, t_tokens = p_x, p_weight, p_bias, p_out, rows, tokens
        t_x_row, t_x_token, t_out_row, t_out_token, index = x_row, x_token, out_row, out_token, tile
        if GROUPED:  # noqa: SIM102 (a constexpr is decided before the kernel is compiled)
            if tile >= tiles:
                t_x, t_weight, t_bias, t_out, t_rows, t_tokens = p_x2, p_weight2, p_bias2, p_out2, rows2, tokens2
                t_x_row, t_x_token, t_out_row, t_out_token, index = x_row2, x_token2, out_row2, out_token2, tile - tiles
        matmul_tile(
            t_x, t_weight, t_bias, t_out, p_gate, index, t_rows, t_tokens, t_x_row, t_x_token, t_out_row, t_out_token,
            gate_row, N, K, BLOCK_M, BLOCK_N, BLOCK_K, GROUP, EPILOGUE,
        )  # fmt: skip


def _run(
    streams: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...], epilogue: int, gate: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Launch for one or two streams of (x, weight, bias, out), all of one weight shape."""
    first, second = streams[0], streams[-1]
    for x, weight, bias, out in streams:
        if weight.shape != first[1].shape or x.shape[-1] != weight.shape[1] or bias.shape != weight.shape[:1]:
            raise ValueError(f"x {tuple(x.shape)}, weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit")
        if out.shape != (*x.shape[:-1], weight.shape[0]):
            raise ValueError(f"the state must be {(*x.shape[:-1], weight.shape[0])}, got {tuple(out.shape)}")
    outputs, inputs = first[1].shape
    counts = [x.shape[0] * x.shape[1] for x, *_ in streams]
    # the residual epilogue holds another tile in registers, so its tiles are smaller
    operation = "linear_residual" if epilogue == GATED_RESIDUAL else "linear"
    config = launch_config(operation, product_class(max(counts), inputs, outputs), architecture(first[0].device))
    arguments: dict = {"p_gate": first[0] if gate is None else gate, "gate_row": 0 if gate is None else gate.stride(0)}
    for suffix, (x, weight, bias, out) in (("", first), ("2", second)):
        x = dense(x)
        arguments |= {f"p_x{suffix}": x, f"p_weight{suffix}": weight.contiguous(), f"p_bias{suffix}": bias.contiguous()}
        arguments |= {f"p_out{suffix}": out}
        arguments |= {f"rows{suffix}": x.shape[0] * x.shape[1], f"tokens{suffix}": x.shape[1]}
        arguments |= {f"x_row{suffix}": x.stride(0), f"x_token{suffix}": x.stride(1)}
        arguments |= {f"out_row{suffix}": out.stride(0), f"out_token{suffix}": out.stride(1)}
    block_k = config.block_k * 2 // max(2, first[0].element_size())
    arguments |= {"N": outputs, "K": inputs, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": block_k}
    arguments |= {"GROUP": config.group, "EPILOGUE": epilogue, "GROUPED": len(streams) == 2}
    tiles = sum(-(-count // config.block_m) for count in counts) * -(-outputs // config.block_n)
    launch(linear_kernel, (min(processors(first[0].device), tiles),), arguments, config.warps, config.stages)
    return tuple(out for *_, out in streams)


def _output(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device)


def linear_gelu_triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`linear_gelu` as one kernel."""
    return _run(((x, weight, bias, _output(x, weight)),), GELU)[0]


def linear_gated_residual_triton(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """:func:`linear_gated_residual` as one kernel; the channels of ``h`` must be contiguous."""
    if h.stride(-1) != 1:
        raise ValueError("the state must have contiguous channels to be updated in place")
    if gate.shape not in ((h.shape[0], 1, h.shape[2]), (1, 1, h.shape[2])):
        raise ValueError(f"the gate must have shape {(h.shape[0], 1, h.shape[2])}, got {tuple(gate.shape)}")
    gate = dense(gate).expand(h.shape[0], 1, h.shape[2])
    return _run(((x, weight, bias, h),), GATED_RESIDUAL, gate)[0]


def grouped_linear_triton(
    x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor, weight2: Tensor, bias2: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`grouped_linear` as one persistent kernel."""
    return _grouped((x, weight, bias), (x2, weight2, bias2), NO_EPILOGUE)


def grouped_linear_gelu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor, weight2: Tensor, bias2: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`grouped_linear_gelu` as one persistent kernel."""
    return _grouped((x, weight, bias), (x2, weight2, bias2), GELU)


def _grouped(first: tuple[Tensor, ...], second: tuple[Tensor, ...], epilogue: int) -> tuple[Tensor, Tensor]:
    x, weight, bias = first
    x2, weight2, bias2 = second
    streams = ((x, weight, bias, _output(x, weight)), (x2, weight2, bias2, _output(x2, weight2)))
    out, out2 = _run(streams, epilogue)
    return out, out2


def project_slices_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x2: Tensor | None = None,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
) -> tuple[Projected, ...]:
    """:func:`project_slices` as one persistent kernel, biases included."""
    streams = ((x, weight, bias),) if x2 is None else ((x, weight, bias), (x2, weight2, bias2))
    outputs = _run(tuple((*stream, _output(*stream[:2])) for stream in streams), NO_EPILOGUE)
    return tuple((output, None) for output in outputs)


def bytes_moved(rows: int, inputs: int, outputs: int, itemsize: int, residual: bool = False) -> int:
    """Least traffic of one product over ``rows`` = R L tokens: x and W in once, y out (and the state in)."""
    return itemsize * (rows * inputs + outputs * inputs + rows * outputs * (2 if residual else 1))


def flops(rows: int, inputs: int, outputs: int) -> int:
    """The product alone."""
    return 2 * rows * inputs * outputs
