"""The report of ``segue bench mixture``: what each rule does to exact mixtures, as a table, as JSON, as a picture."""

import json
from dataclasses import asdict
from pathlib import Path

from segue.engine.files import check_writable

from .mixture_picture import draw_picture
from .mixture_study import (
    STUDIES,
    LevelSizes,
    RuleScores,
    Study,
    check_samples,
    noise_levels,
    score,
    score_real,
    sizes_by_level,
)


def report_mixtures(out: Path | None, samples: int, as_json: bool) -> None:
    """Print the scores of every study, and draw the first into ``out`` if it is given."""
    if out is not None:
        if out.suffix != ".png":
            raise ValueError(f"the picture is a PNG file, got {out}")
        check_writable(out, folder=False)
    for study in STUDIES:
        check_samples(study, samples)
    scored = {study: [*score(study, study.comparisons, samples), score_real(study, samples)] for study in STUDIES}
    sizes = {study: sizes_by_level(study, noise_levels(study), points=samples) for study in STUDIES}
    if as_json:
        print(json.dumps([_as_dict(study, scored[study], sizes[study]) for study in STUDIES]))
    else:
        print("\n\n".join(table(study, scores) for study, scores in scored.items()))
    if out is not None:
        first = STUDIES[0]
        drawn = [own for own in scored[first] if own.rule in first.rules]
        draw_picture(out, first, drawn, sizes[first], samples)


def _as_dict(study: Study, scores: list[RuleScores], sizes: list[LevelSizes]) -> dict:
    return {"study": study.name, "scores": [asdict(own) for own in scores], "levels": [asdict(level) for level in sizes]}


def table(study: Study, scores: list[RuleScores]) -> str:
    """The scores of a study as a Markdown table."""
    lines = [
        f"| {study.name} | evaluations a step | outside the leaf | like another | Frechet distance |",
        "|---|---|---|---|---|",
    ]
    for own in scores:
        lines.append(f"| {own.rule} | {own.evaluations:.3g} | {own.outside:.1%} | {own.mistaken:.1%} | {own.frechet:.4f} |")
    return "\n".join(lines)
