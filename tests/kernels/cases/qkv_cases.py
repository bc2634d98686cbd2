"""Head split, per-head RMSNorm and the joint layout."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.kernels.qkv import joint_heads_norm, joint_heads_norm_triton, split_heads_norm, split_heads_norm_triton
from segue.kernels.triton_runtime import observe_launches

# (R, image tokens, text tokens, H, K)
SHAPES = [(2, 1, 3, 2, 16), (1, 63, 5, 3, 64), (2, 7, 33, 2, 72), (1, 199, 21, 2, 32), (1, 4, 4, 19, 128), (1, 333, 1, 1, 24)]


def weights(normal, head_dim, dtype):
    return normal(head_dim, dtype=dtype), normal(head_dim, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norms", ["both", "image", "none"])
def test_joint_layout_against_fp64(shape, norms, dtype, normal, judge):
    rows, tokens, text, heads, head_dim = shape
    image = normal(rows, tokens, 3 * heads * head_dim, dtype=dtype)
    text = normal(rows, text, 3 * heads * head_dim, dtype=dtype)
    image_weights = None if norms == "none" else weights(normal, head_dim, dtype)
    text_weights = weights(normal, head_dim, dtype) if norms == "both" else None

    def flat(function):
        def call(image, text, *weights):
            pairs = [weights[i : i + 2] or None for i in (0, 2)]
            return function(image, text, heads, *pairs)

        return call

    given_weights = (*(image_weights or ()), *(text_weights or ()))
    with observe_launches() as launches:
        judge(flat(joint_heads_norm_triton), flat(joint_heads_norm), image, text, *given_weights)
    assert [launch.name for launch in launches] == ["heads_kernel"]


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_one_stream_against_fp64(shape, dtype, normal, judge):
    rows, tokens, _, heads, head_dim = shape
    qkv = normal(rows + 1, tokens, 3 * heads * head_dim, dtype=dtype)[1:]
    arguments = (qkv, heads, *weights(normal, head_dim, dtype), 1e-3)
    judge(split_heads_norm_triton, split_heads_norm, *arguments)


def test_without_a_norm_nothing_moves(normal):
    qkv = normal(2, 5, 3 * 32)
    with observe_launches() as launches:
        parts = split_heads_norm_triton(qkv, 2)
    assert not launches
    assert all(part.untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr() for part in parts)
    for mine, theirs in zip(parts, split_heads_norm(qkv, 2), strict=True):
        assert torch.equal(mine, theirs)


def test_heads_merge_without_a_copy(normal):
    """The memory order is [R, T, H, K], so that attention's output in the layout of its queries is already merged."""
    q, k, v = joint_heads_norm_triton(normal(2, 5, 3 * 32), normal(2, 3, 3 * 32), 2)
    for part in (q, k, v):
        assert part.shape == (2, 2, 8, 16)
        assert part.transpose(1, 2).is_contiguous()


def test_strided_streams(dtype, normal, judge):
    wide = normal(2, 9, 2 * 96, dtype=dtype)
    image, text = wide[:, ::2, :96], wide[:, 1:5, 1::2]
    judge(lambda a, b: joint_heads_norm_triton(a, b, 2), lambda a, b: joint_heads_norm(a, b, 2), image, text)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.integers(1, 20), text=st.integers(1, 20), heads=st.integers(1, 5), head_dim=st.integers(1, 72))
def test_any_shape(device, tokens, text, heads, head_dim):
    generator = torch.Generator().manual_seed(tokens * 1000 + text * 100 + heads * 10 + head_dim)
    image, other = (torch.randn(2, n, 3 * heads * head_dim, generator=generator).to(device) for n in (tokens, text))
    weight = torch.randn(head_dim, generator=generator).to(device)
    expected = joint_heads_norm(image, other, heads, (weight, weight), (weight, -weight))
    ours = joint_heads_norm_triton(image, other, heads, (weight, weight), (weight, -weight))
    for mine, theirs in zip(ours, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_bad_shapes_raise(normal):
    with pytest.raises(ValueError, match="D a multiple of 5 heads"):
        split_heads_norm_triton(normal(1, 2, 48), 5, normal(3), normal(3))
    with pytest.raises(ValueError, match=r"\(1, 2, 48\), \(1, 2, 24\)"):
        joint_heads_norm_triton(normal(1, 2, 48), normal(1, 2, 24), 2)
