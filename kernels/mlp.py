"""Linear layers with what follows them in the same kernel: GELU, or the gated residual; and two streams in one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaln import gated_residual
from .matmul import GATED_RESIDUAL, GELU, NO_EPILOGUE, Stream, run_product, run_products
from .triton_runtime import dense


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


def linear_gelu_triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`linear_gelu` as one kernel."""
    return run_products(((x, weight, bias),), GELU)[0]


def linear_gated_residual_triton(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """:func:`linear_gated_residual` as one kernel; the channels of ``h`` must be contiguous."""
    if h.stride(-1) != 1:
        raise ValueError("the state must have contiguous channels to be updated in place")
    if h.shape != (*x.shape[:-1], weight.shape[0]):
        raise ValueError(f"the state must be {(*x.shape[:-1], weight.shape[0])}, got {tuple(h.shape)}")
    if gate.shape not in ((h.shape[0], 1, h.shape[2]), (1, 1, h.shape[2])):
        raise ValueError(f"the gate must have shape {(h.shape[0], 1, h.shape[2])}, got {tuple(gate.shape)}")
    gate = dense(gate).expand(h.shape[0], 1, h.shape[2])
    run_product((Stream(x, weight, bias, h),), GATED_RESIDUAL, gate)
    return h


def grouped_linear_triton(
    x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor, weight2: Tensor, bias2: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`grouped_linear` as one persistent kernel."""
    out, out2 = run_products(((x, weight, bias), (x2, weight2, bias2)), NO_EPILOGUE)
    return out, out2


def grouped_linear_gelu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor, weight2: Tensor, bias2: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`grouped_linear_gelu` as one persistent kernel."""
    out, out2 = run_products(((x, weight, bias), (x2, weight2, bias2)), GELU)
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
    layers = ((x, weight, bias),) if x2 is None else ((x, weight, bias), (x2, weight2, bias2))
    return tuple((output, None) for output in run_products(layers, NO_EPILOGUE))


def bytes_moved(rows: int, inputs: int, outputs: int, itemsize: int, residual: bool = False) -> int:
    """Least traffic of one product over ``rows`` = R L tokens: x and W in once, y out (and the state in)."""
    return itemsize * (rows * inputs + outputs * inputs + rows * outputs * (2 if residual else 1))


def flops(rows: int, inputs: int, outputs: int) -> int:
    """The product alone."""
    return 2 * rows * inputs * outputs
