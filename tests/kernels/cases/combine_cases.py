"""Branch combination and solver update."""

import pytest
import torch

from segue.kernels.combine import (
    combine_branches,
    combine_branches_triton,
    solver_update,
    solver_update_triton,
)
from segue.kernels.triton_runtime import observe_launches


def update(function):
    """The in-place update as a function of its operands."""

    def call(x, output, history, noise, row, *earlier):
        function(x, output, history, noise, row, None, *earlier)
        return x, history, *earlier

    return call


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 6, 10), (3, 16, 7, 13)], ids=str)
@pytest.mark.parametrize("noisy", [False, True])
def test_solver_update_against_fp64(shape, noisy, normal, judge):
    x, output, history = normal(3, *shape)
    noise = normal(*shape) if noisy else None
    row = normal(shape[0], 7)[:, 1:]  # the engine passes six of seven gathered columns
    with observe_launches() as launches:
        judge(update(solver_update_triton), update(solver_update), x, output, history, noise, row)
    assert [launch.name for launch in launches] == ["solver_kernel"]


@pytest.mark.parametrize("further", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 6, 10), (3, 16, 7, 13)], ids=str)
def test_solver_update_with_earlier_rows_against_fp64(shape, further, normal, judge):
    """What they left is weighed and moves on by one: the last is forgotten."""
    x, output, history, noise = normal(4, *shape)
    earlier = normal(shape[0], further, *shape[1:])
    row = normal(shape[0], 7 + further)[:, 1:]

    def exact(x, output, history, noise, row, earlier):
        coefficients = row[..., None, None, None]
        made = torch.stack([x, output, history, noise], dim=1) * coefficients[:, :4]
        left = coefficients[:, 4] * x + coefficients[:, 5] * output
        new = made.sum(1) + (earlier * coefficients[:, 6:]).sum(1)
        return new, left, torch.cat([history[:, None], earlier], dim=1)[:, :further]

    with observe_launches() as launches:
        judge(update(solver_update_triton), update(solver_update), x, output, history, noise, row, earlier, exact=exact)
    assert [launch.name for launch in launches] == ["solver_kernel"]


@pytest.mark.parametrize("function", [solver_update, solver_update_triton])
def test_a_row_weighs_as_many_earlier_rows_as_are_held(function, normal):
    x, output, history = normal(3, 2, 4, 6, 10)
    with pytest.raises(ValueError, match="a solver row must have 6 numbers where 0 earlier rows are held, got 7"):
        function(x, output, history, None, normal(2, 7))
    with pytest.raises(ValueError, match="a solver row must have 8 numbers where 2 earlier rows are held, got 6"):
        function(x, output, history, None, normal(2, 6), None, normal(2, 2, 4, 6, 10))


@pytest.mark.parametrize("noisy", [False, True])
def test_the_counter_of_every_sample_goes_on(noisy, normal, device):
    """By one, once, whatever the number of programs; counters of other samples beside them stay."""
    x, output, history = normal(3, 3, 4, 40, 40)
    counters = torch.tensor([4, 0, 7, 5, 31, 6], device=device)
    expected = torch.tensor([5, 0, 8, 5, 32, 6], device=device)
    for function in (solver_update, solver_update_triton):
        kept = counters.clone()
        states = x.clone(), history.clone()
        function(states[0], output, states[1], output if noisy else None, normal(3, 6), kept[::2])
        assert torch.equal(kept, expected)


def test_solver_update_reads_any_layout_of_its_inputs(normal, judge):
    x, history = normal(2, 2, 4, 6, 10)
    output, noise = normal(2, 2, 6, 10, 4).permute(0, 1, 4, 2, 3)
    judge(update(solver_update_triton), update(solver_update), x, output, history, noise, normal(6, 2).T)


def test_solver_update_refuses_a_state_that_it_could_not_write(normal):
    x, history = normal(2, 2, 4, 6, 10)
    with pytest.raises(ValueError, match="must be contiguous"):
        solver_update_triton(x.transpose(2, 3), x, history, None, normal(2, 6))
    with pytest.raises(ValueError, match="must be contiguous"):
        solver_update_triton(x, x, history, None, normal(2, 8), None, normal(2, 2, 2, 4, 6, 10)[:, 0].transpose(0, 1))


# (row blocks, B, grid of patches, P, C, rows combined): one branch and three, a row block read twice and out of order
PATCHES = [
    (1, 1, (1, 1), 1, 1, (0,)),
    (2, 3, (3, 5), 2, 4, (0, 1)),
    (3, 2, (7, 9), 2, 16, (2, 0, 1)),
    (2, 1, (2, 3), 4, 3, (1, 1)),
]


@pytest.mark.parametrize("factors", ["channels", "one channel", "branches", "none"])
@pytest.mark.parametrize("shape", PATCHES, ids=str)
def test_combine_branches(shape, factors, dtype, normal, judge):
    blocks, batch, (rows, columns), patch, channels, read = shape
    outputs = normal(blocks, batch, rows * columns, patch * patch * channels + 3, dtype=dtype)[..., 3:]
    coefficients = normal(batch, len(read) + 1, channels)[:, 1:]
    variants = {"channels": coefficients, "one channel": coefficients[..., :1], "branches": coefficients[..., 0], "none": None}
    coefficients = variants[factors]

    def exact(outputs, coefficients, *_):
        """Pixel by pixel, from the layout [B, (h w), (p q c)] of patches."""
        grid = outputs.view(blocks, batch, rows, columns, patch, patch, channels)
        if coefficients is None:
            coefficients = outputs.new_ones(batch, len(read))
        factor = coefficients.reshape(batch, len(read), -1).expand(-1, -1, channels)
        total = torch.einsum("jbhwpqc,bjc->bchpwq", grid[list(read)], factor)
        return total.reshape(batch, channels, rows * patch, columns * patch)

    with observe_launches() as launches:
        arguments = outputs, coefficients, read, patch, rows * patch, columns * patch
        judge(combine_branches_triton, combine_branches, *arguments, exact=exact)
    assert [launch.name for launch in launches] == ["branches_kernel"]


def test_combine_branches_refuses_what_does_not_fit(normal):
    outputs = normal(2, 1, 6, 16)
    with pytest.raises(ValueError, match=r"rows must name 1 to 7 of 2 row blocks, got \(0, 2\)"):
        combine_branches_triton(outputs, None, (0, 2), 2, 4, 6)
    for function in (combine_branches_triton, combine_branches):
        with pytest.raises(ValueError, match=r"coefficients must be \(1, 2\), \(1, 2, 1\) or \(1, 2, 4\), got \(1, 2, 3\)"):
            function(outputs, normal(1, 2, 3), (0, 1), 2, 4, 6)
    with pytest.raises(ValueError, match="6 patches of 16 numbers do not fill 4 x 8 pixels in patches of 2"):
        combine_branches_triton(outputs, None, (0, 1), 2, 4, 8)
