"""Solver update, gather and noise."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.kernels.combine import (
    combine_branches,
    combine_branches_triton,
    gather_modulation,
    gather_modulation_triton,
    gather_rows,
    gather_rows_triton,
    solver_update,
    solver_update_triton,
)
from segue.kernels.philox import normal_noise, normal_noise_triton, random_words, random_words_triton
from segue.kernels.triton_runtime import observe_launches


def update(function):
    """The in-place update as a function of its operands."""

    def call(x, output, history, noise, row):
        function(x, output, history, noise, row)
        return x, history

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


@pytest.mark.parametrize("width", [1, 7, 1024, 4609])
def test_gather_is_index_select(width, dtype, normal):
    table = normal(11, width + 3, dtype=dtype)[:, :width]
    index = torch.tensor([3, 0, 10, 3, 7], device=table.device)[::2]
    buffer = normal(5, width, dtype=dtype)
    untouched = buffer[3:].clone()
    out = gather_rows_triton(table, index, out=buffer[:3])
    assert torch.equal(out, gather_rows(table, index)) and out.data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer[3:], untouched)
    assert torch.equal(gather_rows_triton(table, index), out)


def test_gather_from_a_vector_of_integers(device):
    table = torch.arange(50, 90, device=device)
    index = torch.tensor([0, 39, 5, 5], device=device)
    assert torch.equal(gather_rows_triton(table, index), table[index])


def test_gather_outside_the_table_reads_no_foreign_memory(normal, device):
    index = torch.tensor([0, 4, -1, 3], device=device)
    out = gather_rows_triton(normal(4, 5), index)
    assert out.isfinite().all(1).tolist() == [True, False, False, True]
    assert gather_rows_triton(torch.arange(4, device=device), index).tolist() == [0, -1, -1, 3]
    with pytest.raises(ValueError, match=r"out must be \(4, 5\)"):
        gather_rows_triton(normal(4, 5), index, out=normal(4, 6))


SEEDS = (0, 1, 0xFFFFFFFF, 2**32, 2**63 - 1, 123456789012345)


@pytest.mark.parametrize("numel", [1, 4, 63, 1030])
def test_words_are_the_same_to_the_bit(numel, device):
    seeds = torch.tensor(SEEDS, device=device)
    calls = torch.tensor([0, 1, 2, 999, 2**31, 7], device=device)
    with observe_launches() as launches:
        ours = random_words_triton(seeds, calls, numel)
    assert [launch.name for launch in launches] == ["philox_kernel"]
    assert torch.equal(ours, random_words(seeds, calls, numel))


def test_known_words_of_the_published_generator(device):
    """Counter and key zero, from the test vectors that Random123 publishes for philox4x32-10."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    expected = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert random_words_triton(zero, zero, 4).tolist() == [expected]


def test_noise_equals_the_reference_to_rounding(device):
    seeds = torch.tensor(SEEDS, device=device)
    calls = torch.arange(6, device=device)
    ours, theirs = normal_noise_triton(seeds, calls, 1025), normal_noise(seeds, calls, 1025)
    # the angle, below 2 pi, rounds to 2^-22; a radius is below 6
    assert (ours - theirs).abs().max() < 6 * 2**-22 + 1e-6
    assert abs(float(ours.mean())) < 0.06 and abs(float(ours.std()) - 1) < 0.06


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**63 - 1), call=st.integers(0, 2**31 - 1), numel=st.integers(1, 40), batch=st.integers(1, 4))
def test_a_sample_does_not_depend_on_its_batch(device, seed, call, numel, batch):
    seeds = torch.tensor([seed] + [seed ^ i for i in range(1, batch)], device=device)
    calls = torch.full_like(seeds, call)
    alone = normal_noise_triton(seeds[:1], calls[:1], numel)
    assert torch.equal(normal_noise_triton(seeds, calls, numel)[0], alone[0])
    assert torch.equal(random_words_triton(seeds, calls, numel), random_words(seeds, calls, numel))


@pytest.mark.parametrize("width", [1, 33, 3000])
@pytest.mark.parametrize("blocks, batch", [(1, 1), (1, 3), (3, 2)])
def test_gather_modulation(width, blocks, batch, dtype, normal, device):
    """Row by row in Python: each sample at its own call, each row block under its own condition."""
    table = normal(5 * 3, width + 1, dtype=dtype)[:, 1:]
    times, call = torch.tensor([4, 0, 0, 3, 1, 2], device=device), torch.tensor([0, 5, 3], device=device)[:batch]
    condition = torch.tensor([[2, 0, 1], [1, 1, 0], [0, 2, 2]], device=device)[:blocks, :batch]
    expected = [
        table[int(times[call[b]]) * 3 + int(condition[j, b])] for j in range(blocks) for b in range(batch)
    ]  # fmt: skip
    for function in (gather_modulation, gather_modulation_triton):
        out = torch.empty(blocks * batch + 1, width, dtype=dtype, device=device)[:-1]
        with observe_launches() as launches:
            assert function(table, times, call, condition, 3, out) is out
        assert torch.equal(out, torch.stack(expected))
    assert [launch.name for launch in launches] == ["modulation_kernel"]


def test_rows_of_one_condition_are_a_view(normal, device):
    table, times, call = normal(6, 8), torch.arange(3, device=device), torch.tensor([2, 1], device=device)
    condition = torch.tensor([[1, 0]], device=device).expand(3, 2)
    out = gather_modulation_triton(table, times, call, condition, 2, torch.empty(6, 8, device=device))
    assert torch.equal(out, table[[5, 2] * 3])


@pytest.mark.parametrize("call", [-1, 3])
def test_a_call_beyond_the_run_reads_nan(call, normal, device):
    out = torch.empty(1, 8, device=device)
    zero = torch.zeros(1, 1, dtype=torch.int64, device=device)
    gather_modulation_triton(normal(3, 8), torch.arange(3, device=device), torch.tensor([call], device=device), zero, 1, out)
    assert out.isnan().all()
    with pytest.raises(ValueError, match=r"out must be \(1, 8\) torch.float32, got \(2, 8\)"):
        gather_modulation_triton(normal(3, 8), zero[0], zero[0], zero, 1, torch.empty(2, 8, device=device))
