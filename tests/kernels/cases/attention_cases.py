"""The own attention kernel against SDPA and against fp64, never against itself."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.kernels.attention import (
    PERTURBATIONS,
    attention,
    attention_triton,
    perturbed_attention,
    split_head_dim,
)
from segue.kernels.triton_runtime import observe_launches

# (R, H, queries, keys, K): odd lengths, every way a head dim is cut, a single query
SHAPES = [
    (2, 2, 1, 1, 16),
    (1, 2, 63, 63, 32),
    (1, 1, 199, 199, 64),
    (1, 2, 199, 199, 72),
    (1, 1, 333, 333, 72),
    (1, 1, 65, 129, 128),
    (2, 1, 1, 333, 40),
    (1, 1, 128, 128, 96),
    (1, 2, 17, 64, 20),
]


def token_major(normal, rows, heads, tokens, head_dim, dtype):
    """[R, H, T, K] as the head split leaves it: a view of [R, T, 3, H, K]."""
    return normal(rows, tokens, 3, heads, head_dim, dtype=dtype).unbind(2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_fp64(shape, dtype, normal, judge):
    rows, heads, queries, keys, head_dim = shape
    q = normal(rows, heads, queries, head_dim, dtype=dtype) * 2
    k, v = normal(2, rows, heads, keys, head_dim, dtype=dtype)
    with observe_launches() as launches:
        judge(attention_triton, attention, q, k, v)
    assert [launch.name for launch in launches] == ["attention_kernel"]


def test_the_length_of_stable_diffusion_3(normal, judge):
    """4096 image and 333 text tokens; in fp16, whose tiles are large enough for the interpreter."""
    q, k, v = normal(3, 1, 1, 4429, 64, dtype=torch.float16)
    judge(attention_triton, attention, q, k, v)


@pytest.mark.parametrize("head_dim", [64, 72])
def test_views_of_a_fused_projection(head_dim, dtype, normal, judge):
    qkv = [x.transpose(1, 2) for x in token_major(normal, 2, 3, 33, head_dim, dtype)]
    assert not qkv[0].is_contiguous()
    judge(attention_triton, attention, *qkv)


def test_row_prefix_and_strided_channels(dtype, normal, judge):
    q = normal(4, 2, 31, 64, dtype=dtype)[:2, ..., ::2]
    k, v = normal(2, 4, 2, 45, 32, dtype=dtype)[:, 1:3]
    judge(attention_triton, attention, q, k, v)


def test_keys_beyond_the_end_are_never_read(normal):
    """NaN behind the last key must not reach the sum, not even times zero."""
    k, v = normal(2, 1, 1, 70, 32)
    k[:, :, 66:], v[:, :, 66:] = float("nan"), float("nan")
    q = normal(1, 1, 5, 32)
    out = attention_triton(q, k[:, :, :66], v[:, :, :66])
    assert torch.allclose(out, attention(q, k[:, :, :66], v[:, :, :66]), atol=1e-5)


def test_large_scores_do_not_overflow(dtype, normal, judge):
    q, k, v = normal(3, 1, 1, 40, 32, dtype=dtype)
    judge(attention_triton, attention, q * 30, k * 30, v)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queries=st.integers(1, 40), keys=st.integers(1, 80), head_dim=st.integers(1, 128))
def test_any_shape(device, queries, keys, head_dim):
    generator = torch.Generator().manual_seed(queries * 10000 + keys * 100 + head_dim)
    q = torch.randn(1, 2, queries, head_dim, generator=generator).to(device)
    k, v = torch.randn(2, 1, 2, keys, head_dim, generator=generator).to(device)
    expected = attention(q.double(), k.double(), v.double())
    assert (attention_triton(q, k, v).double() - expected).abs().max() < 1e-5


def test_permuting_the_keys_changes_nothing(normal, seed):
    q, k, v = normal(3, 1, 2, 37, 24)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(seed))
    shuffled = attention_triton(q, k[:, :, order], v[:, :, order])
    assert torch.allclose(shuffled, attention_triton(q, k, v), atol=1e-5)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_perturbed_attention(kind, dtype, normal, judge):
    q, k, v = (x.transpose(1, 2) for x in token_major(normal, 2, 2, 21, 72, dtype))
    with observe_launches() as launches:
        judge(
            lambda *qkv: perturbed_attention(*qkv, kind, attend=attention_triton),
            lambda *qkv: perturbed_attention(*qkv, kind),
            q, k, v,
        )  # fmt: skip
    assert len(launches) == (kind == "attention_blur")


@pytest.mark.parametrize("head_dim", range(1, 129))
def test_head_dims_are_covered_with_little_padding(head_dim):
    part, rest = split_head_dim(head_dim)
    assert part >= 16 and (rest == 0 or rest >= 16)
    assert head_dim <= part + rest <= max(16, 2 * head_dim)
    assert (part, rest) == {72: (64, 16), 80: (64, 16), 96: (64, 32), 40: (32, 16)}.get(head_dim, (part, rest))


def test_bad_shapes_raise(normal):
    q = normal(1, 1, 3, 136)
    with pytest.raises(ValueError, match="head dims up to 128, got 136"):
        attention_triton(q, q, q)
    q, k = normal(1, 2, 3, 16), normal(1, 2, 4, 16)
    with pytest.raises(ValueError, match="do not fit"):
        attention_triton(q, k, k[:, :1])
    with pytest.raises(ValueError, match="do not fit"):
        attention_triton(q, k[:, :, :0], k[:, :, :0])
