"""The end of a network call, against its formula in fp64."""

import pytest
import torch
import torch.nn.functional as F
from interpreted import slow_interpreted

from segue.kernels import readout
from segue.kernels.combine import solver_update, unpatchify
from segue.kernels.triton_runtime import observe_launches

# (row blocks, B, grid, D, P, C, rows read): odd token counts, one branch and three, a row block read twice and out of order
SHAPES = [
    (1, 1, (1, 1), 64, 2, 4, (0,)),
    (2, 2, (9, 7), 192, 2, 4, (0, 1)),
    (3, 1, (3, 5), 1152, 2, 4, (2, 0, 1)),
    (2, 2, (4, 3), 72, 4, 3, (1, 1)),
    (4, 1, (1, 3), 1536, 2, 16, (0, 1, 3)),
    (2, 1, (2, 2), 40, 8, 4, (1, 0)),
]


def exact_combination(h, shift, scale, coefficients, rows, weight, bias):
    total = 0
    for j, row in enumerate(rows):
        n = F.layer_norm(h[row], h.shape[-1:], eps=1e-6) * (1 + scale[row, :, None]) + shift[row, :, None]
        total = total + coefficients[:, j, None, None] * F.linear(n, weight, bias)
    return total


def operands(normal, shape, dtype):
    blocks, batch, (rows, columns), width, patch, channels, read = shape
    outputs = patch * patch * channels
    h = normal(blocks + 1, batch, rows * columns, width, dtype=dtype)[:blocks] + 0.5
    shift, scale = normal(blocks, batch, 2 * width, dtype=dtype).chunk(2, dim=-1)
    coefficients = normal(batch, len(read) + 1)[:, 1:] * 3
    weight, bias = normal(outputs, width, dtype=dtype) / width**0.5, normal(outputs, dtype=dtype)
    return h, shift, scale, coefficients, read, weight, bias


@pytest.mark.parametrize("shape", [*SHAPES[:2], *map(slow_interpreted, SHAPES[2:])], ids=str)
def test_combine_then_project(shape, dtype, normal, judge):
    with observe_launches() as launches:
        judge(
            readout.combine_then_project_triton, readout.combine_then_project, *operands(normal, shape, dtype),
            exact=exact_combination,
        )  # fmt: skip
    assert [launch.name for launch in launches] == ["readout_kernel"]


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_project(shape, dtype, normal, judge):
    h, shift, scale, _, _, weight, bias = operands(normal, shape, dtype)

    def exact(h, shift, scale, weight, bias):
        return exact_combination(h[None], shift[None], scale[None], torch.ones(len(h), 1).to(h), (0,), weight, bias)

    judge(readout.project_triton, readout.project, h[0], shift[0], scale[0], weight, bias, exact=exact)


def test_patches_are_written_where_they_are_wanted(dtype, normal):
    h, shift, scale, coefficients, rows, weight, bias = operands(normal, SHAPES[1], dtype)
    head = h[0], shift[0], scale[0], weight, bias
    patches = torch.empty(3, 2, 63, 16, device=h.device)
    for module in (readout.project, readout.project_triton):
        assert module(*head, out=patches[1]).data_ptr() == patches[1].data_ptr()
        assert torch.equal(patches[1], module(*head))
    for module in (readout.combine_then_project, readout.combine_then_project_triton):
        combined = h, shift, scale, coefficients, rows, weight, bias
        assert module(*combined, out=patches[1]).data_ptr() == patches[1].data_ptr()
        assert torch.equal(patches[1], module(*combined))
    assert patches[0].isnan().all() and patches[2].isnan().all()
    with pytest.raises(ValueError, match=r"out must be contiguous \(2, 63, 16\) torch.float32, got \(2, 16, 63\)"):
        readout.project_triton(*head, out=torch.empty(2, 16, 63, device=h.device))


def test_a_large_mean_does_not_spoil_the_variance(normal):
    """Statistics are merged from blocks of channels: E[x^2] - E[x]^2 would be all rounding here."""
    h = normal(1, 1, 3, 1152) + 4096
    zero, weight = torch.zeros_like(h[:, :, 0]), torch.eye(16, 1152, device=h.device)
    ours = readout.project_triton(h[0], zero[0], zero[0], weight, zero[0, 0, :16])
    expected = F.layer_norm(h[0].double(), (1152,), eps=1e-6)[..., :16]
    # the values themselves round to 4096 * 2^-24 of a unit deviation, the mean a few times over
    assert (ours.double() - expected).abs().max() < 4096 * 2**-24 * 8


@pytest.mark.parametrize("further", [0, slow_interpreted(1), 2])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES[:2], *map(slow_interpreted, SHAPES[2:])], ids=str)
def test_readout_update(shape, noisy, further, dtype, normal, judge):
    _, batch, (rows, columns), _, patch, channels, _ = shape
    x, history, noise = normal(3, batch, channels, rows * patch, columns * patch)
    row, earlier = normal(batch, 7 + further)[:, 1:], normal(batch, further, *x.shape[1:]) if further else None
    arguments = (*operands(normal, shape, dtype), patch, None, earlier)

    def in_place(function):
        def call(x, history, *rest):
            function(x, history, *rest)
            return x, history, *rest[-1:] * bool(further)

        return call

    def exact(x, history, row, noise, *rest):
        *combination, _, _, earlier = rest
        output = unpatchify(exact_combination(*combination), patch, *x.shape[-2:])
        solver_update(x, output, history, noise, row, None, earlier)
        return x, history, *rest[-1:] * bool(further)

    kernel, reference = in_place(readout.readout_update_triton), in_place(readout.readout_update)
    with observe_launches() as launches:
        judge(kernel, reference, x, history, row, noise if noisy else None, *arguments, exact=exact)
    assert [launch.name for launch in launches] == ["readout_kernel"]


def test_the_update_counts_the_call(normal, device):
    """For every sample once, though many programs share it."""
    x, history = normal(2, 2, 4, 18, 14)
    operand = operands(normal, SHAPES[1], torch.float32)
    for function in (readout.readout_update, readout.readout_update_triton):
        call = torch.tensor([3, 8], device=device)
        function(x.clone(), history.clone(), normal(2, 6), None, *operand, 2, call)
        assert call.tolist() == [4, 9]


def test_bad_arguments_raise(normal):
    h, shift, scale, coefficients, rows, weight, bias = operands(normal, SHAPES[1], torch.float32)
    with pytest.raises(ValueError, match=r"1 to 7 of 2 row blocks, got \(0, 2\)"):
        readout.combine_then_project_triton(h, shift, scale, coefficients, (0, 2), weight, bias)
    with pytest.raises(ValueError, match=r"coefficients must be \(2, 2\), got \(2, 1\)"):
        readout.combine_then_project_triton(h, shift, scale, coefficients[:, :1], rows, weight, bias)
    with pytest.raises(ValueError, match="do not fit"):
        readout.project_triton(h[0], shift[0], scale[0], weight[:, 1:], bias)
    with pytest.raises(ValueError, match="at most 256 numbers, got 272"):
        readout.project_triton(h[0], shift[0], scale[0], normal(272, 192), normal(272))
    x = normal(2, 2, 4, 18, 12)
    with pytest.raises(ValueError, match="does not consist of 63 patches of 16 numbers"):
        readout.readout_update_triton(*x, normal(2, 6), None, h, shift, scale, coefficients, rows, weight, bias, 2)
