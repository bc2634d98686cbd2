"""QKV projections whose product leaves split heads, normalised and in the layout of attention: no pass of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .matmul import HEADS, NO_EPILOGUE, Stream, run_product, run_products
from .mlp import grouped_linear, linear
from .qkv import joint_heads_norm, joint_heads_norm_triton, split_heads_norm, split_heads_norm_triton

MAX_NORMED_HEAD_DIM = 128  # the columns that every tile of the launch table has
Weights = tuple[Tensor, Tensor] | None  # of the norms of queries and keys [K]


def project_heads(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    product: Callable = linear,
    split: Callable = split_heads_norm,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x W^T + b`` as heads, then RMSNorm over each head of q and k when weights [K] are given.

    x [R, L, D]; weight [3 D, D]; bias [3 D] -> q, k, v [R, H, L, K].  ``split`` does what follows the ``product``.
    """
    return split(product(x, weight, bias), heads, q_weight, k_weight, eps)


def project_joint_heads(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    heads: int,
    image_weights: Weights = None,
    text_weights: Weights = None,
    eps: float = 1e-6,
    products: Callable = grouped_linear,
    split: Callable = joint_heads_norm,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`project_heads` of two streams to one joint sequence in the order [image, text].

    x [R, L, D], x2 [R, M, D]; weights [3 D, D]; image_weights and text_weights are (q, k) RMSNorm weights [K] or None ->
    q, k, v [R, H, L + M, K].  ``split`` does what follows the two ``products``.
    """
    return split(*products(x, weight, bias, x2, weight2, bias2), heads, image_weights, text_weights, eps)


def project_heads_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`project_heads` as one kernel; the results are views of memory in the order [R, L, H, K].

    A product and a split where :func:`within_product` says no.
    """
    norms = (None if q_weight is None else (q_weight, k_weight),)
    if not within_product(weight.shape[0] // (3 * heads), norms):
        (qkv,) = run_products(((x, weight, bias),), NO_EPILOGUE)
        return split_heads_norm_triton(qkv, heads, q_weight, k_weight, eps)
    return _projected(((x, weight, bias),), heads, norms, eps)


def project_joint_heads_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    heads: int,
    image_weights: Weights = None,
    text_weights: Weights = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`project_joint_heads` as one kernel; the results are views of memory in the order [R, L + M, H, K].

    A product and a split where :func:`within_product` says no.
    """
    layers, norms = ((x, weight, bias), (x2, weight2, bias2)), (image_weights, text_weights)
    if not within_product(weight.shape[0] // (3 * heads), norms):
        image, text = run_products(layers, NO_EPILOGUE)
        return joint_heads_norm_triton(image, text, heads, *norms, eps)
    return _projected(layers, heads, norms, eps)


def within_product(head_dim: int, norms: tuple[Weights, ...]) -> bool:
    """Whether the epilogue of the product can split heads of this size: with norms, whole heads lie within a tile."""
    given = [pair is not None for pair in norms]
    return not any(given) or (all(given) and head_dim <= MAX_NORMED_HEAD_DIM and not head_dim & (head_dim - 1))


def _projected(
    layers: tuple[tuple[Tensor, Tensor, Tensor], ...], heads: int, norms: tuple[Weights, ...], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, _ = layers[0]
    rows, outputs = x.shape[0], weight.shape[0]
    head_dim = outputs // (3 * heads)
    if outputs != 3 * heads * head_dim:
        raise ValueError(f"the weight of queries, keys and values must have 3 D rows, D a multiple of {heads}, got {outputs}")
    if wrong := [tuple(one.shape) for pair in filter(None, norms) for one in pair if one.shape != (head_dim,)]:
        raise ValueError(f"norm weights must have shape {(head_dim,)}, got {wrong[0]}")
    if any(other.shape[0] != rows for other, *_ in layers):
        raise ValueError(f"both streams must have {rows} rows, got {[other.shape[0] for other, *_ in layers]}")
    tokens = sum(other.shape[1] for other, *_ in layers)
    joint = torch.empty(3, rows, tokens, heads, head_dim, dtype=x.dtype, device=x.device)
    streams, first = [], 0
    for layer, pair in zip(layers, norms, strict=True):
        last = first + layer[0].shape[1]
        streams.append(Stream(*layer, joint[0, :, first:last], pair))
        first = last
    run_product(streams, HEADS, out_part=joint.stride(0), head_dim=head_dim, eps=eps)
    q, k, v = joint.transpose(2, 3)
    return q, k, v
