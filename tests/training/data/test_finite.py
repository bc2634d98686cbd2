"""A source with an end: every sample once a pass, and batches that depend on their place alone."""

import pickle
from itertools import islice

import pytest
import torch

from segue.training.data.classes import Classes
from segue.training.data.finite import FiniteSource
from segue.training.data.source import batch_loader

COUNT = 13


class Numbered(FiniteSource):
    """Samples that say which they are, and one number by chance."""

    kind = "numbers"

    def __init__(self, count: int = COUNT):
        super().__init__("numbered", (1, 1, 2), torch.arange(count) % 3, Classes(3))

    def sample(self, item, generator):
        return torch.stack([torch.tensor(float(item)), torch.rand((), generator=generator)]).view(1, 1, 2)

    def fingerprint(self):
        return {}


def stream(source, count: int, size: int, seed: int):
    """The first ``count`` places in batches of ``size``: which sample, and its chance number."""
    batches = [source.batch(index, size, seed)[0] for index in range(-(-count // size))]
    return torch.cat(batches)[:count].flatten(1).double().unbind(1)


@pytest.mark.parametrize("size", (1, 5, COUNT, 3 * COUNT + 1))
def test_every_pass_holds_every_sample_once(size, seed):
    items, _ = stream(Numbered(), 5 * COUNT, size, seed)
    passes = items.view(5, COUNT)
    assert torch.equal(passes.sort(1).values, torch.arange(COUNT).double().expand(5, -1))
    assert len({tuple(order) for order in passes.tolist()}) == 5


def test_batches_of_another_size_are_the_same_stream(seed):
    whole = stream(Numbered(), 60, 60, seed)
    for size in (1, 7, 20):
        assert all(map(torch.equal, stream(Numbered(), 60, size, seed), whole))


def test_no_number_by_chance_comes_twice_and_seeds_differ(seed):
    items, chances = stream(Numbered(), 20 * COUNT, 8, seed)
    assert len(set(chances.tolist())) == 20 * COUNT
    others, _ = stream(Numbered(), 20 * COUNT, 8, seed + 1)
    assert not torch.equal(items, others)


def test_labels_are_those_of_the_samples(seed):
    x0, labels = Numbered().batch(4, 9, seed)
    assert labels.dtype == torch.int64 and torch.equal(labels, x0[:, 0, 0, 0].long() % 3)


def test_a_run_that_is_resumed_goes_on_and_workers_change_nothing(seed):
    wanted = [Numbered().batch(index, 5, seed) for index in range(3, 8)]
    for workers in (0, 2):
        found = islice(iter(batch_loader(Numbered(), 5, seed, start=3, workers=workers)), 5)
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(found, wanted, strict=True))


def test_a_source_goes_to_another_process_without_its_permutations(seed):
    source = Numbered(1001)
    source.batch(0, 5, seed)
    text = pickle.dumps(source)
    assert len(text) < 3 * 1001 * 8  # the labels, and no permutation beside
    assert torch.equal(pickle.loads(text).batch(7, 5, seed)[0], source.batch(7, 5, seed)[0])


def test_a_source_without_samples_is_refused():
    with pytest.raises(ValueError, match="holds no samples"):
        Numbered(0)
