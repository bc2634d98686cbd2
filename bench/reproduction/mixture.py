"""``segue reproduce mixture``: figures 2 and 3 of the paper, with exact networks and with trained ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..allocator import DEFAULT
from ..mixture_picture import draw_picture
from ..mixture_study import STUDIES, LevelSizes, RuleScores, Study, check_samples
from ..rows import Row, check_writable
from ..runs import command_line
from ..telemetry import environment
from .durations import durations_of, timed
from .mixture_page import COMMAND, TITLE, TRAINED, UNDER, WELL, mixture_content
from .page import check_folder, write_page
from .plane_networks import Length, TrainedStudy
from .plane_scores import (
    CORRECTION,
    ERROR,
    EVALUATIONS,
    FRECHET,
    MISTAKEN,
    OUTSIDE,
    PlaneScorer,
    Setting,
    by_rule,
    curve_of,
)

BLURRED = "blurred"
# the first fits its leaves well; the second has a tenth of the weights and half of the steps for six times as many classes
LENGTHS = {WELL: (Length(96, 4000), Length(32, 1000)), UNDER: (Length(32, 1500), Length(16, 600))}


def settings(seeds: int, folder: Path, studies: Sequence[Study] = STUDIES) -> list[Setting]:
    """Both studies with blurred mixtures for networks, then with trained networks of every seed."""
    found = [Setting(study, BLURRED, 0) for study in studies]
    for seed in range(seeds):
        for study in studies:
            strong, weak = LENGTHS[study.name]
            common = {"scale": study.scale, "weight": study.weight, "switch": study.switch}
            trained = TrainedStudy(
                study.name, study.num_classes, study.depth, strong=strong, weak=weak, seed=seed, folder=folder, **common
            )
            found.append(Setting(trained, TRAINED, seed))
    return found


def reproduce_mixture(
    points: int, seeds: int, out: Path, runs: Path, into: Path | None, echo: Callable[[str], None] = print
) -> None:
    """Score every setting, and write the page and its pictures into ``into``; raises ``ValueError`` before any work."""
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    every = settings(seeds, runs / COMMAND)
    for setting in every:
        check_samples(setting.study, points)
    check_writable(out)
    where = environment(torch.device("cpu"), command_line(), DEFAULT)
    check_folder(into, where)
    scorer, held = PlaneScorer(points, out, where, echo), {}
    with timed(out, where, COMMAND):
        for setting in every:
            held[setting] = scorer.score(setting)
    rows = [row for own in held.values() for row in own]
    rows += durations_of(out, COMMAND)
    pictures = [] if into is None else draw_pictures(into, held, points)
    content = mixture_content(rows, {setting.study.name: setting.study.switch for setting in every}, pictures)
    if into is None:
        echo(content.text())
        return
    for path in write_page(into, COMMAND, TITLE, content):
        echo(f"wrote {path}")


def draw_pictures(folder: Path, held: dict[Setting, list[Row]], points: int) -> list[str]:
    """A picture of every trained setting of the first seed; returns their names."""
    names = []
    for setting, rows in held.items():
        if setting.kind == TRAINED and setting.seed == 0:
            name = f"mixture-{setting.study.num_classes}-classes.png"
            scores, sizes = scores_of(setting.study, rows), sizes_of(setting.study, rows)
            draw_picture(folder / name, setting.study, scores, sizes, points)
            names.append(name)
    return names


def scores_of(study: Study, rows: Sequence[Row]) -> list[RuleScores]:
    """The scores of a study's own rules from their rows."""
    table = by_rule(list(rows))
    names = (EVALUATIONS, OUTSIDE, MISTAKEN, FRECHET)
    return [RuleScores(rule, *(table[rule][name].value for name in names)) for rule in study.rules]


def sizes_of(study: Study, rows: Sequence[Row]) -> list[LevelSizes]:
    """The curves of a study's own rules from their rows, level by level."""
    table = by_rule(list(rows))
    curves = {metric: {rule: dict(curve_of(table[rule][metric])) for rule in study.rules} for metric in (ERROR, CORRECTION)}
    levels = list(next(iter(curves[ERROR].values())))
    return [
        LevelSizes(
            sigma,
            {rule: curve[sigma] for rule, curve in curves[CORRECTION].items()},
            {rule: curve[sigma] for rule, curve in curves[ERROR].items()},
        )
        for sigma in levels
    ]
