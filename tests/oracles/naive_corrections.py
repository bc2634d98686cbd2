"""Corrections of a guided prediction as their papers write them: one sample at a time, on whole tensors, in fp64.

A prediction is on its way as ``c + w d``: ``u = c - d``.  Clean estimates come from a function that the caller gives.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.engine.rules.correction import Correction


@dataclass
class Sample:
    """One sample at one call: its prediction ``c + w d``, and what the call knows.  c, d, y [C, H, W] fp64."""

    c: Tensor
    d: Tensor
    w: float
    y: Tensor
    sigma: float
    after: float
    step: int
    steps: int
    estimate: object  # output -> clean estimate

    @property
    def u(self) -> Tensor:
        return self.c - self.d

    def as_output(self, change: Tensor) -> Tensor:
        """The change of the output that changes the clean estimate so: the estimate is affine in the output."""
        zero = torch.zeros_like(change)
        return change / (self.estimate(zero + 1) - self.estimate(zero))


def dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def length(a: Tensor) -> float:
    """Above zero: the reference may be the sample's own class, and the direction nothing."""
    return max(float(a.norm()), 1e-30)


def zero_star(s: Sample, correction, memory: dict) -> Sample:
    square = dot(s.u, s.u)
    return replace(s, d=s.c - dot(s.c, s.u) / square * s.u if square else s.c)


def apg(s: Sample, correction, memory: dict) -> Sample:
    c0, u0 = s.estimate(s.c), s.estimate(s.u)
    d = c0 - u0 + correction.momentum * memory.get("average", 0.0)
    memory["average"] = d
    d = d * min(1.0, correction.radius / length(d))
    parallel = dot(d, c0) / dot(c0, c0) * c0
    return replace(s, d=s.as_output(d - parallel + correction.eta * parallel))


def tcfg(s: Sample, correction, memory: dict) -> Sample:
    directions = torch.linalg.svd(torch.stack([s.c.flatten(), s.u.flatten()]), full_matrices=False)[2]
    kept = (dot(s.u.flatten(), directions[0]) * directions[0]).view_as(s.u)
    return replace(s, d=s.c - kept)


def mambo(s: Sample, correction, memory: dict) -> Sample:
    return replace(s, w=s.w * math.exp(-correction.alpha * float(s.d.norm() / s.u.norm())))


def power_law(s: Sample, correction, memory: dict) -> Sample:
    return replace(s, w=s.w * length(s.d) ** correction.alpha)


def beta(s: Sample, correction, memory: dict) -> Sample:
    p = s.step / (s.steps - 1) if s.steps > 1 else 0.0
    a, b = correction.a, correction.b
    density = p ** (a - 1) * (1 - p) ** (b - 1) * math.gamma(a + b) / (math.gamma(a) * math.gamma(b))
    # u + (1 + w) f d is c + ((1 + w) f - 1) d: another weight of the same direction
    return replace(s, w=(1 + s.w) * density / length(s.d) ** correction.gamma - 1)


def adg(s: Sample, correction, memory: dict) -> Sample:
    c0, u0 = s.estimate(s.c), s.estimate(s.u)
    known = max(length(u0), 1e-3 * (length(c0) + length(c0 - u0)))  # a reference of no length has no direction
    theta = math.acos(min(1.0, dot(c0, u0) / (length(c0) * known)))
    turned = min(s.w * theta, correction.max_angle)
    e = c0 - dot(u0, c0) / known**2 * u0
    factor = math.sin(turned) / math.sin(theta) if math.sin(theta) > 1e-3 else s.w
    return replace(s, d=s.as_output(math.cos(turned) * c0 + factor * e - c0), w=1.0)


def fdg(s: Sample, correction, memory: dict) -> Sample:
    low = pyramid_low(s.d[None], correction.levels)[0]
    return replace(s, d=s.d - low + correction.low * low)


def blurred(x: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype) / 16
    kernel = (taps[:, None] * taps[None]).expand(x.shape[1], 1, 5, 5)
    for side, pad in ((2, (0, 0, 2, 2)), (3, (2, 2, 0, 0))):
        x = F.pad(x, pad, mode="reflect" if x.shape[side] > 2 else "replicate")
    return F.conv2d(x, kernel, groups=x.shape[1])


