"""QKV projections that leave split and normalised heads, against fp64."""

import pytest
import torch

from segue.kernels.head_products import (
    project_heads,
    project_heads_triton,
    project_joint_heads,
    project_joint_heads_triton,
)
from segue.kernels.qkv import joint_heads_norm
from segue.kernels.triton_runtime import observe_launches

# (R, image tokens, text tokens, H, K, D): one token, heads that fill a tile, that are a part of one, odd inputs
SHAPES = [(1, 1, 3, 2, 16, 64), (2, 63, 33, 3, 64, 72), (2, 7, 140, 5, 32, 130), (3, 130, 1, 1, 128, 48)]


def layer(normal, inputs, outputs, dtype):
    return normal(outputs, inputs, dtype=dtype) / inputs**0.5, normal(outputs, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", [True, False])
def test_joint_heads_against_fp64(shape, norm, dtype, normal, judge):
    rows, tokens, text, heads, head_dim, inputs = shape
    image = normal(rows, tokens, inputs, dtype=dtype), *layer(normal, inputs, 3 * heads * head_dim, dtype)
    other = normal(rows, text, inputs, dtype=dtype), *layer(normal, inputs, 3 * heads * head_dim, dtype)
    weights = [normal(head_dim, dtype=dtype) for _ in range(4 * norm)]

    def flat(function):
        def call(*operands):
            pairs = [operands[i : i + 2] or None for i in (6, 8)]
            return function(*operands[:6], heads, *pairs)

        return call

    with observe_launches() as launches:
        judge(flat(project_joint_heads_triton), flat(project_joint_heads), *image, *other, *weights)
    assert [launch.name for launch in launches] == ["linear_kernel"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_heads_of_one_stream_against_fp64(shape, dtype, normal, judge):
    rows, tokens, _, heads, head_dim, inputs = shape
    x = normal(rows + 1, tokens, inputs, dtype=dtype)[1:]
    weights = [normal(head_dim, dtype=dtype) for _ in range(2)]
    arguments = (x, *layer(normal, inputs, 3 * heads * head_dim, dtype), heads, *weights, 1e-3)
    judge(project_heads_triton, project_heads, *arguments)


def test_texts_of_a_row_one_behind_the_other(normal):
    """Two rows of text for each of the image, as a view: each row of the joint sequence has both."""
    x, texts = normal(2, 9, 32), normal(4, 5, 32)
    image, text = layer(normal, 32, 3 * 64, torch.float32), layer(normal, 32, 3 * 64, torch.float32)
    ours = project_joint_heads_triton(x, *image, texts.view(2, 10, 32), *text, 2)
    own = texts @ text[0].t() + text[1]
    expected = joint_heads_norm(x @ image[0].t() + image[1], torch.stack([own[:2].flatten(0, 1), own[2:].flatten(0, 1)]), 2)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_heads_merge_without_a_copy(normal):
    """The memory order is [R, T, H, K], so that attention's output in the layout of its queries is already merged."""
    operands = normal(2, 5, 32), *layer(normal, 32, 3 * 32, torch.float32)
    for parts in (
        project_heads_triton(*operands, 2, normal(16), normal(16)),
        project_joint_heads_triton(*operands, *operands, 2),
    ):
        for part in parts:
            assert part.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(("head_dim", "norms"), [(24, "both"), (256, "both"), (16, "image")])
def test_heads_that_no_tile_holds_are_split_by_another_kernel(head_dim, norms, normal):
    """A head dim that is no power of two, one beyond a tile, and norms of one stream alone."""
    image, text = ((normal(1, n, 8), *layer(normal, 8, 3 * 2 * head_dim, torch.float32)) for n in (5, 3))
    weights = normal(head_dim), normal(head_dim)
    pairs = weights, weights if norms == "both" else None
    with observe_launches() as launches:
        ours = project_joint_heads_triton(*image, *text, 2, *pairs)
    assert [launch.name for launch in launches] == ["linear_kernel", "heads_kernel"]
    for one, other in zip(ours, project_joint_heads(*image, *text, 2, *pairs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    if norms == "both":
        for one, other in zip(project_heads_triton(*image, 2, *weights), project_heads(*image, 2, *weights), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_bad_operands_raise(normal):
    x, weight, bias = normal(1, 2, 8), normal(3 * 24, 8), normal(3 * 24)
    with pytest.raises(ValueError, match="must have 3 D rows, D a multiple of 5, got 72"):
        project_heads_triton(x, weight, bias, 5)
    with pytest.raises(ValueError, match=r"both streams must have 1 rows, got \[1, 2\]"):
        project_joint_heads_triton(x, weight, bias, normal(2, 2, 8), weight, bias, 1)
    with pytest.raises(ValueError, match="do not fit"):
        project_heads_triton(x, weight[:, :7], bias, 1)
    with pytest.raises(ValueError, match=r"norm weights must have shape \(8,\), got \(4,\)"):
        project_heads_triton(x, weight, bias, 3, normal(8), normal(4))
    with pytest.raises(ValueError, match=r"both streams must have the same dtypes, got .*float16.* and .*float32"):
        project_joint_heads_triton(x, weight, bias, x, weight, bias.half(), 3)
