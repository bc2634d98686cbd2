"""The herbarium: procedural leaf images, 32 x 32 RGB, 6 genera of 4 species each.

Every draw is new, so the true distribution is known and endless.  The outline is the superformula of Gielis (Am. J. Bot.
90, 2003), ``r(t) = (|cos(m t / 4)|^n2 + |sin(m t / 4)|^n3)^(-1 / n1)``, stretched along the leaf axis; a species adds margin
teeth, venation and colour.  Genera differ in shape; species of one genus differ in details and are easily confused.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

SIZE = 32
GENERA = ("Acerites", "Betulina", "Cordatia", "Digitaria", "Ellipsa", "Ficaria")
SPECIES_PER_GENUS = 4
NUM_SPECIES = len(GENERA) * SPECIES_PER_GENUS
PARENTS = tuple(species // SPECIES_PER_GENUS for species in range(NUM_SPECIES))

_EPITHETS = ("alba", "borealis", "crispa", "dentata")
SPECIES = tuple(f"{genus} {epithet}" for genus in GENERA for epithet in _EPITHETS)


@dataclass(frozen=True)
class Genus:
    """Outline and colour shared by the species of a genus."""

    m: float  # rotational symmetry of the superformula: number of lobes
    n1: float
    n2: float
    n3: float
    aspect: float  # width / length
    veins: float  # lateral veins along the axis
    vein_angle: float  # slope of the lateral veins
    palmate: bool  # veins fan out from the base instead of from the midrib
    color: tuple[float, float, float]


_GENERA = (
    Genus(5.0, 2.2, 3.6, 3.6, 0.95, 5.0, 0.0, True, (0.72, 0.25, 0.13)),  # maple-like, five lobes, red
    Genus(2.0, 1.0, 1.1, 1.1, 0.62, 5.0, 0.9, False, (0.44, 0.58, 0.16)),  # birch-like, ovate, light green
    Genus(1.0, 0.9, 1.5, 1.5, 0.95, 3.0, 0.0, True, (0.14, 0.42, 0.24)),  # heart-like, deep green
    Genus(7.0, 3.0, 6.0, 6.0, 0.90, 7.0, 0.0, True, (0.80, 0.52, 0.12)),  # fingered, seven lobes, ochre
    Genus(2.0, 1.2, 1.2, 1.2, 0.34, 7.0, 1.3, False, (0.32, 0.46, 0.42)),  # willow-like, narrow, grey green
    Genus(3.0, 4.5, 10.0, 10.0, 0.85, 4.0, 0.5, False, (0.42, 0.22, 0.38)),  # fig-like, three lobes, purple
)

# how the four species of every genus depart from it: (aspect, teeth count, teeth depth, vein count, hue turn, lightness)
_SPECIES = (
    (1.00, 0.0, 0.00, 0.0, 0.00, 0.00),
    (0.84, 0.0, 0.00, 2.0, 0.04, 0.06),
    (1.10, 11.0, 0.09, 0.0, -0.04, 0.00),
    (0.94, 19.0, 0.06, -1.0, 0.00, -0.07),
)


def _species_table() -> dict[str, Tensor]:
    columns: dict[str, list] = {
        name: []
        for name in ("m", "n1", "n2", "n3", "aspect", "teeth", "depth", "veins", "slope", "palmate", "hue", "light", "color")
    }
    for genus in _GENERA:
        for aspect, teeth, depth, veins, hue, light in _SPECIES:
            values = (
                genus.m,
                genus.n1,
                genus.n2,
                genus.n3,
                genus.aspect * aspect,
                teeth,
                depth,
                genus.veins + veins,
                genus.vein_angle,
                float(genus.palmate),
                hue,
                light,
                genus.color,
            )
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return {name: torch.tensor(values) for name, values in columns.items()}


_TABLE = _species_table()


def _turn_hue(color: Tensor, turn: Tensor) -> Tensor:
    """Rotate RGB colours [B, 3] about the grey axis by ``turn`` [B] (in turns)."""
    angle = turn[:, None] * 2 * math.pi
    axis = torch.full((1, 3), 3**-0.5)
    cross = torch.linalg.cross(axis.expand_as(color), color)
    along = (color * axis).sum(1, keepdim=True) * axis
    return color * angle.cos() + cross * angle.sin() + along * (1 - angle.cos())


def draw_leaves(labels: Tensor, generator: torch.Generator, size: int = SIZE) -> Tensor:
    """New leaf images of the given species.

    labels [B] int64 in [0, 24); returns [B, 3, size, size] fp32 in [-1, 1].  The same generator state gives the same leaves.
    """
    count = labels.shape[0]
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < NUM_SPECIES:
        raise ValueError(f"species labels must lie in [0, {NUM_SPECIES - 1}], got {int(labels.min())} to {int(labels.max())}")
    species = {name: column[labels] for name, column in _TABLE.items()}

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def column(values: Tensor) -> Tensor:
        return values[:, None, None]

    # pose: leaf coordinates u (along the axis, tip at +1) and w (across), one pixel = `pixel` units
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    angle, length = uniform(-0.45, 0.45), uniform(0.68, 0.86)
    x = axis[None, None, :] - column(uniform(-0.10, 0.10))
    y = -axis[None, :, None] - column(uniform(-0.08, 0.08)) - 0.05
    u = (x * column(angle.sin()) + y * column(angle.cos())) / column(length)
    w = (x * column(angle.cos()) - y * column(angle.sin())) / column(length)
    w = w - column(uniform(-0.12, 0.12)) * (1 - u * u)  # a slight bend
    pixel = 2.0 / (size * column(length))

    aspect = column(species["aspect"] * uniform(0.95, 1.05))
    ws = w / aspect
    radius = torch.sqrt(u * u + ws * ws).clamp_min(1e-4)
    theta = torch.atan2(ws, u)  # 0 at the tip
    quarter = column(species["m"]) * theta / 4
    n1, n2, n3 = (column(species[name]) for name in ("n1", "n2", "n3"))
    outline = (quarter.cos().abs().clamp_min(1e-6) ** n2 + quarter.sin().abs().clamp_min(1e-6) ** n3) ** (-1 / n1)
    outline = outline.clamp_max(1.6)
    teeth = column(species["teeth"])
    outline = outline * (1 + column(species["depth"]) * torch.cos(teeth * theta + column(uniform(-0.4, 0.4))) * (teeth > 0))
    peak = outline.amax(dim=(1, 2), keepdim=True)
    edge = (outline / peak - radius) * torch.minimum(aspect, torch.ones_like(aspect))
    inside = (edge / pixel + 0.5).clamp(0, 1)

    # venation: a midrib and lateral veins, or veins that fan out from the base
    sharp = 1.2 * pixel
    midrib = torch.exp(-((w / sharp) ** 2))
    veins = column(species["veins"])
    lateral = (u - column(species["slope"]) * w.abs()) * veins * 0.5
    fan = torch.atan2(w, u + 0.9) * veins / math.pi * 1.6
    palmate = column(species["palmate"])
    phase = torch.where(palmate > 0.5, fan, lateral)
    ridge = torch.exp(-(((phase - phase.round()).abs() / 0.17) ** 2)) * (w.abs() > pixel)
    vein = torch.maximum(midrib, 0.55 * ridge)

    # colour: hue and lightness of the species, jitter of the individual, shading across the blade
    color = _turn_hue(species["color"] + species["light"][:, None], species["hue"] + uniform(-0.015, 0.015))
    color = (color + uniform(-0.04, 0.04)[:, None]).clamp(0, 1)[:, :, None, None]
    shade = 1 + 0.14 * (w * torch.sign(column(uniform(-1, 1)))).clamp(-1, 1) - 0.10 * (radius - 0.5)
    blade = color * shade[:, None]
    blade = blade + (0.92 - blade) * 0.42 * vein[:, None]

    # paper with a soft gradient, a shadow, the petiole
    paper_tint = torch.tensor([0.95, 0.925, 0.865])[None, :, None, None] + column(uniform(-0.02, 0.02))[:, None]
    paper = paper_tint * (1 - 0.05 * (axis[None, None, :, None] * 0.5 + 0.5))
    paper = paper.expand(count, 3, size, size)
    stalk = torch.exp(-((w / (1.1 * pixel)) ** 2)) * (u < 0) * ((u + 1.28) / pixel + 0.5).clamp(0, 1)
    stem = 0.55 * color + 0.12
    image = paper + (stem - paper) * (0.85 * stalk)[:, None]
    image = image + (blade - image) * inside[:, None]
    return (image.clamp(0, 1) * 2 - 1).contiguous()


class Herbarium(IterableDataset):
    """An endless stream of ``(image [B, 3, 32, 32] fp32, label [B] int64)`` batches; every draw is new.

    Batch ``i`` of worker ``k`` of ``n`` is drawn from the seed ``(seed, i * n + k)``, so the stream does not depend on the
    number of workers, and ``start`` resumes it.
    """

    def __init__(self, batch_size: int, seed: int = 0, start: int = 0):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.seed, self.start = batch_size, seed, start

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 32) + index)
        labels = torch.randint(0, NUM_SPECIES, (self.batch_size,), generator=generator)
        return draw_leaves(labels, generator), labels

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        step, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        index = self.start + offset
        while True:
            yield self.batch(index)
            index += step


def herbarium_loader(batch_size: int, seed: int = 0, start: int = 0, workers: int = 0) -> DataLoader:
    """A DataLoader over :class:`Herbarium`; batches come in the same order for any number of workers."""
    return DataLoader(Herbarium(batch_size, seed, start), batch_size=None, num_workers=workers)
