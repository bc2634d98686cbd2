"""The stream of leaves: the same batches whoever draws them, from wherever it starts."""

from itertools import islice

import pytest
import torch

from segue.training.data.herbarium import Herbarium
from segue.training.data.leaves import draw_leaves
from segue.training.data.source import batch_loader
from segue.training.data.species import NUM_SPECIES
from segue.training.streams import stream_generator


def take(count: int, **settings) -> list:
    return list(islice(iter(batch_loader(Herbarium(), 5, **settings)), count))


def same(ours, theirs) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("workers", (1, 2))
def test_batches_come_in_one_order_for_any_number_of_workers(workers, seed):
    assert same(take(7, seed=seed, start=2, workers=workers), take(7, seed=seed, start=2))


def test_a_stream_that_starts_later_is_the_rest_of_the_stream(seed):
    assert same(take(3, seed=seed, start=4), take(7, seed=seed)[4:])


def test_every_batch_is_new(seed):
    images = torch.cat([images for images, _ in take(9, seed=seed)])
    assert torch.unique(images.flatten(1), dim=0).shape[0] == images.shape[0]


def test_a_batch_holds_leaves_of_its_labels(seed):
    images, labels = Herbarium().batch(7, 33, seed)
    generator = stream_generator(seed, 7)
    assert torch.equal(torch.randint(0, NUM_SPECIES, (33,), generator=generator), labels)
    assert torch.equal(draw_leaves(labels, generator), images)


def test_species_are_equally_likely(seed):
    count = NUM_SPECIES * 100
    labels = torch.cat([labels for _, labels in take(count // 5, seed=seed)])
    expected, spread = count / NUM_SPECIES, (count / NUM_SPECIES * (1 - 1 / NUM_SPECIES)) ** 0.5
    assert (torch.bincount(labels, minlength=NUM_SPECIES) - expected).abs().max() < 5 * spread


@pytest.mark.parametrize(
    ("settings", "words"),
    (
        ({"batch_size": 0}, "batch_size.*0"),
        ({"batch_size": 1, "seed": -1}, "seed.*-1"),
        ({"batch_size": 1, "seed": 2**31}, "seed.*2147483648"),
        ({"batch_size": 1, "start": -3}, "start.*-3"),
        ({"batch_size": 1, "workers": -1}, "workers.*-1"),
    ),
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        batch_loader(Herbarium(), **settings)
