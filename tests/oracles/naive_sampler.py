"""The naive sampler: every branch evaluated in full, alone, in fp64; solvers as textbooks write them; no tables, no rows.

It shares with the engine only the network's modules and the guidance dataclasses that state the question.
"""

import math
from dataclasses import dataclass

import textbook_solvers
import torch
from naive_corrections import Sample, corrected
from torch import Tensor

from segue.engine.planning.branch_paths import branch_path
from segue.engine.rules.branch import Branch, Exit, Perturb
from segue.engine.rules.dropped_blocks import DropBlocks
from segue.engine.rules.guidance import Guidance
from segue.engine.rules.step_weight import StepWeight
from segue.engine.rules.window import Window
from segue.kernels.record import DIFFERENTIABLE
from segue.models.rows import GATED, Segment
from segue.models.sit import SiT

ROUNDING = 1e-12  # what is left of a weight and a delta that cancel is none


def branch_labels(branch: Branch, labels: Tensor, spec) -> Tensor:
    if branch.condition == "cond":
        return labels
    if branch.condition == "uncond":
        return torch.full_like(labels, spec.null_label)
    if str(branch.condition).startswith("parent"):
        tier = int(branch.condition.partition(":")[2] or 1)
        return torch.tensor([spec.parent_label(int(label), tier) for label in labels])
    return torch.full_like(labels, branch.condition)


def full_forward(
    model: SiT, x: Tensor, time: float, labels: Tensor, network: Perturb | Exit | DropBlocks | None, step: int = 0
) -> Tensor:
    """One branch at a step, all layers, all output channels: [B, C_out, H, W]."""
    spec, batch = model.spec, x.shape[0]
    modulation = model.modulation(torch.full((batch,), time, dtype=torch.float64, device=x.device), labels)
    per_block, final, exits = model.split_modulation(modulation)
    h = model.embed(x)
    for layer, block in enumerate(model.blocks):
        if isinstance(network, Exit) and network.layer == layer:
            return patches_to_image(model.exit_layers[str(layer)](h, exits[layer]), spec, x)
        if isinstance(network, DropBlocks) and layer in network.dropped(spec.depth, step + 1)[step]:
            continue
        segments: tuple[Segment, ...] = ()
        if isinstance(network, Perturb) and layer in network.layers:
            if network.kind == "skip":
                continue
            segments = (Segment(0, batch, network.kind),)
        h = block(h, per_block[layer], DIFFERENTIABLE, segments)
    return patches_to_image(model.final_layer(h, final), spec, x)


def patches_to_image(patches: Tensor, spec, x: Tensor) -> Tensor:
    """[B, L, P P C_out] -> [B, C_out, H, W], written with loops over the patch grid."""
    out = torch.empty(x.shape[0], spec.out_channels, *x.shape[2:], dtype=patches.dtype, device=x.device)
    p, columns = spec.patch, x.shape[3] // spec.patch
    for index in range(patches.shape[1]):
        i, j = index // columns, index % columns
        tile = patches[:, index].view(-1, p, p, spec.out_channels).permute(0, 3, 1, 2)
        out[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p] = tile
    return out


def in_window(window: Window, index: int, count: int, sigma: float) -> bool:
    if window.kind == "all":
        return True
    if window.kind == "sigma":
        return window.low < sigma <= window.high
    if window.kind == "fraction":
        return window.low <= index / count < window.high
    return window.low <= index + 1 <= window.high


def variance_preserving_levels() -> list[tuple[float, float]]:
    """(alpha, s) of the 1000 levels of DiT's chain."""
    levels, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (2e-2 - 1e-4) * i / 999)
        levels.append((math.sqrt(product), math.sqrt(1 - product)))
    return levels


def circle(sigma: float) -> tuple[float, float, float]:
    """(alpha, s, time) of the cosine path where ``s / (alpha + s)`` is ``sigma``."""
    angle = math.atan2(sigma, 1 - sigma)
    return math.cos(angle), math.sin(angle), angle / (math.pi / 2)


def extrapolated(kept: list[tuple[float, Tensor]], sigma: float) -> Tensor:
    """The value at ``sigma`` of the polynomial through (level, value) pairs by Neville's scheme; the last at a level counts."""
    levels, values = [*dict(kept)], [*dict(kept).values()]
    for width in range(1, len(levels)):
        values = [
            ((sigma - levels[i + width]) * values[i] + (levels[i] - sigma) * values[i + 1]) / (levels[i] - levels[i + width])
            for i in range(len(levels) - width)
        ]
    return values[0].clone()


