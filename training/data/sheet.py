"""A sheet of real leaves: one labelled row per species."""

import torch
from PIL import Image

from segue.engine.cli.sheets import labelled_sheet
from segue.engine.images import latents_to_images
from segue.engine.numeric_input import whole_number

from ..streams import MAX_SEED, stream_generator
from .leaves import draw_leaves
from .species import SPECIES

MAX_PER_SPECIES = 1 << 16


def leaf(species: int, index: int, seed: int) -> Image.Image:
    """Leaf ``index`` of a species: it depends on these three numbers only, not on the sheet it is drawn for."""
    generator = stream_generator(seed, (species << 16) + index)
    return latents_to_images(draw_leaves(torch.tensor([species]), generator))[0]


def species_sheet(species: list[int], per_species: int = 8, seed: int = 0, zoom: int | None = None) -> Image.Image:
    """``per_species`` new leaves of each of the given species, enlarged ``zoom`` times, under the species' name."""
    if not species:
        raise ValueError("species is empty; give at least one")
    per_species = whole_number(per_species, "per_species must be a whole number")
    seed = whole_number(seed, "seed must be a whole number")
    if not 1 <= per_species <= MAX_PER_SPECIES:
        raise ValueError(f"per_species must lie in [1, {MAX_PER_SPECIES}], got {per_species}")
    if not 0 <= seed < MAX_SEED:
        raise ValueError(f"seed must lie in [0, 2^31), got {seed}")
    rows = [(SPECIES[label], [leaf(label, i, seed) for i in range(per_species)]) for label in species]
    return labelled_sheet(rows, zoom)
