"""``segue reproduce efdit``: who sees detail, what is measured once, and what the page claims."""

import json
import math

import numpy as np
import pytest
import torch

from segue.bench.quality.rows import RowForm, metric_by
from segue.bench.quality.tables import shown
from segue.bench.quality.time_limit import TimeLimit
from segue.bench.reproduction import efdit
from segue.bench.reproduction.efdit import ENLARGED, EFDiT, EFDiTOptions, real_leaves, reproduce_efdit
from segue.bench.reproduction.efdit_page import LARGER, SPARSE, SPECTRUM, TIERED, TIMED, efdit_content
from segue.bench.reproduction.efdit_runs import FewLeaves
from segue.bench.reproduction.efdit_spectrum import draw_spectrum, pictured
from segue.bench.reproduction.efdit_times import TIMED_PARTS
from segue.bench.rows import append_rows, read_rows
from segue.bench.scores.detail import HighFrequencies, Quarters
from segue.bench.scores.intervals import Interval, wilson
from segue.bench.scores.units import ACCURACY, FRECHET, SUPERCLASS, UNITS
from segue.bench.timing import Statistic
from segue.engine.engine import Engine
from segue.engine.images import read_png
from segue.engine.rules.presets import parse_rule
from segue.models.classifiers import load_classifier
from segue.models.spectrum import enlarge, radial_spectrum, reduce


def test_high_frequencies_see_nothing_else(seed):
    x = real_leaves(3, 16, seed)
    blurred = enlarge(reduce(x, 8, 8), 16, 16)
    seen = HighFrequencies()(torch.cat([x, x - blurred, blurred]))
    assert torch.allclose(seen[:3], seen[3:6], atol=1e-5) and seen[6:].abs().max() < 1e-5 < seen[:3].abs().max()


def test_quarters_are_seen_one_by_one(seed):
    judge, x = load_classifier("herbarium-judge"), real_leaves(2, 64, seed)
    expected = torch.cat([judge.features(x[..., i : i + 32, j : j + 32]) for i in (0, 32) for j in (0, 32)], dim=1)
    assert torch.equal(Quarters(judge)(x), expected)


def test_few_leaves_come_again_and_flat_labels_tell_no_genus(seed):
    tiered, flat = FewLeaves(True, each=2), FewLeaves(False, each=2)
    assert torch.equal(tiered.leaves, flat.leaves) and (len(tiered.parents), flat.parents) == (48, ())
    pictures, labels = tiered.batch(4, 300, seed)
    assert torch.equal(pictures, tiered.batch(4, 300, seed)[0]) and len(labels.unique()) == 48
    assert len(pictures.flatten(1).unique(dim=0)) <= 96


def test_what_is_measured_is_measured_once(tmp_path, monkeypatch):
    """Two parts with few samples: rows, a page that says what is missing, and nothing again."""
    times = iter([{metric: Statistic(0.2, 0.1, 0.3, 3) for metric in TIMED_PARTS}])
    monkeypatch.setattr(efdit, "attention_times", lambda: next(times))
    options, said = EFDiTOptions(20, 1, 1, "none", parts=("time", "upscaling")), []
    for _ in range(2):
        assert reproduce_efdit(options, tmp_path / "rows.jsonl", tmp_path / "runs", None, None, said.append) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len({row.key for row in rows}) == len(rows) and {"enhancer", "bicubic"} <= {row.variant for row in rows}
    assert all("herbarium c16b4dcab837365c, 20 samples" in row.case for row in rows if row.variant == "enhancer")
    assert any("herbarium-judge@" in row.metric for row in rows)
    assert "| larger pictures | 20 |" in said[-1] and "0.20 (0.10 to 0.30)" in said[-1]


def scored(environment, case: str, scores: dict[str, dict[str, float]], n: int = 960):
    """Rows of a case, by score and variant; those of distances err by a tenth at 60 %."""
    form = RowForm(environment, case, "float32")
    return [
        form.interval_row(name, metric_by(score, "herbarium-judge"), UNITS[score], Interval(x, x - 0.1, x + 0.1), n)
        for score, values in scores.items()
        for name, x in values.items()
    ]


