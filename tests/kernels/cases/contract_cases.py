"""The table of contracts: with outlier channels, as activations of transformers have them, and where bits are promised."""

import math

import pytest
import torch
from interpreted import once_fast
from torch.utils._pytree import tree_leaves

from segue.kernels import attention, dispatch, philox, qkv
from segue.kernels.catalogue import Case, Factory, Size, cases
from segue.kernels.contracts import contract
from segue.kernels.flash_attention import attention_triton

CHANNELS = 4
SIZES = [
    Size("two streams", 1, 36, 13, 96, 3, 2, CHANNELS, dual=True),
    Size("one stream", 2, 16, 0, 72, 1, 2, CHANNELS),
]
# without a running maximum scores are bounded, and there are no outliers: attention_cases judge it
KERNELS = [case for size in SIZES for case in cases(size) if not (case.vendor or case.alternative)]
CASES = [case for case in KERNELS if case.operation not in dispatch.QUANTISED]  # adaln_fp8_cases and fp8_cases judge those


class Outliers(Factory):
    """Three channels of every activation are 30, 60 and 100 times as large as the others; one of a latent's."""

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        x = super().__call__(*shape, dtype=dtype)
        if len(shape) == 4 and shape[1] == CHANNELS:  # a latent [B, C, H, W]
            x[:, 1] *= 30
        elif len(shape) > 2 and shape[-1] > 8:
            for channel, factor in ((3, 30), (shape[-1] // 2, 100), (shape[-1] - 2, 60)):
                x[..., channel] *= factor
        return x


def exact_noise(seed, call, numel):
    """Box-Muller in fp64 on the fp32 uniforms; the reference has nothing in fp64 that could make it exact."""
    words = philox.random_words(seed, call, (numel + 3) // 4 * 4)
    u, turns = (philox.uniform(words[:, start::2]).double() for start in (0, 1))
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * turns
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :numel]


def everything(function):
    """A function that returns every floating-point tensor of its result and of its operands, written in place or not."""

    def call(*arguments):
        leaves = tree_leaves((function(*arguments), arguments))
        return tuple(leaf for leaf in leaves if torch.is_tensor(leaf) and leaf.is_floating_point())

    return call


@pytest.mark.parametrize("case", once_fast(CASES), ids=lambda case: case.name)
def test_with_outlier_channels(case: Case, dtype, device, seed, judge):
    arguments = case.arguments(Outliers(device, dtype, seed))
    if case.operation in ("attention", "attention_lse"):
        arguments[0].div_(100)  # scores of some tens; at thousands, rounding them decides which key wins
    exact = exact_noise if case.operation == "normal_noise" else everything(case.reference)
    judge(everything(case.kernel), everything(case.reference), *arguments, exact=exact, operation=case.operation)


def test_every_operation_meets_outliers():
    following = set(dispatch.FOLLOWERS) - {"attention_lse"}  # of which one alone has a kernel of its own
    with_kernels = set(dispatch.OPERATIONS) - following - set(dispatch.WITHOUT_TRITON)
    assert {case.operation for case in CASES} == with_kernels - set(dispatch.QUANTISED)
    assert set(dispatch.QUANTISED) <= with_kernels


def test_the_outliers_are_there(device):
    x = Outliers(device, torch.float32)(2, 5, 64)
    largest = x.abs().mean((0, 1)).sort(descending=True).values
    assert largest[2] > 5 * largest[3] and largest[3] < 3


@pytest.mark.parametrize("case", [case for case in CASES if contract(case.operation).kind == "bit-exact"], ids=lambda c: c.name)
def test_bits_that_are_promised(case: Case, dtype, device, seed):
    """Of every bit pattern, NaN among them: compared as integers."""
    table, *rest = case.arguments(Factory(device, dtype, seed))
    bits = table.view(torch.int32 if table.dtype == torch.float32 else torch.int16)
    bits.copy_(torch.arange(bits.numel(), device=device).view(bits.shape) * 2654435761)
    ours, theirs = (function(table, *rest).view(bits.dtype) for function in (case.kernel, case.reference))
    assert torch.equal(ours, theirs) and len(ours.unique()) > ours.numel() // 2


def test_heads_that_are_only_moved_keep_their_bits(dtype, normal):
    image, text = normal(2, 63, 3 * 96, dtype=dtype), normal(2, 5, 3 * 96, dtype=dtype)
    weight = normal(48, dtype=dtype)
    for weights in (None, (weight, weight)):
        ours, theirs = (f(image, text, 2, weights, weights) for f in (qkv.joint_heads_norm_triton, qkv.joint_heads_norm))
        same = [torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True)]
        assert all(same) if weights is None else same[2]
    assert torch.equal(qkv.split_heads_norm_triton(image, 2, weight, weight)[2], qkv.split_heads(image, 2)[2])


@pytest.mark.parametrize("kind", ["attention_identity", "attention_identity_image", "attention_skip"])
def test_perturbations_without_arithmetic_keep_their_bits(kind, dtype, normal):
    q, k, v = normal(3, 2, 3, 63, 24, dtype=dtype)
    ours = attention.perturbed_attention(q, k, v, kind, attend=attention_triton)
    expected = v.transpose(1, 2).flatten(2)
    assert torch.equal(ours, torch.zeros_like(expected) if kind == "attention_skip" else expected)


# --- the judge can fail ------------------------------------------------------------------------------------------------


def rounded_up(h, shift, scale):
    """The exact result, rounded to the next number above."""
    from segue.kernels.adaln import modulated_norm

    truth = modulated_norm(h.double(), shift.double(), scale.double())
    nearest = truth.to(h.dtype)
    above = nearest + torch.finfo(h.dtype).eps * nearest.abs() * 0.6
    return torch.where(nearest.double() < truth, above, nearest)


def test_a_kernel_that_rounds_to_one_side_is_caught(device, seed, judge):
    """Its error alone would pass; the kernel itself passes both bounds."""
    case = next(case for case in CASES if case.operation == "modulated_norm")
    arguments = case.arguments(Factory(device, torch.float16, seed))
    judge(case.kernel, case.reference, *arguments)
    with pytest.raises(AssertionError, match=r"bias 0\.\d+ of the error's root mean square"):
        judge(rounded_up, case.reference, *arguments)
