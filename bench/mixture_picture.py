"""The method in one look: trajectories of four rules over a known density, and where in the noise each rule acts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segue.engine.images import save_png

from .figures import new_figure, picture_of
from .mixture_study import LevelSizes, RuleScores, Study, draw

TARGET = 0  # the class whose trajectories are drawn
VIEW = (-0.52, 1.52)  # both axes: the leaf of the target, and the beginning of the others
PATHS, DOTS = 26, 220
GRID = 260
PAPER, LEAF, OTHERS, GOOD, BAD, INK = "#f8f7f2", "#3f8f5b", "#98a19c", "#14532d", "#d1431f", "#30343b"
LINES = {"none": "#777d87", "CFG": "#2f6fb5", "weak": "#c07f12", "SGG": "#14532d"}
TITLES = {"none": "unguided", "CFG": "classifier-free guidance", "weak": "weak network", "SGG": "segmented guidance"}
KEY = (
    "Lines: from noise (light) to sample (dark).  Green: the leaf that is asked for, where 99, 80 and 40 % of it lie; "
    "grey: other leaves.  Red: samples outside the leaf."
)
DPI, COLOURS = 150, 200


def draw_picture(path: Path, study: Study, scores: list[RuleScores], sizes: list[LevelSizes], samples: int) -> None:
    """Draw a study into a PNG at ``path``, with what it shows in its record.

    ``scores`` of the rules of the study, on ``samples`` points, are its captions; ``sizes`` its curves.  ``ValueError`` without
    matplotlib.
    """
    with new_figure(12.4, 6.75, DPI, layout=None) as figure:
        fill(figure, study, scores, sizes)
        # flat colours and one gradient: a palette halves the file and nobody sees it
        picture = picture_of(figure).quantize(COLOURS, dither=Image.Dither.NONE)
    record = {"study": study.numbers(), "samples": samples, "scores": [asdict(own) for own in scores]}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, path, f"segue bench mixture, {study.name}, {samples} samples", record)


def fill(figure: Any, study: Study, scores: list[RuleScores], sizes: list[LevelSizes]) -> None:
    """Four panels of trajectories above two of corrections and errors by noise level."""
    above = figure.add_gridspec(1, 4, left=0.012, right=0.988, top=0.955, bottom=0.47, wspace=0.05)
    below = figure.add_gridspec(1, 2, left=0.04, right=0.988, top=0.29, bottom=0.075, wspace=0.1)
    engine, labels, density = study.engine(), torch.full((DOTS,), TARGET), _densities(study)
    for column, (name, own) in enumerate(zip(study.rules, scores, strict=True)):
        axes = figure.add_subplot(above[0, column])
        states, sigmas = draw(engine, study.rules[name], labels, seed=10_000)
        _panel(axes, density)
        _trajectories(axes, states[:, :PATHS], sigmas)
        _samples(axes, states[-1], study.inside(states[-1], labels))
        axes.set_title(TITLES[name], fontsize=11.5, fontweight="bold", color=LINES[name], pad=6)
        axes.set_xlabel(f"{_numbers(study, name)}\n{_caption(own)}", fontsize=8.8, labelpad=6, linespacing=1.5, color=INK)
    figure.text(0.5, 0.348, KEY, fontsize=8.4, color="#6a6f78", horizontalalignment="center")
    _corrections(figure.add_subplot(below[0, 0]), study, sizes)
    _errors(figure.add_subplot(below[0, 1]), study, sizes)


def _numbers(study: Study, name: str) -> str:
    return {
        "none": "the condition alone",
        "CFG": f"scale {study.scale:g} against no condition",
        "weak": f"weight {study.weight:g} against {study.weak_is}",
        "SGG": f"CFG above $\\sigma$ = {study.switch:g}, weak network below",
    }[name]


def _caption(own: RuleScores) -> str:
    return (
        f"{own.outside:.0%} outside the leaf, {own.mistaken:.0%} look like another\n"
        f"Frechet distance {own.frechet:.3f}, {own.evaluations:g} evaluation{'s' if own.evaluations > 1 else ''} a step"
    )


def _densities(study: Study) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """Axis [G], log density of the target and of the others [G, G], and the levels that hold 99, 80 and 40 % of a leaf."""
    axis = torch.linspace(*VIEW, GRID, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    within = [study.truth.log_density(points, 0.0, label) for label in range(study.num_classes)]
    others = torch.stack([own for label, own in enumerate(within) if label != TARGET]).amax(dim=0)
    real = study.truth.draw(torch.full((4000,), TARGET), torch.Generator().manual_seed(0))
    shares = torch.tensor([0.01, 0.2, 0.6], dtype=torch.float64)
    levels = study.truth.log_density(real, 0.0, TARGET).quantile(shares).tolist()
    return axis.numpy(), within[TARGET].view(GRID, GRID).T.numpy(), others.view(GRID, GRID).T.numpy(), levels


def _panel(axes: Any, density: tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]) -> None:
    from matplotlib.colors import to_rgba

    axis, target, others, levels = density
    top = [*levels, max(float(target.max()), float(others.max()))]
    for values, colour in ((others, OTHERS), (target, LEAF)):
        shades = [to_rgba(colour, alpha) for alpha in (0.22, 0.40, 0.62)]
        axes.contourf(axis, axis, values, levels=top, colors=shades)
        axes.contour(axis, axis, values, levels=levels[:1], colors=[to_rgba(colour, 0.75)], linewidths=0.7, linestyles="solid")
    axes.set(xlim=VIEW, ylim=VIEW, aspect="equal", xticks=[], yticks=[], facecolor=PAPER)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _trajectories(axes: Any, states: Tensor, sigmas: Tensor) -> None:
    """states [calls + 1, B, 2]; a segment's colour is its noise level, light at 1."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("noise", ["#1d2a3a", "#6c5b8f", "#d7a9b8", "#f3e4d7"])
    segments = torch.stack([states[:-1], states[1:]], dim=2).flatten(0, 1).numpy()  # [calls B, 2, 2]
    noise = ((sigmas[:-1] + sigmas[1:]) / 2).repeat_interleave(states.shape[1]).numpy()
    lines = LineCollection(segments, cmap=colours, array=noise, linewidths=0.95, alpha=0.85, capstyle="round")
    lines.set_clim(0, 1)
    axes.add_collection(lines)


