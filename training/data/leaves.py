"""Drawing leaves: outline, venation, colour and pose, 32 x 32 RGB.

The outline is the superformula of Gielis (Am. J. Bot. 90, 2003), ``r(t) = (|cos(m t / 4)|^n2 + |sin(m t / 4)|^n3)^(-1 / n1)``,
stretched along the leaf axis.  Every leaf is an individual: its pose and its jitter are drawn anew.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .species import TRAITS, SpeciesTraits

SIZE = 32

# what distinguishes one leaf from another of its species: uniform on these ranges, drawn in this order
INDIVIDUAL_RANGES = {
    "tilt": (-0.45, 0.45),  # radians
    "length": (0.68, 0.86),
    "right": (-0.10, 0.10),  # position, with the sheet 2 wide
    "up": (-0.08, 0.08),
    "bend": (-0.12, 0.12),
    "width": (0.95, 1.05),
    "teeth_phase": (-0.4, 0.4),
    "hue": (-0.015, 0.015),
    "light": (-0.04, 0.04),
    "lit_side": (-1.0, 1.0),  # only its sign matters
    "paper": (-0.02, 0.02),
}


def draw_leaves(labels: Tensor, generator: torch.Generator, size: int = SIZE) -> Tensor:
    """New leaf images of the given species.

    labels [B] int64 in [0, 48); returns [B, 3, size, size] fp32 in [-1, 1].  The same generator state gives the same leaves.
    """
    return render_leaves(labels, draw_individuals(labels.shape[0], generator), size)


def draw_individuals(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The random part of ``count`` leaves: [B] fp32 for every name in ``INDIVIDUAL_RANGES``."""
    ranges = INDIVIDUAL_RANGES.items()
    return {name: low + (high - low) * torch.rand(count, generator=generator) for name, (low, high) in ranges}


def render_leaves(labels: Tensor, individuals: dict[str, Tensor], size: int = SIZE) -> Tensor:
    """The picture of given individuals, each alone: labels [B], individuals [B] per name -> [B, 3, size, size] in [-1, 1]."""
    species = TRAITS.of(labels)
    frame = _leaf_frame(individuals, size)
    inside, radius = _blade(species, individuals, frame)
    color = _leaf_color(species, individuals)
    blade = _blade_color(color, individuals, radius, frame.w)
    blade = blade + (0.92 - blade) * 0.42 * _veins(species, frame)[:, None]
    image = _paper(individuals, size)
    stem = 0.55 * color + 0.12
    image = image + (stem - image) * (0.85 * _stalk(frame))[:, None]
    image = image + (blade - image) * inside[:, None]
    return (image.clamp(0, 1) * 2 - 1).contiguous()


@dataclass(frozen=True, eq=False)
class _LeafFrame:
    """Coordinates [B, size, size] of every pixel in the leaf's own frame, and the width of a pixel [B, 1, 1] in it."""

    u: Tensor  # along the axis, the tip at +1
    w: Tensor  # across
    pixel: Tensor


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]


def _pixel_axis(size: int) -> Tensor:
    """Pixel centres [size] in (-1, 1)."""
    return (torch.arange(size) + 0.5) / size * 2 - 1


def _leaf_frame(individuals: dict[str, Tensor], size: int) -> _LeafFrame:
    axis = _pixel_axis(size)
    tilt, length = individuals["tilt"], _column(individuals["length"])
    x = axis[None, None, :] - _column(individuals["right"])
    y = -axis[None, :, None] - _column(individuals["up"]) - 0.05
    u = (x * _column(tilt.sin()) + y * _column(tilt.cos())) / length
    w = (x * _column(tilt.cos()) - y * _column(tilt.sin())) / length
    w = w - _column(individuals["bend"]) * (1 - u * u)
    return _LeafFrame(u, w, 2.0 / (size * length))


