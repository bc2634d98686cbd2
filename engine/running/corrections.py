"""The formulas of corrections, each a few lines of vector algebra; what they are is said in :mod:`segue.engine.rules`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from segue.kernels.record import Kernels

from ..rules import guided_corrections as whole
from ..rules import reference_corrections as reference
from ..rules.correction import Correction
from .filters import cosine_high_part
from .vectors import TINY, Span, Vector, ratio

Numbers = Mapping[str, Tensor]  # of this call, [B] each


@dataclass(frozen=True, eq=False)
class Guided:
    """A prediction on its way through the corrections: ``conditional + weight * direction``, the network's own output.

    ``state`` is the sample ``y`` and ``clean``, ``slope`` [B] turn an output ``o`` into its clean estimate
    ``clean y + slope o``; ``low`` holds the low frequencies of the direction, where a correction asks for them.
    """

    conditional: Vector
    direction: Vector
    weight: Tensor  # [B]
    state: Vector | None = None
    clean: Tensor | None = None
    slope: Tensor | None = None
    low: Vector | None = None

    @property
    def reference(self) -> Vector:
        """``u``."""
        return self.conditional - self.direction

    def estimate(self, output: Vector) -> Vector:
        """The clean estimate that an output means."""
        return self.clean * self.state + self.slope * output

    def towards(self, change: Vector) -> "Guided":
        """With the change of the clean estimate ``c`` that guidance makes as a whole."""
        # Divided, as a product with the inverse rounds, and neutral numbers must change nothing to the bit.  At level 0 the
        # slope is 0 and nothing may weigh there: not divided by, so that gradients stay finite too.
        return replace(self, direction=change / torch.where(self.slope == 0, 1.0, self.slope))


def optimized_scale(guided: Guided, numbers: Numbers, _memory: Any) -> tuple[Guided, None]:
    u = guided.reference
    return replace(guided, direction=guided.conditional - guided.conditional.along(u) * u), None


def adaptive_projection(guided: Guided, numbers: Numbers, average: Vector) -> tuple[Guided, Vector]:
    clean = guided.estimate(guided.conditional)
    kept = guided.slope * guided.direction + numbers["momentum"] * average
    shrink = capped(numbers["radius"], kept.norm())
    return guided.towards(shrink * (kept + (numbers["eta"] - 1) * kept.along(clean) * clean)), kept


def capped(limit: Tensor, value: Tensor) -> Tensor:
    """The factor that brings ``value`` [B] down to ``limit`` [B]; 1 below it, also in gradients where the limit is infinite."""
    return ratio(torch.minimum(limit, value), value)


def tangential_damping(guided: Guided, numbers: Numbers, _memory: Any) -> tuple[Guided, None]:
    c, u = guided.conditional, guided.reference
    cc, cu, uu = c.square(), c.dot(u), u.square()
    # the first singular direction is e = (cos f c + sin f u) / |...|, and |...|^2 the larger eigenvalue of their products
    angle = torch.atan2(2 * cu, cc - uu) / 2
    value = (cc + uu) / 2 + (((cc - uu) / 2).square() + cu.square()).sqrt()
    part = ratio(angle.cos() * cu + angle.sin() * uu, value)
    return replace(guided, direction=c - part * (angle.cos() * c + angle.sin() * u)), None


def magnitude_damping(guided: Guided, numbers: Numbers, _memory: Any) -> tuple[Guided, None]:
    share = ratio(guided.direction.norm(), guided.reference.norm())
    return replace(guided, weight=guided.weight * torch.exp(-numbers["alpha"] * share)), None


def power_law(guided: Guided, numbers: Numbers, _memory: Any) -> tuple[Guided, None]:
    return replace(guided, weight=guided.weight * guided.direction.norm().clamp_min(TINY) ** numbers["alpha"]), None


def normalized_beta(guided: Guided, numbers: Numbers, _memory: Any) -> tuple[Guided, None]:
    factor = numbers["density"] / guided.direction.norm().clamp_min(TINY) ** numbers["gamma"]
    # (w + 1) f - 1 of a scale w + 1, which of f = 1 is w to the bit
    return replace(guided, weight=guided.weight * factor + (factor - 1)), None


def angle_domain(guided: Guided, numbers: Numbers, _memory: Any) -> tuple[Guided, None]:
    c, u = guided.estimate(guided.conditional), guided.estimate(guided.reference)
    away = guided.slope * guided.direction  # c - u
    # the part of c orthogonal to u, from their difference, which is small beside both
    orthogonal = away - away.along(u) * u
    angle = torch.atan2(orthogonal.norm() * u.known_square().sqrt(), c.dot(u))
    turned = torch.minimum(guided.weight * angle, numbers["max_angle"])
    sine = angle.sin()
    factor = torch.where(sine > SMALL_SINE, turned.sin() / sine.clamp_min(SMALL_SINE), guided.weight)
    change = (turned.cos() - 1) * c + factor * orthogonal
    return replace(guided.towards(change), weight=torch.ones_like(guided.weight)), None


SMALL_SINE = 1e-3  # below it the quotient of two sines is that of their angles, as in the authors' code


def scaled_frequencies(guided: Guided, numbers: Numbers, _memory: Any) -> tuple[Guided, None]:
    high = numbers.get("high", torch.ones_like(guided.weight))
    direction = high * guided.direction + (numbers["low"] - high) * guided.low
    return replace(guided, direction=direction), None


def feedback(guided: Guided, numbers: Numbers, posterior: Tensor) -> tuple[Guided, Tensor]:
    """``posterior`` [B] is the logarithm of how likely the condition is, as the steps before have it."""
    p = torch.maximum(posterior, numbers["least"]).exp()  # at the first call too
    scale = p / (p - numbers["floor"])
    q, later, sigma = numbers["q"], numbers["later"], numbers["sigma"]
    c, away = guided.estimate(guided.conditional), guided.slope * guided.direction
    u, step = c - away, c + (scale - 1) * away
    # Euler's step in the variance-exploding chain, and the mean of the step that either prediction expects
    noise = (later * (1 - q) / sigma) * guided.state
    from_c = noise + (1 - q) * step - (1 - q * q) * c
    from_u = noise + (1 - q) * step - (1 - q * q) * u
    gained = (from_c - from_u).dot(from_c + from_u)  # |from_c|^2 - |from_u|^2
    posterior = posterior - numbers["pull"] * gained + numbers["offset"]
    return replace(guided, weight=scale - 1), torch.maximum(posterior.clamp(max=MOST_LIKELY), numbers["least"])


def perpendicular(others: Vector, direction: Vector) -> Vector:
    """What is left of the other terms without their part along the direction of the reference."""
    return others - others.along(direction) * direction


MOST_LIKELY = 3.0  # of the logarithm, in the published code

REFERENCE: dict[type[Correction], Callable[[Guided, Numbers, Any], tuple[Guided, Any]]] = {
    reference.OptimizedScale: optimized_scale,
    reference.AdaptiveProjection: adaptive_projection,
    reference.TangentialDamping: tangential_damping,
    reference.MagnitudeDamping: magnitude_damping,
    reference.PowerLaw: power_law,
    reference.NormalizedBeta: normalized_beta,
    reference.AngleDomain: angle_domain,
    reference.FrequencyDecoupled: scaled_frequencies,
    reference.FrequencyScaled: scaled_frequencies,
    reference.Feedback: feedback,
}


def rescaled_deviation(g: Vector, c: Vector, numbers: Numbers) -> Vector:
    return g * (numbers["phi"] * ratio(c.deviation(), g.deviation()) + 1 - numbers["phi"])


def capped_norm(g: Vector, c: Vector, numbers: Numbers) -> Vector:
    return g * capped(numbers["rho"], ratio(g.norm(), c.norm()))


def preserved_energy(g: Vector, c: Vector, numbers: Numbers) -> Vector:
    return g * (numbers["phi"] * ratio(c.norm(), g.norm()) + 1 - numbers["phi"])


WHOLE: dict[type[Correction], Callable[[Vector, Vector, Numbers], Vector]] = {
    whole.RescaledDeviation: rescaled_deviation,
    whole.CappedNorm: capped_norm,
    whole.PreservedEnergy: preserved_energy,
}


def history(kernels: Kernels, x: Tensor, average: Tensor, begun: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """The change of the clean estimates x [B, C, H, W] away from ``average``, and the average that the next call finds.

    ``begun`` [B]: 0 where the average holds nothing yet, 1 elsewhere.
    """
    average = average * (begun * (1 - numbers["first"]))[:, None, None, None]
    span = Span(kernels, (x, x - average))
    own, difference = span.unit(0), span.unit(1)
    (projected,) = span.written(difference + (numbers["eta"] - 1) * difference.along(own) * own)
    weight, alpha = (number[:, None, None, None] for number in (begun * numbers["weight"], numbers["alpha"]))
    return weight * cosine_high_part(projected, numbers["cutoff"]), torch.lerp(average, x, alpha)