def _samples(axes: Any, points: Tensor, inside: Tensor) -> None:
    for chosen, colour, size in ((inside, GOOD, 8), (~inside, BAD, 13)):
        x, y = points[chosen].T.numpy()
        axes.scatter(x, y, s=size, color=colour, edgecolors="white", linewidths=0.35, zorder=3)


def _by_level(axes: Any, study: Study, title: str) -> None:
    axes.axvline(study.switch, color="#b7bcc4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlim(1, 0)
    axes.set_ylim(0, 1.22 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlabel("noise level $\\sigma$, from noise to sample", fontsize=8.6, labelpad=3, color=INK)
    axes.set_title(title, fontsize=9.8, loc="left", pad=6, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.legend(fontsize=8, frameon=False, loc="upper center", ncols=4, handlelength=1.8, columnspacing=1.4, labelcolor=INK)


def _corrections(axes: Any, study: Study, sizes: list[LevelSizes]) -> None:
    sigmas = np.array([size.sigma for size in sizes])
    for name, used in (("CFG", sigmas > study.switch), ("weak", sigmas <= study.switch)):
        values = [size.correction[name] for size in sizes]
        axes.plot(sigmas, values, color=LINES[name], linewidth=1.8, label=TITLES[name])
        axes.fill_between(sigmas, values, where=used, color=LINES[name], alpha=0.16, linewidth=0)
    _by_level(axes, study, "How far each moves the velocity; filled: the part that segmented guidance keeps")


def _errors(axes: Any, study: Study, sizes: list[LevelSizes]) -> None:
    sigmas = [size.sigma for size in sizes]
    for name in study.rules:
        form = {"SGG": {"linewidth": 4.5, "alpha": 0.3}, "none": {"linewidth": 1.5, "linestyle": "--", "zorder": 3}}.get(
            name, {}
        )
        axes.plot(sigmas, [size.error[name] for size in sizes], color=LINES[name], label=TITLES[name], **form)
    _by_level(axes, study, "How far the guided velocity then is from the exact one")
