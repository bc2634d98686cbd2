"""The operations at the sizes of real models: what is compiled ahead of time, tuned, and measured.

A case makes its arguments through a :class:`Factory`, so that the same case can be traced on ``meta`` tensors, run on random
numbers, or timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import (
    adaln,
    adaln_fp8,
    attention,
    attention_lse,
    combine,
    embed,
    flash_attention,
    fp8,
    gather,
    gram,
    head_products,
    mlp,
    normalized_attention,
    philox,
    qkv,
    readout,
    sparse_attention,
)
from .catalogue_sizes import SIZES, Size
from .record import REFERENCE, TRITON

__all__ = ["SIZES", "Case", "Factory", "Size", "cases"]


# the modules whose operations contain matrix products
PRODUCTS = (attention, embed, head_products, mlp, readout, sparse_attention)
FP8_CAPABILITY = 89
EPS = 1e-6
# of the table that holds the numbers of every call: the scale of the state, the solver's six, and a factor for each branch
CALLS, CALL_NUMBERS = 33, 10
LOOKING_BACK = "two rows back"  # of solver updates: weighing what the row before the previous one left
LAST_BLOCK = "of the image alone"  # whose text stream ends before
TWO_ATTENTIONS = "of two attentions"  # of a dual block, whose outputs are quantised together
OF_A_RING = "of a ring"  # a table that holds the next calls of every sample


@dataclass(frozen=True)
class Factory:
    """Makes the tensors of a case on ``device``: unit normal numbers, or nothing on ``meta``."""

    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(self.seed + sum(shape))
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)

    def single(self, *shape: int) -> Tensor:
        """fp32 whatever the dtype of the case: state, tables, scalars."""
        return self(*shape, dtype=torch.float32)

    def counters(self, count: int) -> Tensor:
        """Call numbers 0, 1, 2, ... [count] int64."""
        return torch.arange(count, device=self.device)


@dataclass(frozen=True)
class Case:
    """One operation at one size: its kernel, its reference, and how to make the arguments of both.

    Traffic is counted for activations of ``dtype``, in which matrix products are made; where an operation has none
    (``has_product`` is False), its arithmetic never binds.
    """

    operation: str
    size: Size
    kernel: Callable
    reference: Callable
    arguments: Callable[[Factory], tuple[Any, ...]]
    bytes_moved: int
    flops: int
    minimum_capability: int = 80
    variant: str = ""
    dtype: torch.dtype = torch.bfloat16
    has_product: bool = False
    backend: str = "triton"  # whose function the kernel is
    branches: int = 2  # that are live in the call which it is of
    alternative: bool = False  # the same work as the case before it, by another function of the same backend
    complete: Callable[[Callable], Callable] = lambda function: function  # the form of a function by which it is compared

    @property
    def name(self) -> str:
        return f"{self.operation}{self.variant and ' ' + self.variant}, {self.size.name}"

    @property
    def vendor(self) -> bool:
        """Whether the kernel is the vendor's: nothing of it is compiled here, and it needs its device."""
        return self.backend != "triton"


def _case(module: Any, operation: str, size: Size, arguments: Callable, traffic: int, work: int, **more: Any) -> Case:
    complete = more.get("complete", lambda function: function)
    kernel, reference = (complete(getattr(record, operation)) for record in (TRITON, REFERENCE))
    return Case(operation, size, kernel, reference, arguments, traffic, work, **more, has_product=module in PRODUCTS)


