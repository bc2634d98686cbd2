"""Random streams: another seed draws other leaves and other noise, and none repeats itself."""

import torch

from segue.training.data.herbarium import Herbarium
from segue.training.data.sheet import leaf
from segue.training.data.source import MAX_BATCHES
from segue.training.streams import MAX_SEED, WORDS, stream_generator

SEEDS = (0, 1, 2, 7, 2**16, MAX_SEED - 1)


def state(seed: int, index: int) -> int:
    """What the generator was started from: of that, PyTorch reads the lower 32 bits."""
    started = stream_generator(seed, index).initial_seed()
    assert 0 <= started < WORDS
    return started


def test_pytorch_reads_the_lower_32_bits_of_a_seed():
    """Why a seed cannot be put above an index."""
    first, second = (torch.randn(9, generator=torch.Generator().manual_seed(s)) for s in (5, (3 << 32) + 5))
    assert torch.equal(first, second)


def test_stream_0_is_counted():
    """The bundled networks were trained on it."""
    assert [state(0, index) for index in (0, 1, 7, MAX_BATCHES, WORDS - 1)] == [0, 1, 7, MAX_BATCHES, WORDS - 1]


def test_no_stream_repeats_itself_or_runs_beside_another():
    indices = [*range(3000), *range(MAX_BATCHES, MAX_BATCHES + 3000)]
    runs = {seed: [state(seed, index) for index in indices] for seed in SEEDS}
    assert all(len(set(run)) == len(indices) for run in runs.values())
    for first in SEEDS:
        for second in SEEDS:
            shared = set(runs[first]) & set(runs[second])
            assert first == second or len(shared) <= 3  # 6000^2 / 2^32: less than one by chance


def test_another_seed_draws_other_batches_and_leaves():
    batches = [Herbarium().batch(3, 9, seed) for seed in SEEDS]
    leaves = [leaf(4, 2, seed).tobytes() for seed in SEEDS]
    for i, (images, labels) in enumerate(batches):
        assert not any(torch.equal(labels, other) or torch.equal(images, others) for others, other in batches[:i])
        assert leaves[i] not in leaves[:i]
