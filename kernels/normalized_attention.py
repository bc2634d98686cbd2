"""Normalized attention guidance (NAG) in one joint attention: an image that meets two texts, its outputs combined.

q, k, v are [R, H, L + 2 M, K] in the order [image, text, negative text].  Each text attends to the image and itself, the image
to itself and each of the texts: ``z+`` with the text, ``z-`` with the negative one.  Source: arXiv 2505.21179, in the form of
its authors' code, ``g = phi z+ - (phi - 1) z-``; norms are over the channels of all heads of a token together, before the
output projection.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import attention
from .attention_lse import attention_lse
from .launch_lookup import launch_config
from .shape_class import row_class
from .triton_runtime import architecture, await_previous, jit, launch, next_power_of_two, tl

TINY = 1e-30  # a token whose outputs are zero has nothing to scale
NEUTRAL = (1.0, 1.0, 0.0)  # scale, tau and alpha that give z+


def normalized_guidance(positive: Tensor, negative: Tensor, numbers: Tensor) -> Tensor:
    """``alpha g + (1 - alpha) z+`` with ``g = phi z+ - (phi - 1) z-`` scaled down to ``|g|_1 <= tau |z+|_1``, per token.

    positive ``z+``, negative ``z-`` [R, L, D]; numbers [R, 3]: phi, tau, alpha of every row; fp32 or better.
    """
    scale, tau, alpha = numbers[:, :, None, None].unbind(1)
    guided = torch.lerp(negative, positive, scale)
    limit, norm = (torch.linalg.vector_norm(z, 1, dim=-1, keepdim=True) for z in (positive, guided))
    shrink = (tau * limit / norm.clamp_min(TINY)).clamp_max(1)
    return torch.lerp(positive, guided * shrink, alpha)


def normalized_attention(q: Tensor, k: Tensor, v: Tensor, tokens: int, numbers: Tensor, attend: Callable = attention) -> Tensor:
    """The joint attention of L = ``tokens`` image tokens and two texts, [R, L + 2 M, H K]; numbers [R, 3] phi, tau, alpha.

    By two whole attentions ``attend``, as published.
    """
    text = _text_tokens(q, tokens)
    first, image = slice(tokens + text), slice(tokens)
    positive = attend(q[:, :, first], k[:, :, first], v[:, :, first])
    negative = attend(*(torch.cat([x[:, :, image], x[:, :, tokens + text :]], dim=2) for x in (q, k, v)))
    dtype = torch.promote_types(q.dtype, torch.float32)
    guided = normalized_guidance(positive[:, image].to(dtype), negative[:, image].to(dtype), numbers.to(dtype))
    return torch.cat([guided.to(q.dtype), positive[:, tokens:], negative[:, tokens:]], dim=1)


def _text_tokens(q: Tensor, tokens: int) -> int:
    """M, of each of two texts behind ``tokens`` image tokens."""
    rest = q.shape[2] - tokens
    if tokens < 1 or rest < 2 or rest % 2:
        raise ValueError(f"{q.shape[2]} tokens are not {tokens} of an image and as many of one text as of the other")
    return rest // 2


def joined(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over all keys from attentions over two parts of them, [R, T, H, K]; lse [R, H, T]."""
    share = torch.sigmoid(other_lse - one_lse).transpose(1, 2)[..., None]
    return torch.lerp(one, other, share.to(one.dtype))


def merge_normalized(
    shared: Tensor,
    shared_lse: Tensor,
    text: Tensor,
    text_lse: Tensor,
    negative: Tensor,
    negative_lse: Tensor,
    own: Tensor,
    own_lse: Tensor,
    numbers: Tensor,
) -> Tensor:
    """:func:`normalized_attention` from the attentions over its parts, [R, L + 2 M, D], D = H K.

    ``shared`` [R, L + 2 M, D]: all queries over the image; ``text`` [R, L + M, D]: image and text over the text;
    ``negative`` [R, L, D]: the image over the negative text; ``own`` [R, M, D]: the negative text over itself; each with its
    log-sum-exp [R, H, queries] fp32.  numbers [R, 3] fp32: phi, tau, alpha.
    """
    heads, tokens, second = shared_lse.shape[1], negative.shape[1], text.shape[1]
    given, dtype = shared.dtype, torch.promote_types(shared.dtype, torch.float32)
    shared, text, negative, own = (part.to(dtype).unflatten(2, (heads, -1)) for part in (shared, text, negative, own))

    def with_shared(queries: slice, part: Tensor, lse: Tensor) -> Tensor:
        return joined(shared[:, queries], shared_lse[:, :, queries], part, lse).flatten(2)

    first = with_shared(slice(second), text, text_lse)
    other = with_shared(slice(tokens), negative, negative_lse)
    last = with_shared(slice(second, None), own, own_lse)
    guided = normalized_guidance(first[:, :tokens], other, numbers.to(dtype))
    return torch.cat([guided, first[:, tokens:], last], dim=1).to(given)