def pyramid_low(x: Tensor, levels: int) -> Tensor:
    """The lowest level of a Laplacian pyramid of x [B, C, H, W], at full size."""
    sizes = [tuple(x.shape[-2:])]
    for _ in range(levels - 1):
        sizes.append(tuple((size + 1) // 2 for size in sizes[-1]))
        x = F.interpolate(blurred(x), size=sizes[-1], mode="bilinear", align_corners=False)
    for size in reversed(sizes[:-1]):
        x = blurred(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
    return x


def fresca(s: Sample, correction, memory: dict) -> Sample:
    spectrum = torch.fft.fft2(s.d)
    shares = [torch.fft.fftfreq(size, dtype=torch.float64).abs() * 2 for size in s.d.shape[-2:]]
    low = (shares[0] <= correction.cutoff)[:, None] & (shares[1] <= correction.cutoff)[None]
    scaled = spectrum * torch.where(low, correction.low, correction.high)
    return replace(s, d=torch.fft.ifft2(scaled).real)


def fbg(s: Sample, correction, memory: dict) -> Sample:
    """The published code's update, in its variance-exploding levels, with Euler's step."""
    if s.w == 0:
        return s
    count = s.steps
    log_p = memory.get("posterior", 0.0)
    scale = math.exp(log_p) / (math.exp(log_p) - (1 - correction.pi))
    c0, u0 = s.estimate(s.c), s.estimate(s.u)
    guided = u0 + scale * (c0 - u0)
    if s.after > 0 and memory.get("explained") != s.step:  # of a step's two calls the first alone
        memory["explained"] = s.step
        later = s.after / (1 - s.after)
        memory["posterior"] = log_p
        if s.sigma < 1:
            now = s.sigma / (1 - s.sigma)
            x = s.y / (1 - s.sigma)
            back, ahead = later**2 / now**2, (now**2 - later**2) / now**2
            stepped = x + (later - now) * (x - guided) / now
            variance = ahead * later**2
            errors = [float(((stepped - back * x - ahead * clean) ** 2).sum()) for clean in (c0, u0)]
        else:  # the limit of an infinite level
            stepped = guided + later * s.y
            variance = later**2
            errors = [float(((stepped - clean) ** 2).sum()) for clean in (c0, u0)]
        offset = math.log((1 - correction.pi) * 3 / 2) / ((1 - correction.start) * count)
        temperature = abs(2 * memory["moment"] * offset / 10)
        pull = temperature / (2 * variance) if variance > 1e-12 else 0.0  # a second stage of a step goes nowhere
        log_p = log_p - pull * (errors[0] - errors[1]) + offset
        least = math.log((1 - correction.pi) * correction.most / (correction.most - 1))
        memory["posterior"] = min(max(log_p, least), 3.0)
    return replace(s, w=scale - 1)


def rescale(g: Tensor, s: Sample, correction, memory: dict) -> Tensor:
    return g * float(correction.phi * s.c.std() / g.std() + 1 - correction.phi)


def renorm(g: Tensor, s: Sample, correction, memory: dict) -> Tensor:
    return g * min(1.0, correction.rho * float(s.c.norm() / g.norm()))


def energy(g: Tensor, s: Sample, correction, memory: dict) -> Tensor:
    return g * float(correction.phi * s.c.norm() / g.norm() + 1 - correction.phi)


def higs(g: Tensor, s: Sample, correction, memory: dict) -> Tensor:
    x = s.estimate(g)
    begun = s.step > 0 and "average" in memory
    before = memory["average"] if begun else 0.0 * x
    memory["average"] = correction.alpha * x + (1 - correction.alpha) * before
    difference = x - before
    if not (begun and correction.low < s.sigma <= correction.high):
        return g
    parallel = dot(difference, x) / dot(x, x) * x
    high = cosine_high(difference - parallel + correction.eta * parallel, correction.cutoff)
    rising = math.sqrt((s.sigma - correction.low) / (correction.high - correction.low))
    return g + s.as_output(correction.weight * rising * high)


def refine(g: Tensor, s: Sample, correction, memory: dict) -> Tensor:
    """Every frequency by itself: its share of the estimate, written as a sum of waves."""
    if s.sigma > correction.high:
        return g
    x = s.estimate(g)
    height, width = x.shape[-2:]
    change = torch.zeros_like(x)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    for i in range(height):
        for j in range(width):
            up, right = min(i, height - i) / height * 2, min(j, width - j) / width * 2
            t = min(1.0, max(0.0, (math.hypot(up, right) - correction.cutoff) / (1 - correction.cutoff)))
            wave = torch.exp(2j * math.pi * (i * rows / height + j * columns / width).to(torch.complex128))
            share = (x * wave.conj()).sum(dim=(1, 2), keepdim=True) / (height * width) * wave
            change += correction.beta * (3 * t**2 - 2 * t**3) * share.real
    return g + s.as_output(change)


@cache
def cosines(size: int) -> Tensor:
    """The waves of a cosine transform, one a row, of length one."""
    rows = [[math.cos(math.pi * (2 * i + 1) * k / (2 * size)) for i in range(size)] for k in range(size)]
    rows = torch.tensor(rows, dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def cosine_high(x: Tensor, cutoff: float) -> Tensor:
    """x [C, H, W] in a cosine transform written as its sum, cut smoothly, and back."""
    down, across = (cosines(size) for size in x.shape[-2:])
    found = torch.einsum("ki,cij,lj->ckl", down, x, across)
    i, j = (torch.arange(size, dtype=torch.float64) / size for size in x.shape[-2:])
    found = found / (1 + torch.exp(-50 * ((i[:, None] ** 2 + j[None] ** 2).sqrt() - cutoff)))
    return torch.einsum("ki,ckl,lj->cij", down, found, across)


REFERENCE = {
    "zero-star": zero_star, "apg": apg, "tcfg": tcfg, "mambo": mambo, "power-law": power_law, "beta": beta, "adg": adg,
    "fdg": fdg, "fresca": fresca, "fbg": fbg,
}  # fmt: skip
WHOLE = {"rescale": rescale, "renorm": renorm, "energy": energy, "higs": higs, "refine": refine}


def corrected(s: Sample, others: Tensor, corrections: tuple[Correction, ...], guided: bool, memories: list[dict]) -> Tensor:
    """``c + w d + others`` of one sample through its corrections; ``guided``: whether the reference weighs something."""
    if guided and any(correction.name == "perp-neg" for correction in corrections):
        others = others - dot(others, s.d) / length(s.d) ** 2 * s.d
    for correction, memory in zip(corrections, memories, strict=True):
        if guided and correction.name in REFERENCE:
            s = REFERENCE[correction.name](s, correction, memory)
    g = s.c + s.w * s.d + others if guided else s.c + others
    for correction, memory in zip(corrections, memories, strict=True):
        if correction.name in WHOLE:
            g = WHOLE[correction.name](g, s, correction, memory)
    return g