def test_rows_that_are_held_get_their_picture_and_it_is_drawn_once(environment, tmp_path, monkeypatch):
    """Of the first samples of their case; a picture of another case is none."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(efdit, "PICTURED", 20)
    out, options, said = tmp_path / "rows.jsonl", EFDiTOptions(960, 1, 1, "none", parts=("upscaling",)), []
    form = EFDiT(options, environment, out, tmp_path, TimeLimit(None), said.append).larger_form
    held = [
        form.interval_row(name, metric_by(FRECHET, judge.name), "distance", Interval(1, 0.9, 1.1), 960)
        for judge in efdit.larger_judges()
        for name in ENLARGED
    ]
    append_rows(out, held)
    folder, link = tmp_path / "pages", f"![Power by radial frequency]({SPECTRUM})"
    for _ in range(2):
        assert reproduce_efdit(options, out, tmp_path / "runs", None, folder, said.append) == 0
        page = (folder / "efdit.md").read_text()
        assert link in page and "The mean of 20 pictures each" in page and read_rows(out) == held
        record = read_png(folder / SPECTRUM)[1]
        assert (record["count"], list(record["spectra"])) == (20, [*ENLARGED, "real leaves"])
        monkeypatch.setattr(Engine, "sample", None)  # who would draw again would fail
    assert pictured(folder / SPECTRUM, form.case) == 20 and not pictured(folder / SPECTRUM, f"{form.case}, other")
    assert not pictured(folder / "efdit.md", form.case) and not pictured(tmp_path / "none.png", form.case)
    drawn = dict.fromkeys((LARGER, SPARSE, TIERED), "none")
    assert link not in efdit_content(held, drawn, options.variants, "segue reproduce efdit").text()


@pytest.mark.slow
def test_networks_that_are_trained_are_drawn_by_the_numbers_of_the_base(tmp_path):
    """Also those without a head; in the rows as they were drawn.  Full attention is trained as long as ProbSparse."""
    options, said = EFDiTOptions(20, 1, 1, "sgg-exit", tuning=1, training=1, seeds=1, parts=("attention", "tiers")), []
    assert reproduce_efdit(options, tmp_path / "rows.jsonl", tmp_path / "runs", None, None, said.append) == 0
    found = {row.variant: row.case for row in read_rows(tmp_path / "rows.jsonl")}
    attention = ["full", "probsparse", "full, 1 steps", "probsparse, 1 steps"]
    assert list(found) == [*attention, "tiered, seed 0", "flat, seed 0"]
    rules = [parse_rule(name, "herbarium").text for name in ("sgg-exit", "cfg")]
    assert [case.endswith(rules[variant.endswith("seed 0")]) for variant, case in found.items()] == [True] * 6
    assert "| probsparse attention | 20 |" in said[-1] and "| tiered labels | 20 |" in said[-1]
    runs = [json.loads((tmp_path / "runs" / f"herbarium-{kind}-1" / "run.json").read_text()) for kind in ("full", "probsparse")]
    kinds = [run["spec"].pop("attention", "full") for run in runs]
    assert kinds == ["full", "probsparse"] and runs[0]["settings"] == runs[1]["settings"]


def test_the_picture_of_spectra_holds_its_numbers(tmp_path, seed):
    spectrum = radial_spectrum(real_leaves(2, 16, seed))
    draw_spectrum(tmp_path / "spectrum.png", "a case", 2, dict.fromkeys("abcd", spectrum))
    picture, record = read_png(tmp_path / "spectrum.png")
    assert np.asarray(picture).std() > 0 and record["spectra"] == dict.fromkeys("abcd", spectrum.tolist())


DRAWN = dict.fromkeys((LARGER, SPARSE, TIERED), "drawn")


def test_the_page_claims_by_intervals(environment):
    rows = scored(environment, f"{LARGER}, drawn", {FRECHET: {"enhancer": 1.0, "bicubic": 2.0, "zero-padding": 1.05}})
    content = efdit_content(rows, DRAWN, EFDiTOptions().variants, "segue reproduce efdit")
    verdicts = {claim.says: claim.verdict for claim in content.claims}
    assert verdicts["the enhancer is nearer to real leaves than bicubic"] == "agrees"
    assert verdicts["the enhancer is nearer to real leaves than zero-padding"] == "cannot be told"
    assert [each.what for each in content.missing] == ["probsparse attention", "tiered labels"] and TIMED not in content.text()


def test_claims_on_tiers_go_by_the_pairs_of_the_seeds(environment):
    """Student's interval with two degrees of freedom is 4.3027 standard errors wide; pairs tell what means do not."""
    tiered = {ACCURACY: (0.35, 0.5, 0.7), SUPERCLASS: (0.9, 0.5, 0.6), FRECHET: (1.6, 1.9, 1.3)}
    flat = {ACCURACY: (0.16, 0.3, 0.49), SUPERCLASS: (0.1, 0.5, 0.7), FRECHET: (1.4, 1.71, 1.09)}
    named = {"tiered": tiered, "flat": flat}
    scores = {
        score: {f"{kind}, seed {seed}": own[score][seed] for seed in range(3) for kind, own in named.items()}
        for score in tiered
    }
    rows, variants = scored(environment, f"{TIERED}, drawn", scores), EFDiTOptions().variants
    content = efdit_content(rows, DRAWN, variants, "segue reproduce efdit")
    half = 4.3027 * 0.01 / math.sqrt(3)  # differences of .19, .2 and .21
    measured = f"paired difference over 3 seeds {shown(Interval(0.2, 0.2 - half, 0.2 + half))}: 0.350 against 0.160, "
    assert [claim.verdict for claim in content.claims] == ["agrees", "cannot be told", "**does not**"]
    assert content.claims[0].measured.startswith(measured)
    table = content.text()
    assert "| accuracy by herbarium-judge | superclass accuracy by herbarium-judge | FD by herbarium-judge |" in table
    assert shown(wilson(864, 960)) in table, "the share of genera has its interval"
    alone = [row for row in rows if row.variant.endswith("seed 0")]
    for claim in efdit_content(alone, DRAWN, variants, "segue reproduce efdit").claims:
        assert claim.verdict == "cannot be told" and claim.measured.startswith("one seed: ")


def test_a_control_that_is_not_trained_yet_is_listed(environment):
    values = {"full": 0.1, "probsparse": 0.3, "probsparse, 300 steps": 0.2}
    rows = scored(environment, f"{SPARSE}, drawn", {FRECHET: values})
    content = efdit_content(rows, DRAWN, EFDiTOptions().variants, "segue reproduce efdit")
    lacking = {each.what: each.command for each in content.missing}
    assert lacking["probsparse attention: full, 300 steps"] == "segue reproduce efdit --part attention"
    assert "| probsparse, 300 steps | " in content.text() and not any("probsparse, 300" in what for what in lacking)


@pytest.mark.parametrize(
    ("options", "words"),
    (({"parts": ("sr",)}, "unknown part 'sr'; there are: upscaling"), ({"samples": 3}, "samples must be at least 20, got 3")),
)
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        EFDiTOptions(**options)
