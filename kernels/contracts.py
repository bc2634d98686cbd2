"""What every operation promises of its numbers, backend by backend: one line each.

``python -m segue.kernels.contracts`` prints docs/numerics.md.  A new operation needs one line in CONTRACTS, a new backend of
an operation one line in OF_BACKENDS; the tests and the bench judge by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .compiled import FUNCTIONS as FUSED
from .dispatch import WITHOUT_TRITON
from .judgement import BIAS, FACTOR, FLOOR

Kind = Literal["bit-exact", "within rounding", "approximate"]
KINDS: tuple[str, ...] = get_args(Kind)
COMMON = ("reference", "triton")  # the backends that CONTRACTS speaks of


@dataclass(frozen=True)
class Contract:
    """``kind`` and the argument for it.

    ``bound``, of approximate operations: the largest error, relative to the value where rows are quantised, else to the
    largest magnitude.  ``by_sample``: one statistic serves a whole sample, so an error in it is shared there.
    ``truncated``: of halves on CUDA the output in fp32 is what tensor cores sum; they drop the bits that do not fit instead of
    rounding them (PeerJ CS 7:e330; arXiv 2512.07004), so it leans toward zero by up to the whole error, in every kernel.
    """

    kind: Kind
    argument: str
    bound: float | None = None
    by_sample: bool = False
    truncated: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a contract is one of {', '.join(KINDS)}, got {self.kind!r}")
        if not self.argument:
            raise ValueError("a contract needs an argument")
        if (self.bound is not None) != (self.kind == "approximate"):
            raise ValueError(f"an approximate contract, and no other, states a bound: {self.kind}, got {self.bound!r}")
        if self.bound is not None and not 0 < self.bound < 1:
            raise ValueError(f"a bound must lie between 0 and 1, got {self.bound!r}")


def exact(argument: str) -> Contract:
    """The bits of the reference."""
    return Contract("bit-exact", argument)


def rounding(argument: str, by_sample: bool = False, truncated: bool = False) -> Contract:
    """At most the error of rounding, and no bias but that of tensor cores."""
    return Contract("within rounding", argument, by_sample=by_sample, truncated=truncated)


# e4m3 keeps three mantissa bits: rounding to nearest errs by at most 2^-4 of a value, and fp32 rounds that value first
FP8_STEP = 2**-4 * 1.001


def quantised(argument: str) -> Contract:
    """Rows rounded to e4m3."""
    return Contract("approximate", argument, FP8_STEP)


# of the backends "reference" and "triton"
CONTRACTS: dict[str, Contract] = {
    "modulated_norm": rounding("two-pass statistics and modulation in fp32, one rounding of the result"),
    "modulated_norm2": rounding("each output equals modulated_norm of its modulation to the bit"),
    "gated_residual": rounding("product and sum in fp32, one rounding of the state"),
    "residual_modulated_norm": rounding("gated_residual, then modulated_norm of the rounded state: equal to both to the bit"),
    "residual_modulated_norm2": rounding("gated_residual, then modulated_norm2 of the rounded state: equal to both to the bit"),
    "residual2_modulated_norm": rounding("both residuals summed in fp32, the state rounded once where two calls round twice"),
    "modulated_norm_fp8": quantised("modulated_norm in fp32, then one rounding to e4m3 by a scale per row"),
    "modulated_norm2_fp8": quantised("each output equals modulated_norm_fp8 of its modulation to the bit"),
    "residual_modulated_norm_fp8": quantised("the state as gated_residual, its norm rounded to e4m3 by a scale per row"),
    "residual_modulated_norm2_fp8": quantised(
        "gated_residual, then modulated_norm2_fp8 of the state: equal to both to the bit"
    ),
    "residual2_modulated_norm_fp8": quantised(
        "the state as residual2_modulated_norm, its norm rounded to e4m3 by a scale per row"
    ),
    "quantize_rows": quantised("GELU and scale in fp32, one rounding to e4m3"),
    "quantize_streams": quantised("each output equals quantize_rows of its stream to the bit"),
    "fp8_linear": rounding("of the quantised operands: their products are exact in fp32, summed there, rounded once"),
    "split_heads_norm": rounding("sum of squares in fp32, one rounding of q and k; v, and all without a norm, to the bit"),
    "joint_heads_norm": rounding("as split_heads_norm; v, and all without norms, are copies to the bit"),
    "attention": rounding("scores, maximum and sums in fp32; probabilities are rounded to meet v, as in flash attention"),
    "perturbed_attention": rounding(
        "identity and skip to the bit; the blur is attention of the mean query, itself rounded; image identity: scores and "
        "softmax in fp32, probabilities rounded to meet v"
    ),
    "query_spread": rounding("scores in fp32, of products summed there; their maximum less their mean", truncated=True),
    "sparse_attention": rounding(
        "of the queries that are chosen attention, of the others the mean of v in fp32; queries whose spreads differ by a "
        "rounding may change places"
    ),
    "attention_lse": rounding("attention of the same backend; maximum and logarithm of the sum in fp32", truncated=True),
    "merge_normalized": rounding("shares of the parts, extrapolation and norms in fp32, one rounding of the result"),
    "normalized_attention": rounding(
        "attentions over parts of the keys, rounded before they are joined, then merge_normalized"
    ),
    "linear": rounding("PyTorch's own product"),
    "linear_gelu": rounding("sum of products, bias and GELU in fp32, one rounding; PyTorch rounds before the GELU too"),
    "linear_gated_residual": rounding("sum of products, bias, gate and state in fp32, one rounding of the state"),
    "grouped_linear": rounding("sum of products and bias in fp32, one rounding"),
    "grouped_linear_gelu": rounding("as linear_gelu"),
    "project_slices": rounding("sum of products in fp32, one rounding; a bias that is left to the residual is added in fp32"),
    "project_heads": rounding("linear, then split_heads_norm; as one kernel of the sum of products in fp32, rounded once"),
    "project_joint_heads": rounding("as project_heads, of both streams"),
    "embed_patches": rounding("sum of products, bias and positions in fp32, one rounding; PyTorch rounds the tokens too"),
    "combine_then_project": rounding("norm and combination in fp32, rounded once to meet the weight, product kept in fp32"),
    "project": rounding("norm in fp32, rounded once to meet the weight; Triton keeps the product in fp32"),
    "readout_update": rounding("combine_then_project, then solver_update in fp32"),
    "gather_rows": exact("copies"),
    "gather_modulation": exact("copies"),
    "combine_branches": rounding("a product and a sum per branch in fp32, fused or not"),
    "solver_update": rounding("products and sums in fp32, fused or not"),
    "moments": rounding("sums in fp32, in blocks; products about block means, merged in fp32", by_sample=True),
    "linear_combination": rounding("a product and a sum per state in fp32, fused or not"),
    "normal_noise": rounding("the same Philox words to the bit, then logarithm, root, sine and cosine in fp32"),
}

# of every other backend of an operation
OF_BACKENDS: dict[tuple[str, str], Contract] = {
    ("attention", "sdpa"): rounding("cuDNN's, flash or efficient attention: as our own, in another order of keys"),
    ("attention", "bounded"): rounding("as our own; powers of two up to 2^100 instead of a running maximum, summed in fp32"),
    ("attention", "xformers"): rounding("flash attention: as our own, in another order of keys"),
    ("linear_gated_residual", "deferred"): rounding("the product rounded as in reference; the residual norm adds it in fp32"),
    ("linear_gelu", "cublaslt"): rounding("the epilogue computes the tanh form of GELU on the fp32 sum"),
    ("fp8_linear", "scaled_mm"): rounding("partial sums of the tensor cores are promoted to fp32 every few products"),
    ("fp8_linear", "scaled_mm_fast"): Contract(
        "approximate", "tensor cores keep 14 bits of a sum: nearly 2 % at D = 4096 (arXiv 2412.19437, section 3.3.2)", 0.02
    ),
}
OF_BACKENDS |= {
    (operation, "onednn"): rounding("products summed in fp32, bias and GELU there too, one rounding")
    for operation in ("linear", "linear_gelu", "project_slices")
}
OF_BACKENDS |= {
    (name, "compiled"): rounding("the reference's formula in one pass, in fp32 between loads and stores") for name in FUSED
}


def contract(operation: str, backend: str = "reference") -> Contract:
    """The contract of a backend of an operation.  Raises ``ValueError`` where none is written down."""
    found = CONTRACTS.get(operation) if backend in COMMON else OF_BACKENDS.get((operation, backend))
    if found is None:
        raise ValueError(f"backend {backend!r} of {operation!r} has no contract in kernels/contracts.py")
    return found


def shared_dimensions(operation: str | None, dimensions: int) -> int:
    """How many of the last dimensions of an output share the errors of one statistic; see :func:`.judgement.bias`."""
    promised = CONTRACTS.get(operation or "")
    return dimensions - 1 if promised and promised.by_sample else 1


def judges_bias(operation: str | None, output: Tensor, arguments: object) -> bool:
    """Whether the errors of an output may not lean: all but those in fp32 that tensor cores sum."""
    promised = CONTRACTS.get(operation or "")
    halves = any(isinstance(x, Tensor) and x.is_floating_point() and x.itemsize == 2 for x in tree_leaves(arguments))
    return not (promised and promised.truncated and halves and output.is_cuda and output.dtype == torch.float32)


def magnitude_of_summands(operation: str, arguments: object) -> float:
    """Of what an operation averages over whole samples; 0 for one that does not.  See :func:`.judgement.error_bound`."""
    if not contract(operation).by_sample:
        return 0.0
    return max(float(x.abs().mean()) for x in tree_leaves(arguments) if isinstance(x, Tensor))


def page() -> str:
    """The contracts as docs/numerics.md."""
    own = {operation: COMMON[:1] if operation in WITHOUT_TRITON else COMMON for operation in CONTRACTS}
    rows = [(operation, ", ".join(own[operation]), promised) for operation, promised in CONTRACTS.items()]
    rows += [(operation, backend, promised) for (operation, backend), promised in OF_BACKENDS.items() if backend != "compiled"]
    rows.sort(key=lambda row: list(CONTRACTS).index(row[0]))
    lines = [
        f"| `{name}` | {backends} | {promised.kind} | {promised.argument}{_bound(promised)} |"
        for name, backends, promised in rows
    ]
    truncated = " and ".join(f"`{operation}`" for operation, promised in CONTRACTS.items() if promised.truncated)
    bounds = {"factor": f"{FACTOR:g}", "floor": f"{FLOOR:g}", "bias": f"{BIAS:g}"}
    return PAGE.format(table="\n".join(lines), truncated=truncated, **bounds)


def _bound(promised: Contract) -> str:
    return "" if promised.bound is None else f"; error at most {promised.bound:.3g}"


PAGE = """# What the numbers promise

