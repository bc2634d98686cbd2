"""What guidance does where everything is known: rules on exact mixtures in the plane, scored against the truth.

Networks of limited capacity are played by blurred mixtures that also confuse a share of the classes; the weak one is blurred
more.  After figures 2 and 3 of SGG (arXiv 2603.20584), with mixtures and numbers of our own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.planning.schedule import Schedule
from segue.engine.rules.guidance import Guidance, Unguided
from segue.engine.rules.linear_rules import CFG, SGG, AutoGuidance
from segue.training.leaf_trees import leaf_mixture
from segue.training.mixture import GaussianMixture
from segue.training.mixture_network import leaf_network

from .scores.frechet import Moments, frechet_distance

SOLVER, STEPS = "euler", 60
OTHER_SCALES = (1.2, 1.4)
INSIDE = 0.99  # of real points lie where the density of their class is as high


@dataclass(frozen=True)
class Study:
    """Trees, how well the networks know them, and the rules: CFG at ``scale``, a weak network at ``weight``, both by segments.

    ``blur`` and ``weak_blur`` are standard deviations, ``confusion`` the share of both networks' classes that is mixed.
    """

    name: str
    num_classes: int
    depth: int
    blur: float = 0.05
    weak_blur: float = 0.12
    confusion: float = 0.15
    scale: float = 1.8
    weight: float = 1.2
    switch: float = 0.5
    truth: GaussianMixture = field(init=False, repr=False)
    weak_is = "a more blurred network"

    def __post_init__(self):
        object.__setattr__(self, "truth", leaf_mixture(self.num_classes, self.depth))

    def engine(self) -> Engine:
        main, weak = (
            leaf_network(self.num_classes, self.depth, blur=blur, confusion=self.confusion, name=name)
            for blur, name in ((self.blur, "leaves"), (self.weak_blur, "blurred leaves"))
        )
        return Engine(main, {"weak": weak}, device="cpu")

    def numbers(self) -> dict[str, Any]:
        """All that makes it the study that it is, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "truth"}

    @property
    def rules(self) -> dict[str, Guidance]:
        cfg, weak = CFG(self.scale), AutoGuidance(self.weight)
        return {"none": Unguided(), "CFG": cfg, "weak": weak, "SGG": SGG(cfg, weak, self.switch)}

    @property
    def comparisons(self) -> dict[str, Guidance]:
        """What a fair comparison needs besides: CFG at other scales, and both guidances at all levels."""
        others = {f"CFG {scale:g}": CFG(scale) for scale in OTHER_SCALES}
        return self.rules | others | {"CFG and weak throughout": CFG(OTHER_SCALES[-1]) + AutoGuidance(self.weight)}

    def labels(self, count: int) -> Tensor:
        """Every class in turn, [count]."""
        return torch.arange(count) % self.num_classes

    def inside(self, points: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
        """Which points [B, 2] lie where 99 % of the real points of their class do, [B] bool."""
        real = self.truth.draw(self.labels(200 * self.num_classes), torch.Generator().manual_seed(seed))
        lowest = self.truth.log_density(real, 0.0, self.labels(len(real))).quantile(1 - INSIDE)
        return self.truth.log_density(points, 0.0, labels) >= lowest


# the second is under-fitted: its networks blur by as much as neighbouring classes are apart
STUDIES = (
    Study("4 classes, depth 3", 4, 3),
    Study("24 classes, depth 1", 24, 1, blur=0.08, weak_blur=0.2, confusion=0.1),
)


@dataclass(frozen=True)
class RuleScores:
    """Of one rule: network evaluations a call, the share of samples outside their class and of those that look like another,
    and the mean over classes of the Frechet distance of points to the class.
    """

    rule: str
    evaluations: float
    outside: float
    mistaken: float
    frechet: float


def draw(engine: Engine, rule: Guidance, labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points along a run [calls + 1, B, 2], noise first and samples last, and the noise levels [calls + 1]."""
    plan = engine.plan(rule, STEPS, solver=SOLVER)
    seeds = list(range(seed, seed + len(labels)))
    states = [engine.draw_noise(plan, seeds)]

    def keep(info) -> None:
        states.append(info.x.clone())

    engine.sample(labels.tolist(), rule, steps=STEPS, seeds=seeds, solver=SOLVER, noise=states[0], callback=keep)
    return torch.stack(states)[..., 0, 0].double(), torch.tensor([*plan.sigmas, 0.0])


def check_samples(study: Study, samples: int) -> None:
    """Raise ``ValueError`` unless there are two samples of each class, which a covariance needs."""
    if samples < 2 * study.num_classes:
        raise ValueError(f"two samples of each of {study.num_classes} classes are needed, got {samples}")


def score(study: Study, rules: Mapping[str, Guidance], samples: int, seed: int = 0) -> list[RuleScores]:
    """Every one of ``rules`` on ``samples`` points, all from the same noise."""
    check_samples(study, samples)
    engine, labels, scores = study.engine(), study.labels(samples), []
    for name, rule in rules.items():
        cost = engine.plan(rule, STEPS, solver=SOLVER).cost
        scores.append(
            scored_points(study, name, cost.evaluations / cost.calls, draw(engine, rule, labels, seed)[0][-1], labels)
        )
    return scores


def score_real(study: Study, samples: int, seed: int = 1) -> RuleScores:
    """What points of the truth score: some lie outside too, and look like another class where leaves meet."""
    labels = study.labels(samples)
    return scored_points(study, "real", 0, study.truth.draw(labels, torch.Generator().manual_seed(seed)), labels)


def scored_points(study: Study, name: str, evaluations: float, points: Tensor, labels: Tensor) -> RuleScores:
    """The scores of points [B, 2] that should be of labels [B]."""
    found = study.truth.class_probabilities(points).argmax(dim=1)
    return RuleScores(
        rule=name,
        evaluations=evaluations,
        outside=float((~study.inside(points, labels)).double().mean()),
        mistaken=float((found != labels).double().mean()),
        frechet=_class_frechet(study, points, labels),
    )


def _class_frechet(study: Study, points: Tensor, labels: Tensor) -> float:
    """The mean over classes of the Frechet distance to the class's own moments."""
    distances = []
    for label in range(study.num_classes):
        exact = Moments(len(points), *study.truth.moments(label))
        distances.append(frechet_distance(Moments.of(points[labels == label]), exact))
    return sum(distances) / len(distances)


@dataclass(frozen=True)
class LevelSizes:
    """At one noise level, root mean squares over noised real points: how far each rule moves the velocity from the unguided
    one (``correction``), and how far it then is from the exact one (``error``).
    """

    sigma: float
    correction: dict[str, float]
    error: dict[str, float]


def noise_levels(study: Study, count: int = 40) -> Tensor:
    """Levels up to 1, denser where there is little noise, and both sides of the switch, [count + 2] fp64."""
    even = torch.linspace(0.07, 1.0, count, dtype=torch.float64) ** 2
    return torch.cat([even, torch.tensor([study.switch, study.switch + 1e-6], dtype=torch.float64)]).sort().values


def sizes_by_level(study: Study, sigmas: Tensor, points: int, seed: int = 0) -> list[LevelSizes]:
    """Corrections and errors of every rule at noise levels [N], at states that the truth leads through."""
    engine, labels = study.engine(), study.labels(points)
    generator = torch.Generator().manual_seed(seed)
    clean = study.truth.draw(labels, generator)
    noise = torch.randn(points, 2, generator=generator, dtype=torch.float64)
    schedule = Schedule((*sigmas.sort(descending=True).values.tolist(), 0.0))  # all tables at once
    guided = {name: engine.denoiser(rule, labels.tolist(), schedule=schedule).velocity for name, rule in study.rules.items()}
    found = []
    for sigma in sigmas.tolist():
        x = (1 - sigma) * clean + sigma * noise
        level = torch.full((points,), sigma, dtype=torch.float64)
        velocities = {name: velocity(x[..., None, None], level)[..., 0, 0].double() for name, velocity in guided.items()}
        exact = study.truth.velocity(x, sigma, labels)
        moved = {name: _size(velocity - velocities["none"]) for name, velocity in velocities.items()}
        found.append(LevelSizes(sigma, moved, {name: _size(velocity - exact) for name, velocity in velocities.items()}))
    return found


def _size(vectors: Tensor) -> float:
    return float(vectors.square().sum(dim=1).mean().sqrt())
