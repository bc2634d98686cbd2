"""Attention with its log-sum-exp, and normalized attention guidance made of attentions over parts of the keys."""

import pytest
import torch
from interpreted import slow_interpreted
from torch.nn.attention import SDPBackend

from segue.kernels.attention import attention, sdpa_order
from segue.kernels.attention_lse import attention_lse, attention_lse_cpu, attention_lse_sdpa
from segue.kernels.flash_attention import attention_lse_triton, attention_triton
from segue.kernels.normalized_attention import (
    merge_normalized,
    merge_normalized_triton,
    normalized_attention,
    normalized_attention_by_parts,
    normalized_guidance,
)
from segue.kernels.triton_runtime import observe_launches

# (R, H, queries, keys, K): odd lengths, every way a head dim is cut, a single key
SHAPES = [(2, 2, 1, 1, 16), (1, 2, 63, 199, 32), (1, 2, 65, 33, 72), (1, 1, 129, 7, 128), (2, 1, 17, 333, 64)]
# (R, H, image tokens, text tokens, K): texts shorter and longer than the image, a text of one token
JOINT = [(2, 3, 21, 7, 16), (1, 2, 5, 33, 64), (3, 1, 63, 1, 24), (1, 2, 64, 64, 40)]


def parts_of(normal, rows, heads, tokens, text, head_dim, dtype):
    """What attentions over the parts give, unit normal, and numbers of every row."""
    width, parts = heads * head_dim, []
    for count in (tokens + 2 * text, tokens + text, tokens, text):
        parts += [normal(rows, count, width, dtype=dtype), 2 * normal(rows, heads, count)]
    return *parts, numbers_of(normal, rows)


def numbers_of(normal, rows):
    scale, tau, alpha = normal(3, rows).abs()
    return torch.stack([1 + 3 * scale, 1 + tau, alpha.clamp(0, 1)], dim=1)


@pytest.mark.parametrize("shape", [*SHAPES[:3], *map(slow_interpreted, SHAPES[3:])], ids=str)
def test_log_sum_exp(shape, dtype, normal, judge):
    """By the kernel of attention itself, whose output it leaves as it is, bit for bit."""
    rows, heads, queries, keys, head_dim = shape
    q = normal(rows, heads, queries, head_dim, dtype=dtype) * 2
    k, v = normal(2, rows, heads, keys, head_dim, dtype=dtype)
    with observe_launches() as launches:
        judge(attention_lse_triton, attention_lse, q, k, v, operation="attention_lse")
    assert [launch.name for launch in launches] == ["attention_kernel"]
    assert torch.equal(attention_lse_triton(q, k, v)[0], attention_triton(q, k, v))


def test_large_scores_and_strided_operands(dtype, normal, judge):
    q = normal(4, 2, 31, 64, dtype=dtype)[:2, ..., ::2] * 30
    k, v = normal(2, 4, 2, 45, 32, dtype=dtype)[:, 1:3]
    judge(attention_lse_triton, attention_lse, q, k, v, operation="attention_lse")


@pytest.mark.parametrize("tokens", [33, 333])
def test_log_sum_exp_of_the_library(tokens, normal, device):
    """Every kernel of PyTorch that gives one, alone; on the CPU its flash attention."""
    q, k, v = normal(3, 2, 2, tokens, 64, dtype=torch.float16 if device.type == "cuda" else torch.float32)
    out, lse = attention_lse(q.double(), k.double(), v.double())
    forms = [attention_lse_cpu] if device.type == "cpu" else []
    for backend in sdpa_order(device)[0] if device.type == "cuda" else (SDPBackend.MATH,):
        forms.append(lambda *qkv, backend=backend: attention_lse_sdpa(*qkv, (backend,)))
    bound = 4 * (2**-11 if q.dtype == torch.float16 else 2**-20)
    for form in forms:
        mine, sum_of_mine = form(q, k, v)
        assert mine.shape == out.shape and sum_of_mine.shape == lse.shape
        assert (mine.double() - out).abs().max() < bound * v.abs().max()
        assert (sum_of_mine.double() - lse).abs().max() < bound * lse.abs().max()


