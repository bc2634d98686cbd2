"""The plants of the herbarium: 6 genera of 8 species each, as numbers.

Genera differ in shape; the species of a genus differ in details, one to three of width, margin teeth, veins and hue, and are
easily confused.
"""

from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Genus:
    """Outline, venation and colour shared by the species of a genus.

    ``m, n1, n2, n3`` are the parameters of the superformula (:mod:`.leaves`); ``m`` is the number of lobes.
    """

    name: str
    m: float
    n1: float
    n2: float
    n3: float
    aspect: float  # width / length
    veins: float  # lateral veins along the axis
    slope: float  # of the lateral veins
    palmate: bool  # veins fan out from the base instead of from the midrib
    color: tuple[float, float, float]


@dataclass(frozen=True)
class Departure:
    """How one species departs from its genus."""

    epithet: str
    aspect: float = 1.0  # factor
    teeth: float = 0.0  # margin teeth around the blade
    depth: float = 0.0  # of the teeth, as a fraction of the radius
    veins: float = 0.0  # added
    hue: float = 0.0  # turn of the colour circle
    light: float = 0.0  # added to the colour


_GENERA = (
    Genus("Acerites", 5.0, 2.2, 3.6, 3.6, 0.95, 5.0, 0.0, True, (0.72, 0.25, 0.13)),  # maple-like, five lobes, red
    Genus("Betulina", 2.0, 1.0, 1.1, 1.1, 0.62, 5.0, 0.9, False, (0.44, 0.58, 0.16)),  # birch-like, ovate, light green
    Genus("Cordatia", 1.0, 0.9, 1.5, 1.5, 0.95, 3.0, 0.0, True, (0.14, 0.42, 0.24)),  # heart-like, deep green
    Genus("Digitaria", 7.0, 3.0, 6.0, 6.0, 0.90, 7.0, 0.0, True, (0.80, 0.52, 0.12)),  # fingered, seven lobes, ochre
    Genus("Ellipsa", 2.0, 1.2, 1.2, 1.2, 0.56, 5.0, 1.3, False, (0.32, 0.46, 0.42)),  # willow-like, narrow, grey green
    Genus("Ficaria", 3.0, 4.5, 10.0, 10.0, 0.85, 4.0, 0.5, False, (0.42, 0.22, 0.38)),  # fig-like, three lobes, purple
)

_DEPARTURES = (
    Departure("alba"),
    Departure("borealis", veins=2.5),
    Departure("crispa", teeth=9.0, depth=0.09),
    Departure("dentata", teeth=19.0, depth=0.06),
    Departure("elata", veins=2.5, teeth=9.0, depth=0.09),
    Departure("flexilis", veins=2.5, teeth=19.0, depth=0.06),
    Departure("glabra", aspect=0.88, hue=0.03),
    Departure("hirta", aspect=0.88, hue=0.03, veins=2.5),
)

GENERA = tuple(genus.name for genus in _GENERA)
SPECIES_PER_GENUS = len(_DEPARTURES)
NUM_SPECIES = len(GENERA) * SPECIES_PER_GENUS
SPECIES = tuple(f"{genus} {departure.epithet}" for genus in GENERA for departure in _DEPARTURES)
PARENTS = tuple(species // SPECIES_PER_GENUS for species in range(NUM_SPECIES))
"""The genus of every species."""


@dataclass(frozen=True, eq=False)
class SpeciesTraits:
    """The numbers that a species is drawn with: one row per species, or per leaf after :meth:`of`."""

    m: Tensor
    n1: Tensor
    n2: Tensor
    n3: Tensor
    aspect: Tensor
    teeth: Tensor
    depth: Tensor
    veins: Tensor
    slope: Tensor
    palmate: Tensor
    hue: Tensor
    light: Tensor
    color: Tensor  # [B, 3]; all others [B]

    def of(self, labels: Tensor) -> "SpeciesTraits":
        """The rows of ``labels`` [B] int64.  Raises ``ValueError`` for a label that is no species."""
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < NUM_SPECIES:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"species labels must lie in [0, {NUM_SPECIES - 1}], got {found}")
        return SpeciesTraits(*(getattr(self, field.name)[labels] for field in fields(self)))


def _traits() -> SpeciesTraits:
    rows = []
    for genus in _GENERA:
        _, m, n1, n2, n3, aspect, veins, slope, palmate, color = astuple(genus)
        for departure in _DEPARTURES:
            _, factor, teeth, depth, more_veins, hue, light = astuple(departure)
            shape = (m, n1, n2, n3, aspect * factor)
            rows.append((*shape, teeth, depth, veins + more_veins, slope, float(palmate), hue, light, color))
    return SpeciesTraits(*(torch.tensor(column) for column in zip(*rows, strict=True)))


TRAITS = _traits()
