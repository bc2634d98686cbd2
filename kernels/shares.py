"""How much of a real run an operation is: what the tuner begins with, and how it weighs the cases of a choice.

The share of a case is its time in a step of its model, by counting, over that of all the model's cases.
"""

from functools import cache

import torch

from .catalogue import LAST_BLOCK, LOOKING_BACK, OF_A_RING, TWO_ATTENTIONS, Case, Size, cases
from .dispatch import FP8_OPERATIONS, HEAD_PRODUCTS

# of a nominal card: bytes per second, and operations per second in products of 16 bits, of 8 bits, and in fp32
BANDWIDTH, RATE, FP8_RATE, SINGLE_RATE = 3e12, 700e12, 1400e12, 50e12
LAUNCH = 2e-6  # seconds that even the smallest kernel takes
CORRECTIONS = ("moments", "linear_combination")
ONCE_A_STEP = (
    "gather_rows", "gather_modulation", "embed_patches", "combine_then_project", "project", "readout_update",
    "combine_branches", "solver_update", "normal_noise", *CORRECTIONS,
    "modulated_norm", "modulated_norm2", "modulated_norm_fp8", "modulated_norm2_fp8", "gated_residual",  # where none waits
)  # fmt: skip
TWICE_A_LAYER = ("residual_modulated_norm", "residual_modulated_norm_fp8")
# of the runs: those with fp8 linears, a correction, noise, a longer history or a large batch; those of a network in fp32;
# calls of one branch
RARE = 0.1


def calls(case: Case) -> int:
    """How often the operation occurs in a step of the case's model, in the stream and in the form that the case is of."""
    if case.operation in ONCE_A_STEP:
        return 1
    ended = case.operation in ("linear_gelu", "quantize_rows") or (case.operation, case.variant) == (
        "project_slices",
        LAST_BLOCK,
    )
    if case.size.text and ended:
        return 1  # of the last block, whose text stream has ended
    if case.size.text and (case.operation in ("split_heads_norm", "project_heads") or case.variant == TWO_ATTENTIONS):
        return case.size.dual
    if case.operation == "residual_modulated_norm" and case.size.text:
        return case.size.layers  # with the bias of a projection after the attention, without one after the MLP
    return case.size.layers * (2 if case.operation in TWICE_A_LAYER else 1)


def nominal_seconds(case: Case) -> float:
    """The time of a launch on the nominal card: traffic or arithmetic, whichever takes longer."""
    rate = SINGLE_RATE if case.dtype == torch.float32 else FP8_RATE if case.operation == "fp8_linear" else RATE
    return LAUNCH + max(case.bytes_moved / BANDWIDTH, case.flops / rate if case.has_product else 0.0)


def is_rare(case: Case) -> bool:
    """Whether few runs contain the case."""
    single = case.dtype == torch.float32 and case.has_product
    return (
        single
        or case.alternative
        or case.branches == 1
        or case.variant in (LOOKING_BACK, OF_A_RING)
        or case.operation in (*FP8_OPERATIONS, *CORRECTIONS, "normal_noise", "linear_gated_residual")
    )


@cache
def step_seconds(size: Size) -> float:
    """The nominal time of a step of the usual kind: the operations of every run, each in all its variants.

    Of QKV with heads, its parts: the product and the split are cases of their own.
    """
    counted = (case for case in cases(size) if not is_rare(case) and case.operation not in HEAD_PRODUCTS)
    return sum(calls(case) * nominal_seconds(case) for case in counted)


def weight(case: Case) -> float:
    """Parts of a run per second of the case: a launch that takes ``s`` seconds costs ``weight * s`` of a run."""
    return calls(case) * case.size.weight * (RARE if is_rare(case) else 1.0) / step_seconds(case.size)


def share(case: Case) -> float:
    """The part of a run that the case is on the nominal card."""
    return weight(case) * nominal_seconds(case)
