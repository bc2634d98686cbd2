"""Rules on exact mixtures: scores of the truth, corrections against their formula, and what the picture of them shows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from segue.__main__ import app
from segue.bench import mixture_picture, mixture_study
from segue.bench.mixture_study import STUDIES, Study, draw, noise_levels, score, score_real, sizes_by_level
from segue.engine.images import read_png
from segue.training.leaf_trees import leaf_mixture

ROOT = Path(__file__).parents[2]
FEW = STUDIES[0]
SAMPLES = 160


@pytest.fixture(scope="module")
def scores():
    return {own.rule: own for own in score(FEW, FEW.rules, SAMPLES)}


@pytest.fixture(scope="module")
def sizes():
    return sizes_by_level(FEW, torch.tensor([0.05, 0.3, 0.5, 0.7, 1.0], dtype=torch.float64), points=300)


def test_networks_that_know_the_truth_score_as_real_points_do():
    exact = Study("exact", 4, 2, blur=0.0, weak_blur=0.1, confusion=0.0)
    (drawn,) = score(exact, {"none": exact.rules["none"]}, 400)
    real = score_real(exact, 400)
    assert drawn.evaluations == 1 and real.evaluations == 0
    # 1 % lie outside by definition, and Euler's steps of 1 / 60 blur a little: five deviations of a share of 5 % of 400
    assert real.outside <= 0.04 and drawn.outside <= 0.05 + 5 * 0.011
    assert drawn.mistaken <= real.mistaken + 0.04 and drawn.frechet <= 0.02


def test_segments_take_from_both_sides(scores):
    """Fewer samples outside than either guidance alone leaves, most of CFG's accuracy, two evaluations a step."""
    assert [own.evaluations for own in scores.values()] == [1, 2, 2, 2]
    assert scores["SGG"].outside < 0.7 * min(scores["CFG"].outside, scores["weak"].outside)
    assert scores["SGG"].mistaken < 0.6 * scores["weak"].mistaken
    assert scores["SGG"].frechet < min(scores[name].frechet for name in ("none", "CFG", "weak"))


def test_corrections_are_their_formula(sizes):
    """``(s - 1) (c - u)`` and ``w (c - k)`` of the mixtures themselves, at the same states."""
    generator, labels = torch.Generator().manual_seed(0), FEW.labels(300)
    clean = FEW.truth.draw(labels, generator)
    noise = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    main, weak = (leaf_mixture(4, 3).underfitted(blur, FEW.confusion) for blur in (FEW.blur, FEW.weak_blur))
    for level in sizes:
        x = (1 - level.sigma) * clean + level.sigma * noise
        c, u, k = main.velocity(x, level.sigma, labels), main.velocity(x, level.sigma, 4), weak.velocity(x, level.sigma, labels)
        rms = lambda vectors: float(vectors.square().sum(dim=1).mean().sqrt())
        # velocities are fp32: 6e-8 of up to 10
        assert level.correction["CFG"] == pytest.approx((FEW.scale - 1) * rms(c - u), abs=2e-6)
        assert level.correction["weak"] == pytest.approx(FEW.weight * rms(c - k), abs=2e-6)
        assert level.error["none"] == pytest.approx(rms(c - FEW.truth.velocity(x, level.sigma, labels)), abs=2e-6)


def test_cfg_acts_at_high_noise_the_weak_network_at_low_and_segments_at_both(sizes):
    lowest, *_, highest = sizes
    assert lowest.correction["weak"] > 5 * lowest.correction["CFG"]
    assert highest.correction["CFG"] > 100 * highest.correction["weak"]
    for level in sizes:
        segment = "CFG" if level.sigma > FEW.switch else "weak"
        assert level.correction["SGG"] == level.correction[segment] and level.error["SGG"] == level.error[segment]
        assert level.correction["none"] == 0


def test_levels_meet_at_the_switch():
    levels = noise_levels(FEW)
    assert (levels.diff() > 0).all() and float(levels[-1]) == 1 and 0 < float(levels[0]) < 0.01
    (place,) = torch.nonzero(levels == FEW.switch).flatten().tolist()
    assert 0 < float(levels[place + 1] - levels[place]) < 1e-5


