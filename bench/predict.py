"""How long a kernel should take on a card: a model, not a measurement.

A kernel takes a fixed time, and the longer of its traffic and its matrix arithmetic.  Rates are shares of what the card's
large copy and large product reach.  What is left out: caches (tensors below some 50 MB may stay in L2), clocks, and what one
kernel's end hides of the next one's beginning.
"""

from math import ceil

from segue.kernels.matmul import linear_kernel

from .cards import Card
from .kernel_record import ATTENTION, PRODUCT, Kernel

GAP = 1.5e-6  # seconds from one dependent node of a graph to the next, empty kernels included: 1 to 2 us, assumed
COPY_SHARE = 3.8 / 4.3  # of a large copy: the goal for fused elementwise kernels at [4096, 1536], see performance targets
# Output tiles (rows, columns) that a vendor's product may choose from, and the share of the tensor cores' rate that each
# keeps busy: the largest reads its operands least often.  Assumed, but for the first, which a large product is made of.
TILES = ((128, 256, 1.0), (128, 128, 0.9), (64, 128, 0.75), (64, 64, 0.6))
# Share of the rate of a large product, at head dim 64 on an H100 (798 TFLOP/s): cuDNN 408, Triton 400, FlashAttention-2 346
# (35 % of 989, arXiv 2407.08608); PyTorch's memory-efficient kernel about half of that (arXiv 2307.08691).
ATTENTION_SHARE = {
    "cudnn attention": 408 / 798,
    "attention_kernel": 400 / 798,
    "flash attention": 346 / 798,
    "efficient attention": 173 / 798,
}
# Our product's rate beside that of a large product.  By descriptors, before they were pipelined, .39 to .47 on an H200 (rows of
# `segue bench kernels`, c39b9fb; .30 and .38 where K is 4 D); with pointers .67 to .81 on an H100 (3181697).
OWN_PRODUCT_SHARE = 0.45
OWN_PRODUCT = linear_kernel.__name__
ATTENTION_TILE = 128  # queries of one program


def kernel_seconds(kernel: Kernel, card: Card) -> float:
    """Seconds of one run of a kernel; a copy inside a graph is a node like any other."""
    return sum(time_parts(kernel, card).values())


def time_parts(kernel: Kernel, card: Card) -> dict[str, float]:
    """A kernel's predicted seconds by what they are spent on.

    ``arithmetic``: its FLOPs at the rate of a large product; ``idle``: what its arithmetic takes longer, for multiprocessors
    without a tile and for kernels that do not reach that rate; ``memory``; ``launch``.
    """
    moving, computing = kernel.bytes / (COPY_SHARE * card.copy), arithmetic_seconds(kernel, card)
    parts = {"launch": GAP, "arithmetic": 0.0, "idle": 0.0, "memory": 0.0}
    if moving >= computing:
        return parts | {"memory": moving}
    least = kernel.flops / card.rate(kernel.dtype)
    return parts | {"arithmetic": least, "idle": computing - least}


def arithmetic_seconds(kernel: Kernel, card: Card) -> float:
    """Seconds of the matrix arithmetic where that can bind."""
    if kernel.work == PRODUCT:
        share = OWN_PRODUCT_SHARE if kernel.name == OWN_PRODUCT else 1.0
        return min(product_seconds(kernel, card, *tile) for tile in TILES) / share
    if kernel.work == ATTENTION:
        heads, queries, _, _ = kernel.problems[0]
        busy = min(1.0, heads * ceil(queries / ATTENTION_TILE) / card.chip.processors)
        return kernel.flops / (busy * ATTENTION_SHARE[kernel.name] * card.rate(kernel.dtype))
    return 0.0


def product_seconds(kernel: Kernel, card: Card, rows: int, columns: int, share: float) -> float:
    """Seconds with output tiles of ``rows`` x ``columns``: whole waves of as many tiles as there are multiprocessors."""
    tiles = sum(count * ceil(m / rows) * ceil(n / columns) for count, m, _, n in kernel.problems)
    k = max(k for _, _, k, _ in kernel.problems)
    tile_seconds = 2 * rows * columns * k * card.chip.processors / (share * card.rate(kernel.dtype))
    return ceil(tiles / card.chip.processors) * tile_seconds
