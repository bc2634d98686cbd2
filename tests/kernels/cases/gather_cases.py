"""Rows of tables, found by an index or by the call."""

import pytest
import torch

from segue.kernels.gather import gather_modulation, gather_modulation_triton, gather_rows, gather_rows_triton
from segue.kernels.triton_runtime import observe_launches


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


@pytest.mark.parametrize("width", [1, 7, 1025])
def test_gather_from_a_table_of_each_row(width, dtype, normal, device):
    """Row by row in Python; tables are parts of larger ones, and one may serve all rows."""
    tables = normal(3, 9, width + 2, dtype=dtype)[:, 1:8, 1 : width + 1]
    index = torch.tensor([6, 0, 3], device=device)
    expected = torch.stack([tables[row, int(index[row])] for row in range(3)])
    for function in (gather_rows, gather_rows_triton):
        out = torch.full((4, width), 7.0, dtype=dtype, device=device)[:3]
        assert function(tables, index, out=out) is out
        assert torch.equal(out, expected) and torch.equal(function(tables, index), expected)
        assert torch.equal(function(tables[:1].expand(3, -1, -1), index), tables[0][index])
    assert gather_rows_triton(tables, index + 4).isfinite().all(1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="one for each index, and there are 2"):
        gather_rows_triton(tables, index[:2])


def test_gather_of_integers_from_a_table_of_each_row(device):
    tables = torch.arange(12, device=device).view(3, 4, 1)
    for function in (gather_rows, gather_rows_triton):
        assert function(tables, torch.tensor([1, 0, 3], device=device)).tolist() == [[1], [4], [11]]


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


def test_gather_modulation_of_samples_with_times_of_their_own(dtype, normal, device):
    table = normal(5 * 3, 33, dtype=dtype)
    times = torch.tensor([[4, 0, 0, 3, 9], [1, 1, 2, 0, 9]], device=device)[:, :4]
    call, condition = torch.tensor([3, 2], device=device), torch.tensor([[2, 0], [1, 1], [0, 2]], device=device)
    expected = [table[int(times[b, call[b]]) * 3 + int(condition[j, b])] for j in range(3) for b in range(2)]
    for function in (gather_modulation, gather_modulation_triton):
        out = function(table, times, call, condition, 3, torch.empty(6, 33, dtype=dtype, device=device))
        assert torch.equal(out, torch.stack(expected))
    beyond = gather_modulation_triton(table, times, call + 1, condition, 3, torch.empty(6, 33, dtype=dtype, device=device))
    assert beyond.isfinite().all(1).tolist() == [False, True] * 3  # not into the times of the next sample


def test_gather_modulation_of_a_ring(dtype, normal, device):
    """Three places for five times, row by row in Python; NaN for a time that is not held, and for a call beyond the run."""
    table, times = normal(3 * 4, 33, dtype=dtype), torch.tensor([4, 3, 2, 1, 0], device=device)
    held = torch.tensor([[3, 0, 3, 0], [4, 1, 4, 1], [2, 2, 2, 5]], device=device).flatten()
    condition = torch.tensor([[0, 1], [2, 3]], device=device)
    for first, second in ((0, 2), (1, 4), (4, 3)):
        call, expected = torch.tensor([first, second], device=device), []
        for j in range(2):
            for b, own in enumerate((first, second)):
                time = int(times[own])
                place = time % 3 * 4 + int(condition[j, b])
                expected.append(table[place] if int(held[place]) == time else torch.full_like(table[0], float("nan")))
        for function in (gather_modulation, gather_modulation_triton):
            out = function(table, times, call, condition, 4, torch.empty(4, 33, dtype=dtype, device=device), held)
            assert torch.equal(out.nan_to_num(7.0), torch.stack(expected).nan_to_num(7.0))
    call, out = torch.tensor([5, 2], device=device), torch.empty(4, 33, dtype=dtype, device=device)
    beyond = gather_modulation_triton(table, times, call, condition, 4, out, held)
    assert beyond[[0, 2]].isnan().all()


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
