"""What rules do to points of the plane, as rows: outliers, spread, typical density, scale and curves over the noise."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.planning.schedule import Schedule
from segue.engine.rules.guidance import Guidance
from segue.engine.rules.linear_rules import CFG

from ..mixture_study import STEPS, LevelSizes, Study, draw, noise_levels, scored_points, sizes_by_level
from ..quality.rows import held_rows
from ..rows import Environment, Row, append_rows, make_row
from ..scores.intervals import wilson
from ..timing import Statistic, once

SUITE = "mixture"
OUTSIDE, MISTAKEN, SPREAD, DENSITY = "outside the leaf", "like another", "spread", "log density"
FRECHET, EFFECTIVE, EVALUATIONS = "Frechet distance", "effective scale", "evaluations a step"
ERROR, CORRECTION = "distance to the exact velocity", "correction"  # notes: JSON of [sigma, value] pairs
METRICS = (EVALUATIONS, EFFECTIVE, OUTSIDE, MISTAKEN, SPREAD, DENSITY, FRECHET)
EQUAL = "CFG at the scale of "  # of another rule, before its name
REAL = "real"
EFFECTIVE_POINTS = 240


@dataclass(frozen=True)
class Setting:
    """One study with networks of one ``kind`` (``blurred`` or ``trained``) and one seed."""

    study: Study
    kind: str
    seed: int

    @property
    def group(self) -> str:
        """What settings of all seeds share."""
        return f"{self.study.name}, {self.kind} networks"

    def case(self, points: int) -> str:
        return f"{self.group}, {points} points from seed {self.seed}, {STEPS} steps of Euler's method"


@dataclass(frozen=True)
class PlaneScorer:
    """Scores settings on ``points`` points and adds the rows to ``path``; a setting that it holds is not drawn again."""

    points: int
    path: Path
    environment: Environment
    echo: Callable[[str], None] = print

    def score(self, setting: Setting) -> list[Row]:
        """The rows of a setting, old or new: of its rules, and of CFG at the effective scale of two of them."""
        held = self._held(setting)
        if not held:
            self.echo(f"{setting.case(self.points)} ...")
            rows = self._rows(setting)
            append_rows(self.path, rows)
            held = self._held(setting)
        return held

    def _held(self, setting: Setting) -> list[Row]:
        case = setting.case(self.points)
        return [row for row in held_rows(self.path).values() if (row.suite, row.case) == (SUITE, case)]

    def _rows(self, setting: Setting) -> list[Row]:
        study = setting.study
        engine, labels, rows = study.engine(), study.labels(self.points), []
        first = 1000 * self.points * setting.seed
        scales = {name: effective_of(engine, rule, study) for name, rule in study.rules.items()}
        equal = {f"{EQUAL}{name}": max(1.0, round(scales[name], 2)) for name in ("weak", "SGG")}
        rules, scales = study.rules | {name: CFG(scale) for name, scale in equal.items()}, scales | equal
        for name, rule in rules.items():
            cost = engine.plan(rule, STEPS, solver="euler").cost
            points = draw(engine, rule, labels, first)[0][-1]
            rows += self._of_points(setting, name, points, labels, cost.evaluations / cost.calls, scales[name])
        real = study.truth.draw(labels, torch.Generator().manual_seed(setting.seed + 1))
        rows += self._of_points(setting, REAL, real, labels, 0.0, None)
        return rows + self._curves(setting, sizes_by_level(study, noise_levels(study), self.points, setting.seed))

    def _of_points(
        self, setting: Setting, rule: str, points: Tensor, labels: Tensor, evaluations: float, scale: float | None
    ) -> list[Row]:
        found = scored_points(setting.study, rule, evaluations, points, labels)
        values = {SPREAD: spread(setting.study, points, labels), DENSITY: density(setting.study, points, labels)}
        rows = [self._share(setting, rule, OUTSIDE, found.outside), self._share(setting, rule, MISTAKEN, found.mistaken)]
        values |= {FRECHET: found.frechet, EVALUATIONS: evaluations} | ({} if scale is None else {EFFECTIVE: scale})
        return rows + [
            self._row(setting, rule, name, Statistic(value, value, value, self.points)) for name, value in values.items()
        ]

    def _share(self, setting: Setting, rule: str, metric: str, value: float) -> Row:
        interval = wilson(round(value * self.points), self.points)
        return self._row(setting, rule, metric, Statistic(value, interval.low, interval.high, self.points), "share")

    def _curves(self, setting: Setting, sizes: list[LevelSizes]) -> list[Row]:
        rows = []
        for rule in setting.study.rules:
            for metric, values in ((ERROR, [size.error for size in sizes]), (CORRECTION, [size.correction for size in sizes])):
                curve = [[round(size.sigma, 6), round(each[rule], 6)] for size, each in zip(sizes, values, strict=True)]
                mean = once(sum(value for _, value in curve) / len(curve))
                rows.append(self._row(setting, rule, metric, mean, "velocity", json.dumps(curve)))
        return rows

    def _row(self, setting: Setting, rule: str, metric: str, value: Statistic, unit: str = "", note: str = "") -> Row:
        case = setting.case(self.points)
        return make_row(self.environment, SUITE, case, rule, metric, unit, value, "float64", note=note)


def effective_of(engine: Engine, rule: Guidance, study: Study) -> float:
    """The effective scale of a rule over its own trajectories: ``1 + <g - c, D> / <D, D>`` with ``D = c - u``.

    Both products are summed over all calls and points before they are divided: in the plane D vanishes where a class stands
    alone, and a mean of ratios would be of those places.
    """
    labels = study.labels(EFFECTIVE_POINTS)
    states, sigmas = draw(engine, rule, labels)
    levels = [*sigmas[:-1].tolist(), 0.0]
    schedule = Schedule(tuple(levels))
    velocities = [engine.denoiser(each, labels.tolist(), schedule=schedule).velocity for each in (rule, None, CFG(0.0))]
    along = direction = 0.0
    for x, sigma in zip(states, levels[:-1], strict=False):  # the last state is the sample
        level = torch.full((len(labels),), sigma, dtype=torch.float64)
        g, c, u = (velocity(x[..., None, None].float(), level).double() for velocity in velocities)
        along += float(((g - c) * (c - u)).sum())
        direction += float((c - u).square().sum())
    return 1 + along / direction


def spread(study: Study, points: Tensor, labels: Tensor) -> float:
    """The mean over classes of the area that points of a class cover, over that of the class: roots of determinants."""
    areas = []
    for label in range(study.num_classes):
        own, (_, true) = torch.cov(points[labels == label].T), study.truth.moments(label)
        areas.append(float((torch.linalg.det(own) / torch.linalg.det(true)).sqrt()))
    return sum(areas) / len(areas)


def density(study: Study, points: Tensor, labels: Tensor, seed: int = 0) -> float:
    """The median log density of points under their class, above that of real points: positive where modes are sought."""
    real = study.truth.draw(labels, torch.Generator().manual_seed(seed))
    own, true = (study.truth.log_density(each, 0.0, labels).median() for each in (points, real))
    return float(own - true)


def curve_of(row: Row) -> list[tuple[float, float]]:
    """The pairs of noise level and value that a row of a curve holds."""
    return [(sigma, value) for sigma, value in json.loads(row.note)]


def by_rule(rows: list[Row]) -> Mapping[str, Mapping[str, Row]]:
    """The rows of one case by rule and metric."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.variant, {})[row.metric] = row
    return found