def cases(size: Size, dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """Every operation at this size with activations of ``dtype``, in the order of a forward pass."""
    yield from _beginning(size, dtype)
    yield from _norms(size, dtype)
    yield from _attention(size, dtype)
    if size.text:
        yield from _guided_attention(size, dtype)
    yield from _linears(size, dtype)
    yield from _quantised(size, dtype)
    if dtype == torch.bfloat16:  # in which the vendor's row-wise products are given
        yield from _fp8_products(size)
    yield from _readouts(size, dtype)
    yield from _updates(size)


def _beginning(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    """The table row of the call, the modulation, and the tokens."""
    width, samples, inputs = size.modulations * size.width, size.samples, size.channels * size.patch**2

    def call(make: Factory) -> tuple[Tensor, Tensor]:
        return make.single(CALLS, CALL_NUMBERS), make.counters(samples)

    def rows(make: Factory) -> tuple[Tensor, Tensor]:
        return make(64, size.width), make.counters(size.rows)

    def modulation(make: Factory) -> tuple:
        condition = make.counters(2 * samples).view(2, samples) % 16
        return make(64, width), make.counters(4), make.counters(samples) % 4, condition, 16, make(2 * samples, width)

    def ring(make: Factory) -> tuple:
        """Samples at different calls: of 4 times the entry of every slot and sample that each needs, and others."""
        conditions = 2 * samples
        call, condition = make.counters(samples) % 8, make.counters(conditions).view(2, samples)
        held = make.counters(4)[:, None] + 4 * (call >= 4).repeat(2)  # [4, conditions]
        table, out = make(4 * conditions, width), make(conditions, width)
        return table, make.counters(8), call, condition, conditions, out, held.flatten()

    def tokens(make: Factory, roots: int, scaled: bool) -> tuple:
        weight = make(size.width, size.channels, size.patch, size.patch) / inputs**0.5
        hidden, scale = make(roots, samples, size.tokens, size.width), make.single(CALLS, CALL_NUMBERS)[:samples, 0]
        positions = make(size.tokens, size.width)
        return make.single(*size.latent), weight, make(size.width), positions, hidden, scale if scaled else None

    traffic = gather.bytes_moved(samples, CALL_NUMBERS, 4)
    yield _case(gather, "gather_rows", size, call, traffic, 0, dtype=torch.float32)
    traffic = gather.bytes_moved(size.rows, size.width, dtype.itemsize)
    yield _case(gather, "gather_rows", size, rows, traffic, 0, variant="of embeddings", dtype=dtype)
    traffic = gather.modulation_bytes_moved(2 * samples, width, dtype.itemsize)
    yield _case(gather, "gather_modulation", size, modulation, traffic, 0, dtype=dtype)
    yield _case(gather, "gather_modulation", size, ring, traffic, 0, variant=OF_A_RING, dtype=dtype)
    for scaled in (False,) if size.text else (False, True):  # the preconditioning of networks that predict noise
        for roots in (2, 1):
            traffic = embed.bytes_moved(samples, roots, size.tokens, inputs, size.width, dtype.itemsize)
            variant = ", ".join(filter(None, ("scaled" * scaled, "one root" * (roots == 1))))
            more = {"variant": variant, "branches": roots, "dtype": dtype}
            work = embed.flops(samples, size.tokens, inputs, size.width)
            yield _case(embed, "embed_patches", size, partial(tokens, roots=roots, scaled=scaled), traffic, work, **more)


# states [R, L, D], vectors [R, 1, D], outputs
NORMS = {"modulated_norm": (1, 2, 1), "gated_residual": (2, 1, 0), "residual_modulated_norm": (2, 3, 1)}
DUAL_NORMS = {
    "modulated_norm2": (1, 4, 2),
    "residual_modulated_norm2": (2, 5, 2),
    "residual2_modulated_norm": (3, 4, 1),
}


def _norms(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    """Of the image stream, then of the text's; after a joint attention the residual brings the bias of its projection."""
    image, text = (size.rows, size.tokens), (size.rows, size.text)
    for operation, (*_, outputs) in (NORMS | (DUAL_NORMS if size.dual else {})).items():
        yield _norm(operation, size, dtype, *image)
        if outputs:
            yield _norm(operation, size, dtype, *image, in_fp8=True)
    if not size.text:
        return
    for operation in ("residual_modulated_norm", "residual2_modulated_norm") if size.dual else ("residual_modulated_norm",):
        yield _norm(operation, size, dtype, *image, biased=True, variant="with bias")
    yield _norm("residual_modulated_norm", size, dtype, *text, biased=True, variant="of the text, with bias")
    one_branch = {"variant": "of the text, one branch", "branches": 1}
    for operation in ("modulated_norm", "residual_modulated_norm"):
        for in_fp8 in (False, True):
            yield _norm(operation, size, dtype, *text, in_fp8=in_fp8, variant="of the text")
            yield _norm(operation, size, dtype, size.samples, size.text, in_fp8=in_fp8, **one_branch)
    yield _norm("gated_residual", size, dtype, size.samples, size.text, **one_branch)


def _norm(
    operation: str, size: Size, dtype: torch.dtype, rows: int, tokens: int, biased: bool = False, in_fp8: bool = False,
    **more: Any,
) -> Case:  # fmt: skip
    shape = (rows, tokens, size.width)
    states, vectors, outputs = (NORMS | DUAL_NORMS)[operation]

    def arguments(make: Factory) -> tuple:
        modulation = make(rows, vectors * size.width)[:, None].chunk(vectors, dim=-1)
        bias = (EPS, make(size.width)) if biased else ()
        return *(make(*shape) for _ in range(states)), *modulation, *bias

    traffic = adaln.bytes_moved(*shape, dtype.itemsize, states - 1, outputs, in_fp8)
    work = adaln.flops(*shape, states - 1, outputs) + biased * rows * tokens * size.width
    more |= {"dtype": dtype, "minimum_capability": FP8_CAPABILITY if in_fp8 else 80}
    module, name = (adaln_fp8, f"{operation}_fp8") if in_fp8 else (adaln, operation)
    return _case(module, name, size, arguments, traffic, work, **more)


def _attention(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    rows, tokens, heads, head_dim = size.rows, size.tokens + size.text, size.heads, size.head_dim

    def projections(make: Factory, norm: bool) -> tuple:
        weights = (make(head_dim), make(head_dim)) if norm else None
        streams = [make(rows, count, 3 * size.width) for count in (size.tokens, size.text) if count]
        return (*streams, heads, weights, weights) if size.text else (*streams, heads, *weights)

    def alone(make: Factory) -> tuple:
        return make(rows, size.tokens, 3 * size.width), heads, make(head_dim), make(head_dim)

    operation, parts = ("joint_heads_norm", 3) if size.text else ("split_heads_norm", 2)
    for norm in (True, False) if size.text else (True,):
        traffic = qkv.bytes_moved(rows, tokens, size.width, dtype.itemsize, parts)
        variant, work = "" if norm else "without norm", qkv.flops(rows, tokens, size.width, norm)
        yield _case(qkv, operation, size, partial(projections, norm=norm), traffic, work, variant=variant, dtype=dtype)

    if size.text and size.dual:
        traffic = qkv.bytes_moved(rows, size.tokens, size.width, dtype.itemsize, 2)
        work = qkv.flops(rows, size.tokens, size.width, True)
        yield _case(qkv, "split_heads_norm", size, alone, traffic, work, variant="of the image alone", dtype=dtype)

    def split(make: Factory, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        return make(3, rows, tokens, heads, head_dim, dtype=dtype).transpose(2, 3).unbind()

    counts = (rows, heads, tokens, tokens, head_dim)
    traffic, work = attention.bytes_moved(*counts, dtype.itemsize), attention.flops(*counts)
    yield _case(attention, "attention", size, split, traffic, work, dtype=dtype)
    if size.qk_norm and dtype == torch.bfloat16:
        kernel = flash_attention.attention_bounded
        yield Case(
            "attention", size, kernel, attention.attention, split, traffic, work, variant="without a maximum", dtype=dtype,
            has_product=True, alternative=True,
        )  # fmt: skip
    if not size.text:  # ProbSparse attention is of DiT and SiT
        count = sparse_attention.usual_budget(tokens)

        def ranked(make: Factory) -> tuple[Tensor, Tensor, int]:
            q, k, _ = split(make)
            return q, k, count

        ranks = (rows, heads, tokens, count, head_dim)
        moved, product = sparse_attention.bytes_moved(*ranks, dtype.itemsize), sparse_attention.flops(*ranks)
        yield _case(sparse_attention, "query_spread", size, ranked, moved, product, dtype=dtype)
    if size.single and dtype != torch.float32:
        traffic, arguments = attention.bytes_moved(*counts, 4), partial(split, dtype=torch.float32)
        yield _case(attention, "attention", size, arguments, traffic, work, variant="in fp32", dtype=torch.float32)


def _guided_attention(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    """What normalized attention guidance adds: the attention among image tokens with its log-sum-exp, and the merge."""
    rows, tokens, text, heads, head_dim = size.samples, size.tokens, size.text, size.heads, size.head_dim
    total = tokens + 2 * text

    def shared(make: Factory) -> tuple[Tensor, ...]:
        q, k, v = make(3, rows, total, heads, head_dim).transpose(2, 3).unbind()
        return q, k[:, :, :tokens], v[:, :, :tokens]

    def parts(make: Factory) -> tuple[Tensor, ...]:
        counts = total, tokens + text, tokens, text
        each = ((make(rows, count, size.width), make.single(rows, heads, count)) for count in counts)
        return *(tensor for part in each for tensor in part), make.single(rows, 3).abs() + 1

    counts = rows, heads, total, tokens, head_dim
    traffic = attention.bytes_moved(*counts, dtype.itemsize) + 4 * rows * heads * total
    kernel, reference = flash_attention.attention_lse_triton, attention_lse.attention_lse
    yield Case(
        "attention_lse", size, kernel, reference, shared, traffic, attention.flops(*counts), dtype=dtype, has_product=True,
        branches=1,
    )  # fmt: skip
    traffic = normalized_attention.bytes_moved(rows, tokens, text, heads, size.width, dtype.itemsize)
    work = normalized_attention.flops(rows, tokens, text, size.width)
    yield _case(normalized_attention, "merge_normalized", size, parts, traffic, work, dtype=dtype, branches=1)


def _linears(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    rows, tokens, width = size.rows, size.tokens, size.width

    def layer(make: Factory, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        return make(outputs, inputs) / inputs**0.5, make(outputs)

    def gelu(make: Factory) -> tuple[Tensor, ...]:
        return make(rows, tokens, width), *layer(make, width, 4 * width)

    def residual(make: Factory) -> tuple[Tensor, ...]:
        return make(rows, tokens, width), make(rows, tokens, 4 * width), *layer(make, 4 * width, width), make(rows, 1, width)

    def grouped(make: Factory, inputs: int, outputs: int) -> tuple[Tensor, ...]:
        streams = (make(rows, count, inputs) for count in (tokens, size.text))
        return tuple(x for stream in streams for x in (stream, *layer(make, inputs, outputs)))

    def slices(make: Factory, streams: int) -> tuple[Tensor, ...]:
        joint = make(rows, tokens + size.text, width)
        parts = (joint[:, :tokens], joint[:, tokens:])[:streams]
        return tuple(x for part in parts for x in (part, *layer(make, width, width)))

    count, itemsize, work = rows * tokens, dtype.itemsize, mlp.flops(rows * tokens, width, 4 * width)
    yield _case(mlp, "linear_gelu", size, gelu, mlp.bytes_moved(count, width, 4 * width, itemsize), work, dtype=dtype)
    traffic = mlp.bytes_moved(count, 4 * width, width, itemsize, residual=True)
    yield _case(mlp, "linear_gated_residual", size, residual, traffic, work, dtype=dtype)
    if size.text:
        counts = (count, rows * size.text)
        for name, inputs, outputs, variant in (
            ("grouped_linear", width, 3 * width, ""),
            ("grouped_linear_gelu", width, 4 * width, ""),
            ("grouped_linear", 4 * width, width, "4 D to D"),
        ):
            traffic = sum(mlp.bytes_moved(n, inputs, outputs, itemsize) for n in counts)
            work, arguments = mlp.flops(sum(counts), inputs, outputs), partial(grouped, inputs=inputs, outputs=outputs)
            yield _case(mlp, name, size, arguments, traffic, work, variant=variant, dtype=dtype)
        for streams, variant in ((2, ""), (1, LAST_BLOCK)):
            traffic = sum(mlp.bytes_moved(n, width, width, itemsize) for n in counts[:streams])
            work, arguments = mlp.flops(sum(counts[:streams]), width, width), partial(slices, streams=streams)
            more = {"variant": variant, "dtype": dtype, "complete": mlp.with_biases}
            yield _case(mlp, "project_slices", size, arguments, traffic, work, **more)
        yield from _head_products(size, dtype)


def _head_products(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    """QKV of both streams, with the norms of heads and without, and of the image alone."""
    rows, tokens, text, width, heads = size.rows, size.tokens, size.text, size.width, size.heads

    def layer(make: Factory, count: int) -> tuple[Tensor, ...]:
        return make(rows, count, width), make(3 * width, width) / width**0.5, make(3 * width)

    def joint(make: Factory, norm: bool) -> tuple:
        weights = (make(size.head_dim), make(size.head_dim)) if norm else None
        return *layer(make, tokens), *layer(make, text), heads, weights, weights

    def alone(make: Factory) -> tuple:
        return *layer(make, tokens), heads, make(size.head_dim), make(size.head_dim)

    for norm in (True, False):
        traffic = sum(mlp.bytes_moved(rows * count, width, 3 * width, dtype.itemsize) for count in (tokens, text))
        work = mlp.flops(rows * (tokens + text), width, 3 * width)
        more = {"variant": "" if norm else "without norm", "dtype": dtype}
        yield _case(head_products, "project_joint_heads", size, partial(joint, norm=norm), traffic, work, **more)
    if size.dual:
        traffic = mlp.bytes_moved(rows * tokens, width, 3 * width, dtype.itemsize)
        work = mlp.flops(rows * tokens, width, 3 * width)
        yield _case(head_products, "project_heads", size, alone, traffic, work, dtype=dtype)


def _quantised(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    for width, gelu in ((size.width, False), (4 * size.width, True)):
        shape = (size.rows, size.tokens, width)

        def arguments(make: Factory, shape: tuple[int, ...] = shape, gelu: bool = gelu) -> tuple[Tensor, bool]:
            return make(*shape), gelu

        traffic, work = fp8.bytes_moved(*shape, dtype.itemsize), fp8.flops(*shape, gelu)
        more = {"minimum_capability": FP8_CAPABILITY, "variant": "with GELU" if gelu else "", "dtype": dtype}
        yield _case(fp8, "quantize_rows", size, arguments, traffic, work, **more)
    if size.text:
        yield from _quantised_streams(size, dtype)


def _quantised_streams(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    """What the attentions of a block leave, the joint one in slices, and what its MLPs pass on."""
    rows, text, image = size.rows, size.text, size.tokens

    def attended(make: Factory, dual: bool) -> tuple:
        joint = make(rows, image + text, size.width)
        return False, joint[:, :image], joint[:, image:], *([make(rows, image, size.width)] if dual else [])

    def hidden(make: Factory) -> tuple:
        return True, *(make(rows, tokens, 4 * size.width) for tokens in (image, text))

    forms = [("", partial(attended, dual=False), (image, text), False), ("with GELU", hidden, (image, text), True)]
    if size.dual:
        forms.append((TWO_ATTENTIONS, partial(attended, dual=True), (image, text, image), False))
    for variant, arguments, counts, gelu in forms:
        shapes = [(rows, tokens, size.width * (4 if gelu else 1)) for tokens in counts]
        traffic = sum(fp8.bytes_moved(*shape, dtype.itemsize) for shape in shapes)
        work = sum(fp8.flops(*shape, gelu) for shape in shapes)
        more = {"minimum_capability": FP8_CAPABILITY, "variant": variant, "dtype": dtype}
        yield _case(fp8, "quantize_streams", size, arguments, traffic, work, **more)


def _fp8_products(size: Size) -> Iterator[Case]:
    """The two products of the MLP, with sums in fp32 and with Hopper's shorter ones."""
    rows, tokens, width = size.rows, size.tokens, size.width
    for what, inputs, outputs in (("D to 4 D", width, 4 * width), ("4 D to D", 4 * width, width)):

        def operands(make: Factory, inputs: int = inputs, outputs: int = outputs) -> tuple[Tensor, ...]:
            scales = make.single(rows, tokens).abs(), make.single(outputs).abs() / inputs**0.5
            values, weight = make(rows, tokens, inputs, dtype=fp8.FP8), make(outputs, inputs, dtype=fp8.FP8)
            return values, scales[0], weight, scales[1], make(outputs)

        count = rows * tokens
        traffic, work = fp8.product_bytes_moved(count, inputs, outputs), mlp.flops(count, inputs, outputs)
        for fast in (False, True):
            kernel = partial(fp8.fp8_linear_scaled_mm, fast_accumulation=fast)
            variant = f"{what}, fast sums" if fast else what
            yield Case(
                "fp8_linear", size, kernel, fp8.fp8_linear, operands, traffic, work, FP8_CAPABILITY, variant,
                has_product=True, backend="scaled_mm_fast" if fast else "scaled_mm", alternative=fast,
            )  # fmt: skip


def further(make: Factory, size: Size, earlier: int) -> tuple[Tensor, ...]:
    """What a solver update takes where it weighs earlier rows: nothing, or what they left [B, E, C, H, W]."""
    return (make.single(size.latent[0], earlier, *size.latent[1:]),) if earlier else ()


def _readouts(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    samples, tokens, width, outputs = size.samples, size.tokens, size.width, size.outputs

    def head(make: Factory, *leading: int) -> tuple[Tensor, ...]:
        return make(*leading, tokens, width), *make(*leading, 2 * width).chunk(2, dim=-1)

    def project(make: Factory) -> tuple[Tensor, ...]:
        return *head(make, samples), make(outputs, width) / width**0.5, make(outputs)

    def combined(make: Factory) -> tuple:
        weight, bias = make(outputs, width) / width**0.5, make(outputs)
        return *head(make, 2, samples), make.single(samples, 2), (0, 1), weight, bias

    def update(make: Factory, branches: int, earlier: int = 0) -> tuple:
        numbers = make.single(samples, CALL_NUMBERS + earlier)  # the row of the call
        weight, bias = make(outputs, width) / width**0.5, make(outputs)
        combination = numbers[:, 7 + earlier : 7 + earlier + branches], tuple(range(branches)), weight, bias
        states = *(make.single(*size.latent) for _ in range(2)), numbers[:, 1 : 7 + earlier], None
        counters = make.counters(samples), *further(make, size, earlier)
        return *states, *head(make, 2, samples), *combination, size.patch, *counters

    one = partial(update, branches=1)
    operations = (
        ("project", project, 1, "", 0), ("combine_then_project", combined, 2, "", 0),
        ("readout_update", partial(update, branches=2), 2, "", 0), ("readout_update", one, 1, "one branch", 0),
        ("readout_update", partial(update, branches=2, earlier=1), 2, LOOKING_BACK, 1),
    )  # fmt: skip
    for operation, arguments, branches, variant, earlier in operations:
        counts = (samples, branches, tokens, width, outputs)
        traffic = readout.bytes_moved(*counts, dtype.itemsize, operation == "readout_update", earlier)
        more = {"variant": variant, "branches": 1 if variant == "one branch" else 2, "dtype": dtype}
        yield _case(readout, operation, size, arguments, traffic, readout.flops(*counts), **more)


def _updates(size: Size) -> Iterator[Case]:
    """On the state, which is fp32 whatever the dtype of the activations."""
    samples, elements = size.samples, size.tokens * size.outputs
    case = partial(_case, dtype=torch.float32)

    def update(make: Factory, noise: bool, earlier: int) -> tuple:
        states = [make.single(*size.latent) for _ in range(4)]
        row = make.single(samples, CALL_NUMBERS + earlier)[:, 1 : 7 + earlier]
        return *states[:3], states[3] if noise else None, row, make.counters(samples), *further(make, size, earlier)

    def branches(make: Factory) -> tuple:
        outputs = make.single(2, samples, size.tokens, size.outputs)
        return outputs, make.single(samples, 2, size.channels), (0, 1), size.patch, *size.latent[2:]

    def states(make: Factory, outputs: int = 0) -> tuple:
        """What adaptive projection looks at: a prediction, its difference from another, the state, an average."""
        factors = (make.single(samples, outputs, 4),) if outputs else ()
        return (1,), *factors, *(make.single(*size.latent) + 1 for _ in range(4))

    def noise(make: Factory) -> tuple:
        return make.counters(samples), make.counters(samples), elements

    traffic, work = combine.combine_bytes_moved(samples, 2, elements, 4), combine.combine_flops(samples, 2, elements)
    yield case(combine, "combine_branches", size, branches, traffic, work)
    for variant, noisy, earlier in (("", False, 0), (LOOKING_BACK, False, 1), ("with noise", True, 0)):
        counts = samples, elements, noisy, earlier
        operands = partial(update, noise=noisy, earlier=earlier)
        traffic, work = combine.bytes_moved(*counts), combine.flops(*counts)
        yield case(combine, "solver_update", size, operands, traffic, work, variant=variant)
    yield case(philox, "normal_noise", size, noise, philox.bytes_moved(samples, elements), philox.flops(samples, elements))
    for operation, outputs in (("moments", 0), ("linear_combination", 2)):
        counts = samples, elements, 4, outputs
        yield case(gram, operation, size, partial(states, outputs=outputs), gram.bytes_moved(*counts), gram.flops(*counts))