@dataclass
class NaiveSampler:
    """Holds fp64 copies of the networks.  A discrete model moves the levels to the nearest log signal-to-noise ratio."""

    models: dict[str, SiT]
    guidance: Guidance
    labels: Tensor
    sigmas: list[float]

    def __post_init__(self):
        self.step = 0
        spec = self.models["main"].spec
        self.discrete, self.cosine = spec.time == "discrete", spec.path == "cosine"
        if self.discrete:
            self.levels = variance_preserving_levels()
            self.indices = [self.nearest(sigma) if sigma > 0 else None for sigma in self.sigmas]
            self.sigmas = [0.0 if i is None else self.levels[i][1] / sum(self.levels[i]) for i in self.indices]

    def nearest(self, sigma: float) -> int:
        if sigma >= 1:
            return 999
        wanted = math.log(sigma / (1 - sigma))
        return min(range(1000), key=lambda i: abs(math.log(self.levels[i][1] / self.levels[i][0]) - wanted))

    def term_weight(self, term, step: int) -> float:
        """The weight of a term at a step, zero outside its window."""
        count = len(self.sigmas) - 1
        chosen = [i for i in range(count) if in_window(term.window, i, count, self.sigmas[i])]
        if step not in chosen:
            return 0.0
        if term.weight.function is not None:
            levels = self.sigmas[step : step + (2 if isinstance(term.weight.function, StepWeight) else 1)]
            return term.weight.function(*levels)
        position = chosen.index(step) / (len(chosen) - 1) if len(chosen) > 1 else 0.5
        return term.weight.base + term.weight.delta * (1 - 2 * position)

    def output(self, branch: Branch, y: Tensor, sigma: float) -> Tensor:
        """What the network of one branch says at state ``y``: noise, or a velocity in either direction."""
        return self.all_channels(branch, y, sigma)[:, : self.models["main"].spec.channels]

    def all_channels(self, branch: Branch, y: Tensor, sigma: float) -> Tensor:
        """With what a network says of the variance behind it."""
        model = self.models[branch.model]
        labels = branch_labels(branch, self.labels, self.models["main"].spec)
        if self.discrete:
            index = self.indices[self.sigmas.index(sigma)]
            x = sum(self.levels[index]) * y  # the variance-preserving state
            return full_forward(model, x, float(index), labels, branch.network, self.step)
        alpha, s, time = circle(sigma) if self.cosine else (1 - sigma, sigma, sigma)
        time = {"sigma": time, "data_time": 1 - time}[model.spec.time]
        return full_forward(model, (alpha + s) * y, time, labels, branch.network, self.step)

    def as_velocity(self, output: Tensor, y: Tensor, sigma: float) -> Tensor:
        """The velocity ``eps - x0`` that an output means."""
        if self.discrete:
            alpha, s = self.levels[self.indices[self.sigmas.index(sigma)]]
            return output - ((alpha + s) * y - s * output) / alpha
        output = -output if self.models["main"].spec.prediction == "data_velocity" else output
        if not self.cosine:
            return output
        alpha, s, _ = circle(sigma)
        x, turned = (alpha + s) * y, output / (math.pi / 2)  # of alpha x0 + s eps and alpha eps - s x0
        return (s * x + alpha * turned) - (alpha * x - s * turned)

    def velocity(self, y: Tensor, sigma: float, step: int) -> Tensor:
        """The guided velocity; a branch that is reused runs at some of the consecutive calls that weigh it."""
        self.calls, self.step = self.calls + 1, step
        if step < self.guidance.zero_steps:
            return torch.zeros_like(y)
        conditional = self.output(Branch(), y, sigma)
        others, direction, scale = torch.zeros_like(y), torch.zeros_like(y), 0.0
        referred = any(correction.needs_reference for correction in self.guidance.corrections)
        perpendicular = any(correction.name == "perp-neg" for correction in self.guidance.corrections)
        terms: dict[Branch, list] = {}
        for term in self.guidance.terms:
            terms.setdefault(term.branch, []).append(term)
        for branch, same in terms.items():
            weight = sum(self.term_weight(term, step) for term in same)
            weight = weight if abs(weight) > ROUNDING else 0.0
            age, reuse = self.ages.get(branch, 0), same[0].reuse
            self.ages[branch] = age + 1 if weight else 0
            if not age:
                self.kept[branch] = []
            if not weight:
                continue
            if age % reuse.refresh == 0 if reuse.calls is None else not age or self.calls in reuse.calls:
                found = conditional - self.output(branch, y, sigma)
                self.kept[branch].append((sigma, found))
            else:
                found = extrapolated(self.kept[branch][-reuse.order - 1 :], sigma)
            if referred and branch.condition != "cond" and (not perpendicular or branch.condition == "uncond"):
                direction, scale = found, weight
                continue
            difference = weight * found
            if same[0].channels is not None:
                difference[:, same[0].channels :] = 0
            others += difference
        guided = conditional + others
        if self.guidance.corrections:
            guided = self.corrected(y, sigma, step, conditional, direction, scale, others)
        return self.scaled(self.as_velocity(guided, y, sigma), y, sigma)

    def scaled(self, v: Tensor, y: Tensor, sigma: float) -> Tensor:
        """The velocity with the noise that it means scaled, and the clean estimate that this leaves of the state."""
        for correction in self.guidance.corrections:
            if correction.name not in ("tsr", "epsilon") or sigma == 1:
                continue
            ratio = ((1 - sigma) / sigma) ** 2 if sigma else math.inf
            factor = 1 / correction.factor if correction.name == "epsilon" else 1.0
            if correction.name == "tsr":
                signal = ratio * correction.width**2
                factor = correction.k if math.isinf(signal) else (signal + 1) / (signal / correction.k + 1)
            noise = factor * (y + (1 - sigma) * v)
            v = noise - (y - sigma * noise) / (1 - sigma)
        return v

    def corrected(self, y, sigma, step, conditional, direction, scale, others) -> Tensor:
        """The guided output, sample by sample."""
        guided = torch.empty_like(y)
        for i in range(len(y)):

            def estimate(output, i=i):
                return y[i] - sigma * self.as_velocity(output[None], y[i : i + 1], sigma)[0]

            memories = self.memories.setdefault(i, [{"moment": self.moment(own)} for own in self.guidance.corrections])
            place = sigma, self.sigmas[step + 1], step, len(self.sigmas) - 1
            sample = Sample(conditional[i], direction[i], scale, y[i], *place, estimate)
            guided[i] = corrected(sample, others[i], self.guidance.corrections, scale != 0, memories)
        return guided

    def moment(self, correction) -> float:
        """The variance of a step back where FBG's guidance is strongest, in the variance-exploding levels."""
        if correction.name != "fbg":
            return 0.0
        peak, count = correction.peak, len(self.sigmas) - 1
        variances = []
        for s, t in zip(self.sigmas, self.sigmas[1:], strict=False):
            later = t / (1 - t)
            share = (t * (1 - s) / (s * (1 - t))) if s else 0.0
            variances.append((1 - share**2) * later**2)
        at = max(0.0, (1 - peak) * count - 1)  # of the step that ends there
        first = min(int(at), count - 1)
        following = min(first + 1, count - 1)
        return variances[first] + (at - first) * (variances[following] - variances[first])

    @torch.no_grad()
    def run(self, solver: str, noise: Tensor, loop_noise=None) -> Tensor:
        y, previous = noise.double(), None
        self.kept, self.ages, self.memories, self.calls = {}, {}, {}, 0
        if self.discrete:
            y = y / sum(self.levels[self.indices[0]])
        if self.cosine:
            y = y / sum(circle(self.sigmas[0])[:2])
        if solver in textbook_solvers.SOLVERS:
            return self._by_textbook(solver, y, loop_noise)
        for i, (s, t) in enumerate(zip(self.sigmas, self.sigmas[1:], strict=False)):
            v = self.velocity(y, s, i)
            if solver in ("euler", "ddim"):
                y = self._ddim(y, v, s, t) if solver == "ddim" else y + (t - s) * v
            elif solver == "heun":
                ahead = y + (t - s) * v
                y = y + (t - s) / 2 * (v + self.velocity(ahead, t, i)) if t > 0 else ahead
            elif solver == "ab2":
                y, previous = self._adams_bashforth(y, v, s, t, previous)
            elif solver == "dpm++2m":
                y, previous = self._dpm(y, v, s, t, previous)
            elif solver == "euler-maruyama":
                last = i == len(self.sigmas) - 2
                score = -(y + (1 - s) * v) / s
                y = y + (v - s * score) * (t - s)  # w = 2 s, half of it times the score
                if not last:
                    y = y + math.sqrt(2 * s * (s - t)) * loop_noise(i)
            elif solver == "ddpm":
                y = self._ancestral(y, v, i, loop_noise(i))
            else:
                raise ValueError(solver)
        return y

    def _by_textbook(self, solver: str, y: Tensor, loop_noise) -> Tensor:
        """Noise is that of the number of the call before it."""
        calls: list[float] = []

        def velocity(y, sigma, step):
            calls.append(sigma)
            return self.velocity(y, sigma, step)

        return textbook_solvers.SOLVERS[solver](y, self.sigmas, velocity, lambda: loop_noise(len(calls) - 1))

    def _ancestral(self, y: Tensor, v: Tensor, i: int, noise: Tensor) -> Tensor:
        """DDPM's posterior, whose variance the conditional row chooses between its own and that of the chain."""
        (alpha, s), sigma = self.levels[self.indices[i]], self.sigmas[i]
        before = (1.0, 0.0) if self.indices[i + 1] is None else self.levels[self.indices[i + 1]]
        x, clean, beta = (alpha + s) * y, y - sigma * v, 1 - (alpha / before[0]) ** 2
        x = before[0] * beta / s**2 * clean + alpha / before[0] * before[1] ** 2 / s**2 * x
        if before[1]:
            channels = self.models["main"].spec.channels
            fraction = (self.all_channels(Branch(), y, sigma)[:, channels:] + 1) / 2
            x = x + (beta**fraction * (beta * before[1] ** 2 / s**2) ** (1 - fraction)).sqrt() * noise
        return x / sum(before)

    @staticmethod
    def _ddim(y: Tensor, v: Tensor, s: float, t: float) -> Tensor:
        x0, eps = y - s * v, y + (1 - s) * v
        return (1 - t) * x0 + t * eps

    @staticmethod
    def _adams_bashforth(y, v, s, t, previous):
        if previous is None:
            return y + (t - s) * v, (v, s)
        v_old, s_old = previous
        slope = (v - v_old) / (s - s_old)  # the line through two velocities, integrated from s to t
        return y + (t - s) * v + slope * (t - s) ** 2 / 2, (v, s)

    @staticmethod
    def _dpm(y, v, s, t, previous):
        x0 = y - s * v
        if s in (0, 1) or t in (0, 1):
            return NaiveSampler._ddim(y, v, s, t), (x0, s)

        def lam(sigma):
            return math.log((1 - sigma) / sigma)

        estimate = x0
        if previous is not None and 0 < previous[1] < 1:
            r = (lam(s) - lam(previous[1])) / (lam(t) - lam(s))
            estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous[0]
        h = lam(t) - lam(s)
        return t / s * y - (1 - t) * math.expm1(-h) * estimate, (x0, s)


def path_of(branch: Branch, conditions, depth: int) -> tuple[object, tuple[str, ...]]:
    """The condition of a branch and what it does at every layer; blocks that it may leave out are its own."""
    path = branch_path(branch, conditions, depth)
    own = {GATED: f"{GATED} {branch.network!r}"}
    return branch.condition, tuple(own.get(operation, operation) for operation in path.operations)


def executed_rows(paths: list[tuple[object, tuple[str, ...]]], depth: int) -> list[int]:
    """Rows per layer and sample when equal work is done once: distinct (condition, operations so far) that are not skips."""
    return [
        len({(condition, path[: i + 1]) for condition, path in paths if len(path) > i and path[i] != "skip"})
        for i in range(depth)
    ]


def distinct_evaluations(paths: list[tuple[object, tuple[str, ...]]]) -> int:
    """Branches with rows of their own: paths that are no beginning of another with the same condition."""
    distinct = set(paths)
    return sum(
        not any(c == condition and other != path and other[: len(path)] == path for c, other in distinct)
        for condition, path in distinct
    )
