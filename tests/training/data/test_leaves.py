"""Leaves: repeatable, independent of their batch, bounded, and fine-grained on purpose."""

import pytest
import torch

from segue.training.data.leaves import INDIVIDUAL_RANGES, draw_individuals, draw_leaves, render_leaves
from segue.training.data.species import GENERA, NUM_SPECIES, PARENTS, SPECIES
from tests.tolerances import PIXELS_ANY_BATCH, PIXELS_ANY_MACHINE

# mean pixel of one leaf of each species, seed 0, as the bundled networks were trained on
MEAN_PIXELS = (
    *(0.4691, 0.4577, 0.4500, 0.4423, 0.4531, 0.5232, 0.4522, 0.5550, 0.5952, 0.6242, 0.6447, 0.6556),
    *(0.6350, 0.5920, 0.6777, 0.6297, 0.3360, 0.3651, 0.4518, 0.4511, 0.3802, 0.3102, 0.5071, 0.4719),
    *(0.5843, 0.5527, 0.5773, 0.5755, 0.6061, 0.6509, 0.5915, 0.6529, 0.6418, 0.5581, 0.6210, 0.6891),
    *(0.6064, 0.6345, 0.6575, 0.6479, 0.5223, 0.5495, 0.5451, 0.4805, 0.4855, 0.5139, 0.6326, 0.5854),
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_labels(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, NUM_SPECIES, (count,), generator=generator(seed))


def test_the_leaves_are_those_the_bundled_networks_were_trained_on():
    means = draw_leaves(torch.arange(NUM_SPECIES), generator(0)).mean((1, 2, 3))
    assert torch.allclose(means, torch.tensor(MEAN_PIXELS), rtol=0, atol=PIXELS_ANY_MACHINE)


@pytest.mark.parametrize("size", (1, 17, 32))
def test_a_seed_repeats_its_leaves_and_another_seed_draws_others(size, seed):
    labels = random_labels(7, seed)
    first, again, other = (draw_leaves(labels, generator(s), size) for s in (seed, seed, seed + 1))
    assert torch.equal(first, again)
    assert (first != other).any(dim=(1, 2, 3)).all()


def test_pixels_lie_between_minus_one_and_one_for_every_species(seed):
    leaves = draw_leaves(torch.arange(NUM_SPECIES).repeat(9), generator(seed))
    assert leaves.dtype == torch.float32 and torch.isfinite(leaves).all()
    assert leaves.min() >= -1 and leaves.max() <= 1
    assert leaves.std(dim=(1, 2, 3)).min() > 0.1, "a leaf stands out from its paper"


@pytest.mark.parametrize("split", ((1,) * 65, (63, 2), (7, 33, 25), (0, 65)))
def test_a_leaf_does_not_depend_on_its_batch(split, seed):
    labels, individuals = random_labels(65, seed), draw_individuals(65, generator(seed))
    whole = render_leaves(labels, individuals)
    parts = {name: values.split(split) for name, values in individuals.items()}
    pieces = [
        render_leaves(part, {name: parts[name][i] for name in INDIVIDUAL_RANGES}) for i, part in enumerate(labels.split(split))
    ]
    assert (torch.cat(pieces) - whole).abs().max() <= PIXELS_ANY_BATCH


def test_individuals_fill_their_ranges(seed):
    for name, values in draw_individuals(4000, generator(seed)).items():
        low, high = INDIVIDUAL_RANGES[name]
        margin = 0.01 * (high - low)
        assert low <= values.min() < low + margin and high - margin < values.max() <= high, name


def test_species_can_be_told_apart_but_those_of_a_genus_are_confused(seed):
    """The nearest class mean finds the genus almost always and the species often: fine-grained, as guidance needs it."""
    known, new = torch.arange(NUM_SPECIES).repeat_interleave(64), torch.arange(NUM_SPECIES).repeat_interleave(20)
    means = draw_leaves(known, generator(seed)).reshape(NUM_SPECIES, 64, -1).mean(1)
    leaves = draw_leaves(new, generator(seed + 1)).flatten(1)
    guess = torch.cdist(leaves, means).argmin(1)
    genus = torch.tensor(PARENTS)
    right, same_genus = guess == new, genus[guess] == genus[new]
    assert 0.15 < right.float().mean() < 0.6  # chance is 1/48, and 1/8 for one who knows the genus
    assert same_genus.float().mean() > 0.95
    assert same_genus[~right].float().mean() > 0.9


@pytest.mark.parametrize("label", (-1, NUM_SPECIES))
def test_a_label_that_is_no_species_is_refused(label):
    with pytest.raises(ValueError, match=rf"\[0, 47\].*{label}"):
        draw_leaves(torch.tensor([3, label]), generator(0))


def test_names_and_genera_agree():
    assert len(set(SPECIES)) == NUM_SPECIES == 48
    assert all(SPECIES[c].startswith(GENERA[parent]) for c, parent in enumerate(PARENTS))
