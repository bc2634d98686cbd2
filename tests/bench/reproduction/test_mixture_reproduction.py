"""Leaves in the plane by trained networks: measures against their formulas, networks that are kept, pages made of rows."""

import json
from dataclasses import replace

import pytest
import torch

from segue.bench import mixture_study
from segue.bench.mixture_study import STUDIES, draw
from segue.bench.reproduction import mixture as command
from segue.bench.reproduction import plane_scores
from segue.bench.reproduction.claims import AGREES, DIFFERS
from segue.bench.reproduction.mixture import LENGTHS, scores_of, settings, sizes_of
from segue.bench.reproduction.mixture_page import centre, mean_side, mixture_content, setting_table
from segue.bench.reproduction.page import LEAST
from segue.bench.reproduction.plane_networks import Length, TrainedStudy, train
from segue.bench.reproduction.plane_scores import PlaneScorer, Setting, by_rule, density, effective_of, spread
from segue.bench.rows import make_row, read_rows
from segue.bench.timing import Statistic
from segue.engine.rules.linear_rules import CFG, AutoGuidance

SHORT = Length(8, 3, batch=16)


def study(folder, **changes) -> TrainedStudy:
    return TrainedStudy("4 classes, depth 1", 4, 1, strong=SHORT, weak=replace(SHORT, width=4), folder=folder, **changes)


def test_a_network_is_the_same_of_the_same_seed_and_fits_better_with_more_steps():
    truth = replace(STUDIES[0], depth=1).truth
    first, second = (train(truth, SHORT, 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["last.weight"], train(truth, SHORT, 4).state_dict()["last.weight"])
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    x = 0.5 * truth.draw(labels, generator) + 0.5 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    exact = truth.velocity(x, 0.5, labels)
    errors = [
        float(
            (train(truth, replace(SHORT, width=32, steps=steps, batch=96), 0).velocity(x, 0.5, labels) - exact).square().mean()
        )
        for steps in (3, 80)
    ]
    assert errors[1] < 0.4 * errors[0]


def test_networks_are_kept_by_all_that_they_depend_on(tmp_path, monkeypatch):
    own = study(tmp_path)
    first = own.network(SHORT)
    monkeypatch.setattr("segue.bench.reproduction.plane_networks.train", None)  # who would train would fail
    again = own.network(SHORT)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert len({own.kept(SHORT), study(tmp_path, seed=1).kept(SHORT), own.kept(replace(SHORT, steps=4))}) == 3


def test_spread_and_density_are_those_of_the_truth_for_real_points_and_smaller_for_points_drawn_together():
    truth, labels = STUDIES[0].truth, STUDIES[0].labels(4000)
    points = truth.draw(labels, torch.Generator().manual_seed(5))
    # areas of 1000 points: a deviation of about 1 / sqrt(1000) each
    assert spread(STUDIES[0], points, labels) == pytest.approx(1, abs=0.06)
    assert density(STUDIES[0], points, labels) == pytest.approx(0, abs=0.15)
    means = torch.stack([truth.moments(label)[0] for label in range(4)])[labels]
    halved = means + 0.5 * (points - means)
    assert spread(STUDIES[0], halved, labels) == pytest.approx(0.25 * spread(STUDIES[0], points, labels))


def test_the_effective_scale_of_cfg_is_its_scale_and_that_of_a_weak_network_its_formula(monkeypatch):
    monkeypatch.setattr(mixture_study, "STEPS", 6)
    monkeypatch.setattr(plane_scores, "EFFECTIVE_POINTS", 24)
    few = replace(STUDIES[0], depth=1)
    engine, rule = few.engine(), AutoGuidance(0.7)
    assert effective_of(engine, CFG(1.7), few) == pytest.approx(1.7, abs=1e-4)  # velocities are fp32
    states, sigmas = draw(engine, rule, few.labels(24))
    main, weak = (engine.models[name].levels[-1] for name in ("main", "weak"))
    along = direction = 0.0
    for x, sigma in zip(states[:-1], sigmas.tolist(), strict=False):
        c, u, k = (net.velocity(x, sigma, label) for net, label in ((main, few.labels(24)), (main, 4), (weak, few.labels(24))))
        along += float((0.7 * (c - k) * (c - u)).sum())
        direction += float((c - u).square().sum())
    assert effective_of(engine, rule, few) == pytest.approx(1 + along / direction, rel=1e-4)


@pytest.fixture
def small(monkeypatch):
    """Both studies with trees of one level, networks of a few steps, runs of four calls."""
    monkeypatch.setattr(mixture_study, "STEPS", 4)
    monkeypatch.setattr(plane_scores, "STEPS", 4)
    monkeypatch.setattr(plane_scores, "EFFECTIVE_POINTS", 48)
    monkeypatch.setattr(plane_scores, "noise_levels", lambda own: mixture_study.noise_levels(own, 3))
    monkeypatch.setattr(command, "LENGTHS", dict.fromkeys(LENGTHS, (SHORT, replace(SHORT, width=4))))

    def record(path, own, scores, sizes, points):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(own.numbers()))

    monkeypatch.setattr(command, "draw_picture", record)


