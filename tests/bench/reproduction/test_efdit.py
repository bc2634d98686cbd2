"""``segue reproduce efdit``: who sees detail, what is measured once, and what the page claims."""

import numpy as np
import pytest
import torch

from segue.bench.quality.rows import RowForm
from segue.bench.reproduction import efdit
from segue.bench.reproduction.efdit import EFDiTOptions, real_leaves, reproduce_efdit
from segue.bench.reproduction.efdit_page import LARGER, SPARSE, TIERED, TIMED, efdit_content
from segue.bench.reproduction.efdit_runs import FewLeaves
from segue.bench.reproduction.efdit_spectrum import draw_spectrum
from segue.bench.reproduction.efdit_times import TIMED_PARTS
from segue.bench.rows import read_rows
from segue.bench.scores.detail import HighFrequencies, Quarters
from segue.bench.scores.intervals import Interval
from segue.bench.timing import Statistic
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


def test_networks_that_are_trained_are_drawn_by_the_numbers_of_the_base(tmp_path):
    """Also those without a head; in the rows as they were drawn."""
    options, said = EFDiTOptions(20, 1, 1, "sgg-exit", tuning=1, training=1, seeds=1, parts=("attention", "tiers")), []
    assert reproduce_efdit(options, tmp_path / "rows.jsonl", tmp_path / "runs", None, None, said.append) == 0
    found = {row.variant: row.case for row in read_rows(tmp_path / "rows.jsonl")}
    assert list(found) == ["full", "probsparse", "probsparse, 1 steps", "tiered, seed 0", "flat, seed 0"]
    rules = [parse_rule(name, "herbarium").text for name in ("sgg-exit", "cfg")]
    assert [case.endswith(rules[variant.endswith("seed 0")]) for variant, case in found.items()] == [True] * 5
    assert "| probsparse attention | 20 |" in said[-1] and "| tiered labels | 20 |" in said[-1]


def test_the_picture_of_spectra_holds_its_numbers(tmp_path, seed):
    spectrum = radial_spectrum(real_leaves(2, 16, seed))
    draw_spectrum(tmp_path / "spectrum.png", dict.fromkeys("abcd", spectrum))
    picture, record = read_png(tmp_path / "spectrum.png")
    assert np.asarray(picture).std() > 0 and record == dict.fromkeys("abcd", spectrum.tolist())


def test_the_page_claims_by_intervals_and_in_all_seeds(environment):
    form = RowForm(environment, f"{LARGER}, drawn", "float32")
    scores = {"enhancer": 1.0, "bicubic": 2.0, "zero-padding": 1.05}
    rows = [
        form.interval_row(name, "Frechet distance per feature by x", "", Interval(value, value - 0.1, value + 0.1), 960)
        for name, value in scores.items()
    ]
    tiers = RowForm(environment, f"{TIERED}, drawn", "float32")
    for name, value in {"tiered, seed 0": 0.5, "flat, seed 0": 0.4, "tiered, seed 1": 0.4, "flat, seed 1": 0.45}.items():
        rows.append(tiers.interval_row(name, "accuracy by herbarium-judge", "share", Interval(value, 0.3, 0.6), 960))
    content = efdit_content(rows, dict.fromkeys((LARGER, SPARSE, TIERED), "drawn"), "segue reproduce efdit")
    verdicts = {claim.says: claim.verdict for claim in content.claims}
    assert verdicts["the enhancer is nearer to real leaves than bicubic"] == "agrees"
    assert verdicts["the enhancer is nearer to real leaves than zero-padding"] == "cannot be told"
    assert verdicts["tiered labels give more accuracy than flat ones of few images"] == "cannot be told"
    assert [each.what for each in content.missing] == ["probsparse attention"] and TIMED not in content.text()


@pytest.mark.parametrize(
    ("options", "words"),
    (({"parts": ("sr",)}, "unknown part 'sr'; there are: upscaling"), ({"samples": 3}, "samples must be at least 20, got 3")),
)
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        EFDiTOptions(**options)