def _blade(species: SpeciesTraits, individuals: dict[str, Tensor], frame: _LeafFrame) -> tuple[Tensor, Tensor]:
    """Coverage of every pixel by the blade, in [0, 1], and the radius from the blade's centre; [B, size, size] each."""
    aspect = _column(species.aspect * individuals["width"])
    ws = frame.w / aspect
    radius = torch.sqrt(frame.u * frame.u + ws * ws).clamp_min(1e-4)
    theta = torch.atan2(ws, frame.u)  # 0 at the tip
    quarter = _column(species.m) * theta / 4
    n1, n2, n3 = _column(species.n1), _column(species.n2), _column(species.n3)
    outline = (quarter.cos().abs().clamp_min(1e-6) ** n2 + quarter.sin().abs().clamp_min(1e-6) ** n3) ** (-1 / n1)
    outline = outline.clamp_max(1.6)
    teeth = _column(species.teeth)
    wave = torch.cos(teeth * theta + _column(individuals["teeth_phase"]))
    outline = outline * (1 + _column(species.depth) * wave * (teeth > 0))
    peak = outline.amax(dim=(1, 2), keepdim=True)
    edge = (outline / peak - radius) * torch.minimum(aspect, torch.ones_like(aspect))
    return (edge / frame.pixel + 0.5).clamp(0, 1), radius


def _veins(species: SpeciesTraits, frame: _LeafFrame) -> Tensor:
    """Strength of the venation [B, size, size]: a midrib with lateral veins, or veins that fan out from the base."""
    u, w, pixel = frame.u, frame.w, frame.pixel
    midrib = torch.exp(-((w / (1.2 * pixel)) ** 2))
    veins = _column(species.veins)
    lateral = (u - _column(species.slope) * w.abs()) * veins * 0.5
    fan = torch.atan2(w, u + 0.9) * veins / math.pi * 1.6
    phase = torch.where(_column(species.palmate) > 0.5, fan, lateral)
    ridge = torch.exp(-(((phase - phase.round()).abs() / 0.17) ** 2)) * (w.abs() > pixel)
    return torch.maximum(midrib, 0.55 * ridge)


def _leaf_color(species: SpeciesTraits, individuals: dict[str, Tensor]) -> Tensor:
    """The colour of each leaf [B, 3, 1, 1]."""
    color = _turn_hue(species.color + species.light[:, None], species.hue + individuals["hue"])
    return (color + individuals["light"][:, None]).clamp(0, 1)[:, :, None, None]


def _turn_hue(color: Tensor, turn: Tensor) -> Tensor:
    """Rotate RGB colours [B, 3] about the grey axis by ``turn`` [B] (in turns); Rodrigues' formula."""
    angle = turn[:, None] * 2 * math.pi
    axis = torch.full((1, 3), 3**-0.5)
    cross = torch.linalg.cross(axis.expand_as(color), color)
    along = (color * axis).sum(1, keepdim=True) * axis
    return color * angle.cos() + cross * angle.sin() + along * (1 - angle.cos())


def _blade_color(color: Tensor, individuals: dict[str, Tensor], radius: Tensor, w: Tensor) -> Tensor:
    """Colour of the blade [B, 3, size, size]: lighter on one side of the midrib, darker towards the margin."""
    side = torch.sign(_column(individuals["lit_side"]))
    shade = 1 + 0.14 * (w * side).clamp(-1, 1) - 0.10 * (radius - 0.5)
    return color * shade[:, None]


def _paper(individuals: dict[str, Tensor], size: int) -> Tensor:
    """The sheet [B, 3, size, size], a little darker towards the bottom."""
    tint = torch.tensor([0.95, 0.925, 0.865])[None, :, None, None] + _column(individuals["paper"])[:, None]
    paper = tint * (1 - 0.05 * (_pixel_axis(size)[None, None, :, None] * 0.5 + 0.5))
    return paper.expand(-1, 3, size, size)


def _stalk(frame: _LeafFrame) -> Tensor:
    """Coverage of every pixel by the petiole [B, size, size]."""
    across = torch.exp(-((frame.w / (1.1 * frame.pixel)) ** 2))
    return across * (frame.u < 0) * ((frame.u + 1.28) / frame.pixel + 0.5).clamp(0, 1)