def test_the_command_writes_a_page_with_pictures_and_draws_nothing_twice(small, tmp_path, monkeypatch):
    out, into, said = tmp_path / "rows.jsonl", tmp_path / "pages", []
    command.reproduce_mixture(48, 1, out, tmp_path / "runs", into, said.append)
    rows = read_rows(out)
    page = (into / "mixture.md").read_text()
    # 48 points are too few for a table: all four settings are listed with the command
    assert page.count("| 48 | `segue reproduce mixture` |") == 4 and "| rule |" not in page
    pictures = {path.name: json.loads(path.read_text()) for path in into.glob("*.png")}
    assert sorted(pictures) == ["mixture-24-classes.png", "mixture-4-classes.png"]
    assert pictures["mixture-4-classes.png"]["weak"]["width"] == 4 and "blur" not in pictures["mixture-4-classes.png"]
    (first, second, *_) = settings(1, tmp_path / "runs" / "mixture")
    held = [row for row in rows if row.case == first.case(48)]
    drawn = draw(first.study.engine(), first.study.rules["CFG"], first.study.labels(48))[0][-1]
    outside = 1 - float(first.study.inside(drawn, first.study.labels(48)).double().mean())
    assert by_rule(held)["CFG"]["outside the leaf"].value == pytest.approx(outside)
    assert [own.outside for own in scores_of(first.study, held)][1] == pytest.approx(outside)
    assert [size.sigma for size in sizes_of(first.study, held)] == [
        round(level, 6) for level in mixture_study.noise_levels(first.study, 3).tolist()
    ]
    monkeypatch.setattr(PlaneScorer, "_rows", None)  # who would draw would fail
    command.reproduce_mixture(48, 1, out, tmp_path / "runs", None, said.append)
    assert read_rows(out) == rows and second.case(48) in said[-1]


def test_a_table_is_over_seeds_and_a_claim_holds_where_it_holds_for_every_seed(environment):
    def rows_of(seed: int, spreads: dict[str, float]):
        setting = Setting(STUDIES[0], "trained", seed)
        found = []
        for rule in ("none", "CFG", "weak", "SGG", "CFG at the scale of SGG"):
            values = {"spread": spreads.get(rule, 0.9), "outside the leaf": 0.1, "Frechet distance": 0.1}
            for metric, value in (values | {"correction": 1.0, "distance to the exact velocity": 1.0}).items():
                note = "[[0.1, 1.0], [0.2, 1.0], [0.8, 2.0], [0.9, 2.0]]"
                statistic = Statistic(value, value, value, LEAST)
                found.append(
                    make_row(environment, "mixture", setting.case(LEAST), rule, metric, "", statistic, "float64", note=note)
                )
        return found

    spreads = {"none": 1.0, "CFG": 0.5, "weak": 1.1, "SGG": 0.3}
    rows = rows_of(0, spreads) + rows_of(1, spreads | {"CFG": 0.7})
    switches = {study.name: study.switch for study in STUDIES}
    content = mixture_content(rows, switches, [])
    verdicts = {claim.says: claim.verdict for claim in content.claims}
    assert verdicts["CFG seeks modes: a class shrinks"] == AGREES
    assert verdicts["SGG keeps more diversity than CFG"] == DIFFERS
    assert "| CFG |  |  | 10.0% |  | 0.60 (0.50 to 0.70) |" in content.text()
    one = [{rule: dict(found) for rule, found in by_rule(rows_of(0, spreads)).items()}]
    assert "| CFG |  |  | 10.0% |  | 0.50 |" in setting_table(one)


def test_curves_are_averaged_by_the_levels_that_each_stands_for():
    even = [(0.1 * step, 2.0) for step in range(1, 10)]
    assert mean_side(even, 0.45, True) == pytest.approx(2) and centre(even) == pytest.approx(0.5)
    dense = [(0.0, 1.0), *((0.001 * step, 1.0) for step in range(1, 100)), (1.0, 1.0)]
    assert centre(dense) == pytest.approx(0.5, abs=0.03)  # many levels at one end do not pull it there


@pytest.mark.parametrize(
    ("arguments", "said"), [((47, 1), "two samples of each of 24 classes"), ((48, 0), "seeds must be at least 1, got 0")]
)
def test_bad_input_is_refused_before_any_work(tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr(PlaneScorer, "score", None)
    with pytest.raises(ValueError, match=said):
        command.reproduce_mixture(*arguments, tmp_path / "rows.jsonl", tmp_path / "runs", None)
    assert not list(tmp_path.iterdir())
