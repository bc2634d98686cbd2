"""The beginning of a network call: the state to tokens with positions."""

import pytest
import torch

from segue.kernels.embed import embed_patches, embed_patches_triton
from segue.kernels.triton_runtime import observe_launches

# (row blocks, B, grid of patches, P, C, D): single patches, odd grids, D of DiT-XL and SD3.5-large, more inputs than a block
SHAPES = [
    (1, 1, (1, 1), 1, 3, 64),
    (2, 3, (5, 3), 2, 4, 72),
    (3, 1, (7, 9), 4, 3, 192),
    (1, 2, (9, 7), 2, 16, 1152),
    (2, 1, (1, 3), 8, 4, 130),
    (1, 1, (3, 2), 2, 16, 2432),
]


def operands(normal, shape, dtype):
    blocks, batch, (rows, columns), patch, channels, width = shape
    x = normal(batch, channels, rows * patch, columns * patch)
    weight = normal(width, channels, patch, patch, dtype=dtype) / (channels * patch**2) ** 0.5
    positions = normal(rows * columns, width, dtype=dtype)
    out = normal(blocks + 1, batch, rows * columns, width, dtype=dtype)
    return x, weight, normal(width, dtype=dtype), positions, out


def exact(x, weight, bias, positions, out, scale=None):
    """Patch by patch: the inner product of its numbers, in the order (c, p, q), with each row of the weight."""
    patch = weight.shape[-1]
    x = x if scale is None else x * scale[:, None, None, None]
    patches = x.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, h, w, P, P]
    tokens = torch.einsum("bchwpq,dcpq->bhwd", patches, weight).flatten(1, 2) + bias + positions
    out[:-1] = tokens
    return out


def prefix(function):
    """Only the row blocks before the last are given to the kernel: the last must stay as it is."""

    def call(x, weight, bias, positions, out, scale=None):
        assert function(x, weight, bias, positions, out[:-1], scale).data_ptr() == out.data_ptr()
        return out

    return call


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_fp64(shape, scaled, dtype, normal, judge):
    scale = (normal(shape[1] + 1)[1:] + 1.5,) if scaled else ()
    with observe_launches() as launches:
        arguments = operands(normal, shape, dtype)
        judge(prefix(embed_patches_triton), prefix(embed_patches), *arguments, *scale, exact=exact)
    assert [launch.name for launch in launches] == ["embed_kernel"]


def test_positions_in_full_precision(dtype, normal, judge):
    """The table of an MMDiT may stay in fp32: the sum with the tokens is rounded once."""
    x, weight, bias, _, out = operands(normal, SHAPES[1], dtype)
    judge(prefix(embed_patches_triton), prefix(embed_patches), x, weight, bias, normal(15, 72), out, exact=exact)


def test_bad_shapes_raise(normal):
    x, weight, bias, positions, out = operands(normal, SHAPES[1], torch.float32)
    with pytest.raises(ValueError, match=r"\(3, 4, 10, 5\) cannot be cut into patches for a weight \(72, 4, 2, 2\)"):
        embed_patches_triton(x[..., :5].contiguous(), weight, bias, positions, out)
    with pytest.raises(ValueError, match=r"must be \[J, 3, 15, 72\] .* got \[3, 3, 14, 72\] and \[15, 72\]"):
        embed_patches_triton(x, weight, bias, positions, out[:, :, 1:])