Printed by `python -m segue.kernels.contracts` from the table that the tests judge by: edit that, not this page.

- **bit-exact**: the same bits as the reference function, on every device.
- **within rounding**: against fp64, at most {factor} times the error that PyTorch makes in the same precision, plus {floor}
  roundings of the output; and no bias: the mean error, upward or away from zero, is at most {bias} of the errors' root mean
  square, beyond what chance explains. An error is averaged away over the calls of a run, a bias adds up. A mean of large
  numbers may be small, and is allowed the rounding of what it is of. Of halves on CUDA the bias of {truncated}
  is not judged where it is in fp32: tensor cores sum, and they drop the bits that do not fit instead of rounding them (PeerJ CS
  7:e330).
- **approximate**: off unless asked for, with an error of its own. Of quantised rows it is relative to each value that is a
  normal number of the format; of sums, relative to the largest magnitude.

The Triton kernels are held to it in Triton's interpreter in fp32 and fp16 (bf16 needs a GPU), with a few channels of the
activations 30 to 100 times as large as the rest among the inputs; a backend of the vendor on a device that has it.

The backend `compiled`, where an operation has it, stays within rounding: it is the reference's formula in one pass, in fp32
between loads and stores.

| operation | backends | promise | argument |
|---|---|---|---|
{table}

A whole block and whole runs are held to fp64 too: `tests/models/test_block_digest.py` compares a block of SD3.5-medium at true
width with numbers stored from another implementation, `tests/engine/test_trajectories.py` runs of 28 calls.
"""


if __name__ == "__main__":
    print(page(), end="")