def normalized_attention_by_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: int,
    numbers: Tensor,
    attend: Callable = attention_lse,
    merge: Callable = merge_normalized,
) -> Tensor:
    """:func:`normalized_attention` with the scores among image tokens computed once, in 4 attentions over parts and a merge.

    ``attend`` gives an attention and its log-sum-exp, ``merge`` is :func:`merge_normalized`.
    """
    text = _text_tokens(q, tokens)
    second = tokens + text
    image, positive, negative = slice(tokens), slice(tokens, second), slice(second, None)

    def over(queries: slice, keys: slice) -> tuple[Tensor, Tensor]:
        return attend(q[:, :, queries], k[:, :, keys], v[:, :, keys])

    parts = (slice(None), image), (slice(second), positive), (image, negative), (negative, negative)
    return merge(*(result for pair in parts for result in over(*pair)), numbers)


@jit(do_not_specialize=["tokens", "text"])
def merge_kernel(
    p_shared,
    p_shared_lse,
    p_text,
    p_text_lse,
    p_negative,
    p_negative_lse,
    p_own,
    p_own_lse,
    p_numbers,
    p_out,
    tokens,
    text,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Grid (L + 2 M, R).  One token: its parts joined head by head and, of an image token, both outputs combined."""
    await_previous(DEPENDENT)
    token = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    o_x = tl.arange(0, BLOCK)
    m_x = o_x < HEADS * K
    o_head = tl.minimum(o_x // K, HEADS - 1)
    second = tokens + text
    total = second + text
    b_one = tl.load(p_shared + (row * total + token) * (HEADS * K) + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_lse = tl.load(p_shared_lse + (row * HEADS + o_head) * total + token)
    if token < second:
        p_part, p_part_lse, count, place = p_text, p_text_lse, second, token
    else:
        p_part, p_part_lse, count, place = p_own, p_own_lse, text, token - second
    b_other = tl.load(p_part + (row * count + place) * (HEADS * K) + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_share = tl.sigmoid(tl.load(p_part_lse + (row * HEADS + o_head) * count + place) - b_lse)
    b_out = b_one + b_share * (b_other - b_one)
    if token < tokens:
        o_n = (row * tokens + token) * (HEADS * K) + o_x
        b_other = tl.load(p_negative + o_n, mask=m_x, other=0.0).to(tl.float32)
        b_share = tl.sigmoid(tl.load(p_negative_lse + (row * HEADS + o_head) * tokens + token) - b_lse)
        b_negative = b_one + b_share * (b_other - b_one)
        scale = tl.load(p_numbers + row * 3)
        tau = tl.load(p_numbers + row * 3 + 1)
        alpha = tl.load(p_numbers + row * 3 + 2)
        b_guided = scale * b_out - (scale - 1.0) * b_negative
        limit = tau * tl.sum(tl.abs(b_out), 0)
        norm = tl.sum(tl.abs(b_guided), 0)
        b_guided = b_guided * tl.minimum(limit / tl.maximum(norm, 1e-30), 1.0)
        b_out = alpha * b_guided + (1.0 - alpha) * b_out
    tl.store(p_out + (row * total + token) * (HEADS * K) + o_x, b_out.to(p_out.dtype.element_ty), mask=m_x)


def merge_normalized_triton(
    shared: Tensor,
    shared_lse: Tensor,
    text: Tensor,
    text_lse: Tensor,
    negative: Tensor,
    negative_lse: Tensor,
    own: Tensor,
    own_lse: Tensor,
    numbers: Tensor,
) -> Tensor:
    """:func:`merge_normalized` as one kernel, in the dtype of the parts."""
    rows, total, width = shared.shape
    heads, tokens, last = shared_lse.shape[1], negative.shape[1], own.shape[1]
    expected = (rows, tokens + last, width), (rows, tokens, width), (rows, last, width)
    found = tuple(tuple(part.shape) for part in (text, negative, own))
    if found != expected or total != tokens + 2 * last or width % heads or tuple(numbers.shape) != (rows, 3):
        raise ValueError(f"the parts do not fit {tuple(shared.shape)} and {tuple(numbers.shape)}: {found}")
    parts = {"shared": shared, "text": text, "negative": negative, "own": own}
    sums = {"shared": shared_lse, "text": text_lse, "negative": negative_lse, "own": own_lse}
    out = torch.empty(rows, total, width, dtype=shared.dtype, device=shared.device)
    arguments = {f"p_{name}": part.contiguous() for name, part in parts.items()}
    arguments |= {f"p_{name}_lse": lse.contiguous() for name, lse in sums.items()}
    arguments |= {"p_numbers": numbers.float().contiguous(), "p_out": out, "tokens": tokens, "text": last}
    arguments |= {"HEADS": heads, "K": width // heads, "BLOCK": next_power_of_two(width)}
    config = launch_config("adaln", row_class(rows * total, width), architecture(shared.device))
    launch(merge_kernel, (total, rows), arguments, config.warps)
    return out


def bytes_moved(rows: int, tokens: int, text: int, heads: int, width: int, itemsize: int) -> int:
    """Least traffic of the merge: every part and its fp32 log-sum-exp in, the result out."""
    queries = (tokens + 2 * text) + (tokens + text) + tokens + text
    return rows * (queries * (width * itemsize + 4 * heads) + (tokens + 2 * text) * width * itemsize)


def flops(rows: int, tokens: int, text: int, width: int) -> int:
    """Joining takes 3 an element; the image's second join, combination and two norms 14 more."""
    return rows * width * (3 * (tokens + 2 * text) + 14 * tokens)