@pytest.fixture
def small(monkeypatch):
    """A coarse picture of few points."""
    pytest.importorskip("matplotlib")
    for name, value in (("GRID", 40), ("DOTS", 12), ("PATHS", 5), ("DPI", 50)):
        monkeypatch.setattr(mixture_picture, name, value)
    monkeypatch.setattr(mixture_study, "STEPS", 7)


def test_the_picture_shows_what_was_drawn(small, scores, sizes):
    from matplotlib.figure import Figure

    figure = Figure()
    mixture_picture.fill(figure, FEW, list(scores.values()), sizes)
    panels, (corrections, errors) = figure.axes[:4], figure.axes[4:]
    engine, labels = FEW.engine(), torch.full((12,), mixture_picture.TARGET)
    for axes, (name, rule) in zip(panels, FEW.rules.items(), strict=True):
        states, _ = draw(engine, rule, labels, seed=10_000)
        inside = FEW.inside(states[-1], labels)
        good, bad = (collection.get_offsets() for collection in axes.collections[-2:])
        assert torch.equal(torch.tensor(good.data), states[-1][inside]) and torch.equal(
            torch.tensor(bad.data), states[-1][~inside]
        )
        (lines,) = [collection for collection in axes.collections if type(collection).__name__ == "LineCollection"]
        assert len(lines.get_segments()) == 7 * 5
        assert f"{scores[name].outside:.0%} outside" in axes.get_xlabel()
        assert f"Frechet distance {scores[name].frechet:.3f}" in axes.get_xlabel()
    drawn = {line.get_label(): list(line.get_ydata()) for line in errors.lines if not line.get_label().startswith("_")}
    assert drawn == {title: [level.error[name] for level in sizes] for name, title in mixture_picture.TITLES.items()}
    weak = next(line for line in corrections.lines if line.get_label() == "weak network")
    assert list(weak.get_ydata()) == [level.correction["weak"] for level in sizes]


def test_the_picture_carries_what_it_shows(small, scores, sizes, tmp_path):
    for name in ("first.png", "second.png"):
        mixture_picture.draw_picture(tmp_path / name, FEW, list(scores.values()), sizes, SAMPLES)
    _, record = read_png(tmp_path / "first.png")
    assert record["samples"] == SAMPLES and record["study"]["scale"] == FEW.scale
    assert [own["frechet"] for own in record["scores"]] == [own.frechet for own in scores.values()]
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_the_committed_picture_is_of_this_study_and_small():
    path = ROOT / "docs" / "method.png"
    _, record = read_png(path)
    assert path.stat().st_size < 400_000
    assert record["study"] == {name: value for name, value in vars(FEW).items() if name != "truth"}
    assert [own["rule"] for own in record["scores"]] == list(FEW.rules)


def test_the_command_prints_both_studies(monkeypatch):
    short = tuple(replace(study, depth=1) for study in STUDIES)
    monkeypatch.setattr("segue.bench.mixture_report.STUDIES", short)
    monkeypatch.setattr(mixture_study, "STEPS", 4)
    monkeypatch.setattr("segue.bench.mixture_report.noise_levels", lambda study: noise_levels(study, 3))
    found = json.loads(CliRunner().invoke(app, ["bench", "mixture", "--samples", "48", "--json"]).stdout)
    assert [study["study"] for study in found] == [study.name for study in STUDIES]
    assert [own["rule"] for own in found[0]["scores"]] == [*FEW.comparisons, "real"]
    assert found[0]["scores"] == json.loads(
        json.dumps([vars(own) for own in (*score(short[0], short[0].comparisons, 48), score_real(short[0], 48))])
    )
    assert [level["sigma"] for level in found[1]["levels"]] == noise_levels(short[1], 3).tolist()
    text = CliRunner().invoke(app, ["bench", "mixture", "--samples", "48"]).stdout
    assert text.count("| real | 0 |") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "method.svg"), "the picture is a PNG file, got method.svg"),
        (("--samples", "47"), "two samples of each of 24 classes"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segue.bench.mixture_report.score", None)
    result = CliRunner().invoke(app, ["bench", "mixture", *arguments])
    assert result.exit_code == 2 and said in result.stderr and not list(tmp_path.iterdir())
