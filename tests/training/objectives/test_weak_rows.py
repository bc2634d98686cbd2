"""Rows of weak forwards: all that are needed, none that is not, in few sizes."""

import pytest
import torch

from segue.training.objectives.weak_rows import WeakRows, padded_size


@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("batch", (1, 3, 16, 37))
def test_slots_lead_every_sample_to_its_own_row(batch, padded, seed):
    generator = torch.Generator().manual_seed(seed)
    for share in (0.0, 0.3, 1.0):
        needed = torch.rand(batch, generator=generator) < share
        found = WeakRows.of(needed, padded)
        mine = needed.nonzero()[:, 0]
        assert torch.equal(found.rows[found.slot[needed]], mine)
        assert set(found.rows.tolist()) == set(mine.tolist())
        assert found.slot.shape == (batch,)
        assert len(found.rows) == (padded_size(len(mine), batch) if padded and len(mine) else len(mine))


@pytest.mark.parametrize("batch", (1, 5, 16, 17, 128, 333))
def test_sizes_are_few_and_large_enough(batch):
    sizes = [padded_size(count, batch) for count in range(1, batch + 1)]
    assert len(set(sizes)) <= 16
    assert all(count <= size <= batch for count, size in enumerate(sizes, start=1))
    assert all(size - count < -(-batch // 16) for count, size in enumerate(sizes, start=1))