@pytest.mark.parametrize("shape", [JOINT[0], *map(slow_interpreted, JOINT[1:])], ids=str)
def test_merge(shape, dtype, normal, judge):
    arguments = parts_of(normal, *shape, dtype)
    with observe_launches() as launches:
        judge(merge_normalized_triton, merge_normalized, *arguments, operation="merge_normalized")
    assert [launch.name for launch in launches] == ["merge_kernel"]


@pytest.mark.parametrize("shape", [*JOINT[:2], *map(slow_interpreted, JOINT[2:])], ids=str)
def test_parts_equal_two_whole_attentions(shape, normal, seed):
    rows, heads, tokens, text, head_dim = shape
    q, k, v = normal(3, rows, heads, tokens + 2 * text, head_dim).double()
    numbers = numbers_of(normal, rows).double()
    whole = normalized_attention(q, k, v, tokens, numbers)
    by_formula = normalized_attention_by_parts(q, k, v, tokens, numbers)
    assert (by_formula - whole).abs().max() < 1e-13  # fp64: sums of some hundred terms, each rounding to 1e-16
    single = [x.float() for x in (q, k, v)]
    for attend in (attention_lse_triton, attention_lse):
        ours = normalized_attention_by_parts(*single, tokens, numbers.float(), attend, merge_normalized_triton)
        # fp32: the same sums rounding to 6e-8, differences multiplied by a scale of some ten
        assert (ours.double() - whole).abs().max() < 1e-5 * whole.abs().max()


def test_each_text_attends_to_the_image_and_itself(normal):
    tokens, text = 9, 4
    q, k, v = normal(3, 2, 2, tokens + 2 * text, 16)
    numbers = numbers_of(normal, 2)
    before = normalized_attention_by_parts(q, k, v, tokens, numbers, attention_lse_triton, merge_normalized_triton)
    k[:, :, tokens + text :] += 1
    after = normalized_attention_by_parts(q, k, v, tokens, numbers, attention_lse_triton, merge_normalized_triton)
    changed = (before != after).any(dim=(0, 2))
    assert torch.equal(before[:, tokens : tokens + text], after[:, tokens : tokens + text])
    assert changed[:tokens].all() and changed[tokens + text :].all()


def test_limits(normal):
    """Scale 1 and alpha 0 give z+ bit for bit; a wide bound gives the extrapolation; the norm never passes the bound."""
    z, w = normal(2, 3, 11, 32)
    ones = torch.ones(3, device=z.device)

    def numbers(scale, tau, alpha):
        return torch.stack([scale * ones, tau * ones, alpha * ones], dim=1)

    assert torch.equal(normalized_guidance(z, w, numbers(1, 2.5, 1)), z)
    assert torch.equal(normalized_guidance(z, w, numbers(7, 2.5, 0)), z)
    assert torch.allclose(normalized_guidance(z, w, numbers(4, 1e6, 1)), 4 * z - 3 * w, atol=1e-5)
    clipped = normalized_guidance(z, w, numbers(9, 1.5, 1)).abs().sum(-1) / z.abs().sum(-1)
    assert torch.allclose(clipped, torch.full_like(clipped, 1.5), atol=1e-5)
    assert torch.equal(normalized_guidance(z * 0, w * 0, numbers(9, 1.5, 1)), z * 0)


def test_neutral_numbers_in_the_kernel(normal):
    """The image's output is that of attention to its own text, which rows of others leave alone."""
    tokens, text = 13, 5
    q, k, v = normal(3, 2, 2, tokens + 2 * text, 16)
    for neutral in ((1.0, 1.0, 0.0), (1.0, 2.5, 1.0)):
        numbers = torch.tensor([neutral, neutral], device=q.device)
        ours = normalized_attention_by_parts(q, k, v, tokens, numbers, attention_lse_triton, merge_normalized_triton)
        own = slice(tokens + text)
        assert torch.allclose(ours[:, own], attention(q[:, :, own], k[:, :, own], v[:, :, own]), atol=1e-6)


def test_bad_shapes_raise(normal):
    q = normal(1, 2, 9, 16)
    with pytest.raises(ValueError, match="9 tokens are not 4 of an image and as many of one text as of the other"):
        normalized_attention(q, q, q, 4, torch.ones(1, 3))
    parts = list(parts_of(normal, 1, 2, 5, 3, 16, torch.float32))
    parts[4] = parts[4][:, 1:]
    with pytest.raises(ValueError, match="the parts do not fit"):
        merge_normalized_triton(*parts)
