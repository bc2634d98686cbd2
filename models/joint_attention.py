"""The joint attention of image and text over rows that do different things: perturbed ones, and ones that meet two texts.

A row with two texts (normalized attention guidance, :mod:`segue.kernels.normalized_attention`) has two rows of text, its own
and the negative one's, next to each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from segue.kernels.fp8 import Fp8Rows
from segue.kernels.normalized_attention import normalized_attention
from segue.kernels.record import Kernels

from .fp8_linear import Fp8Linear, grouped_linear, project_joint_heads
from .rows import FULL, Segment
from .sit import attend_segments

# Perturbations of image queries alone: text has no space to blur over, and keeps its attention where only the image's map
# is the identity.
IMAGE_OPERATIONS = ("attention_blur", "attention_identity_image", "attention_shuffle")

Run = tuple[slice, slice, tuple[Segment, ...]]  # rows of the image, rows of text, and the segments counted from there


@dataclass(frozen=True, eq=False)
class Stream:
    """What one stream brings to an attention: x [R, L, D], its QKV layer, norm weights [K] of queries and keys, if any."""

    x: Tensor | Fp8Rows
    qkv: nn.Linear | Fp8Linear
    norm_weights: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, eq=False)
class JoinedTexts:
    """Of a range of R rows of which some have two texts: ``modulation`` [R', W], a row for every text; ``numbers`` [R, 3].

    The numbers are scale, tau and alpha of normalized attention guidance.
    """

    modulation: Tensor
    numbers: Tensor


def attend_rows(
    image: Stream,
    text: Stream,
    heads: int,
    kernels: Kernels,
    segments: tuple[Segment, ...],
    numbers: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """R images [R, L, D] and R' texts [R', M, D], projected to heads, to their attention outputs.

    The image's [R, L, D] and the texts' as many numbers as [R', M, D], perhaps with the texts of a row in one.  ``numbers``
    [R, 3] are needed where a segment is joined.
    """
    (count, tokens, width), length = image.x.shape, text.x.shape[1]
    runs = list(_runs(segments, count))
    split = _split_heads(image, text, heads, kernels, runs)
    outputs = []
    for (rows, _, members), (q, k, v) in zip(runs, split, strict=True):
        if members and members[0].joined:
            outputs.append(attend_two_texts(q, k, v, tokens, numbers[rows], kernels, members))
        else:
            outputs.append(attend_joint(q, k, v, tokens, kernels, members) if members else kernels.attention(q, k, v))
    if len(outputs) == 1:
        return outputs[0][:, :tokens], outputs[0][:, tokens:]
    texts = torch.cat([o[:, tokens:].reshape(-1, length, width) for o in outputs])
    return torch.cat([o[:, :tokens] for o in outputs]), texts


def _split_heads(image: Stream, text: Stream, heads: int, kernels: Kernels, runs: list[Run]) -> list[tuple[Tensor, ...]]:
    """q, k, v [R, H, L + M or L + 2 M, K] of every run."""
    layers, weights = (image.x, image.qkv, text.x, text.qkv), (image.norm_weights, text.norm_weights)
    if len(runs) == 1:
        return [project_joint_heads(*layers, heads, weights, kernels)]
    images, texts = grouped_linear(*layers, kernels)  # of all runs at a time
    split = []
    for rows, of_text, _ in runs:
        own = texts[of_text].view(rows.stop - rows.start, -1, texts.shape[2])
        split.append(kernels.joint_heads_norm(images[rows], own, heads, *weights))
    return split


def _runs(segments: tuple[Segment, ...], rows: int) -> Iterator[Run]:
    """Ranges of rows with as many texts each; no segments where every row does the full operation with one text."""
    if not segments:
        yield slice(0, rows), slice(0, rows), ()
        return
    first = 0
    for texts, run in groupby(segments, lambda segment: segment.texts):
        members = tuple(run)
        start, stop = members[0].start, members[-1].stop
        plain = texts == 1 and all(segment.operation == FULL for segment in members)
        inside = () if plain else tuple(segment.rows(1, start) for segment in members)
        last = first + texts * (stop - start)
        yield slice(start, stop), slice(first, last), inside
        first = last


def attend_joint(q: Tensor, k: Tensor, v: Tensor, tokens: int, kernels: Kernels, segments: tuple[Segment, ...]) -> Tensor:
    """Joint attention where ranges of rows do different operations.  q, k, v [R, H, T, K] -> [R, T, H K].

    The operations of ``IMAGE_OPERATIONS`` act on the queries of the first ``tokens`` tokens; the text's attend as ever.
    """
    parts = []
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        if segment.operation in IMAGE_OPERATIONS:
            image, text = q[rows, :, :tokens], q[rows, :, tokens:]
            perturbed = kernels.perturbed_attention(image, k[rows], v[rows], segment.operation)
            parts.append(torch.cat([perturbed, kernels.attention(text, k[rows], v[rows])], dim=1))
        else:
            alone = Segment(0, segment.stop - segment.start, segment.operation)
            parts.append(attend_segments(q[rows], k[rows], v[rows], kernels, (alone,)))
    return torch.cat(parts)


def attend_two_texts(
    q: Tensor, k: Tensor, v: Tensor, tokens: int, numbers: Tensor, kernels: Kernels, segments: tuple[Segment, ...]
) -> Tensor:
    """Joint attention of images with two texts each, guided.  q, k, v [R, H, L + 2 M, K] -> [R, L + 2 M, H K]; numbers [R, 3].

    A perturbed operation perturbs the attention with either text; then the image's outputs are combined.
    """
    parts = []
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        operands = q[rows], k[rows], v[rows]
        if segment.operation == FULL:
            parts.append(kernels.normalized_attention(*operands, tokens, numbers[rows]))
        else:
            whole = (Segment(0, segment.stop - segment.start, segment.operation),)
            attend = partial(attend_joint, tokens=tokens, kernels=kernels, segments=whole)
            parts.append(normalized_attention(*operands, tokens, numbers[rows], attend))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def image_segments(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Of the image alone, which meets no text: segments by operation; none where every row does the full one."""
    if all(segment.operation == FULL for segment in segments):
        return ()
    runs = [tuple(run) for _, run in groupby(segments, lambda segment: segment.operation)]
    return tuple(Segment(run[0].start, run[-1].stop, run[0].operation) for run in runs)


def text_segments(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The same segments as ranges of rows of text."""
    found, first = [], 0
    for segment in segments:
        last = first + segment.texts * (segment.stop - segment.start)
        found.append(Segment(first, last, segment.operation))
        first = last
    return tuple(found)
