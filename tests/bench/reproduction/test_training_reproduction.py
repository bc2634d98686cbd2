"""Objectives from one checkpoint: killed runs go on, networks are known by their rows, pages over seeds, figures' points."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import randomize
from training_fixtures import TINY_SPEC

from segue.bench.pictures.measured import Measured
from segue.bench.quality.judges import named_judge
from segue.bench.quality.origins import DISTILLED, TRAINED, Origin, origins
from segue.bench.quality.real_samples import leaves
from segue.bench.quality.rows import RowForm
from segue.bench.quality.time_limit import TimeLimit
from segue.bench.quality.trial import Trial, networks_of
from segue.bench.reproduction import objective_runs
from segue.bench.reproduction.claims import AGREES, OPEN
from segue.bench.reproduction.distilled import Distances, missing_distances
from segue.bench.reproduction.distilled_page import distilled_content
from segue.bench.reproduction.objective_runs import ObjectiveRun, Training, runs_of
from segue.bench.reproduction.page import LEAST
from segue.bench.reproduction.training import ScoreOptions, begun_from, built_in_rules, reproduce_training
from segue.bench.reproduction.training_page import ORDER, training_content
from segue.bench.rows import append_rows, make_row, read_rows
from segue.bench.scores.intervals import Interval, mean_interval, student_quantile, wilson
from segue.bench.suites import UNFINISHED
from segue.bench.timing import Statistic, once
from segue.engine.engine import Engine
from segue.models.sit import SiT
from segue.models.weights import save_model
from segue.training.data.herbarium import Herbarium

SETTINGS = {"steps": 4, "batch_size": 3, "dtype": "float32", "device": "cpu", "warmup": 1, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_model(randomize(SiT(TINY_SPEC), 0), path)
    return str(path)


def test_repeated_are_none_and_segmented_after_all_others():
    runs = [(run.weak, run.seed) for run in runs_of(("segmented", "none", "branch"), 3)]
    first = [("none", 0), ("branch", 0), ("segmented", 0)]
    assert runs == [*first, ("none", 1), ("segmented", 1), ("none", 2), ("segmented", 2)]
    assert built_in_rules(runs_of(("none", "uncond", "segmented"), 1)) == ["cfg:scale=2", "cfg:scale=2.5"]
    with pytest.raises(ValueError, match="unknown objective 'segmentd'; there are: none, uncond"):
        runs_of(("segmentd",), 1)
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        runs_of(("none",), 0)


def options(judge_counts: list) -> ScoreOptions:
    def judged(engine):
        return (named_judge("colours", torch.device("cpu")),), leaves(20)

    return ScoreOptions({"samples": 10, "first_seed": 5, "steps": 2, "batch": 10}, judged, ("cfg:scale=2",))


def test_a_run_that_ran_out_of_time_goes_on_and_nothing_is_made_twice(checkpoint, tmp_path, monkeypatch):
    runs, said = runs_of(("none", "branch"), 1), []
    common = (checkpoint, Herbarium(), runs, SETTINGS, options([]), tmp_path / "rows.jsonl")
    whole = objective_runs.train_within

    def half(trainer, limit):
        trainer.run(lambda trainer, losses: trainer.step < 2)  # as a limit does: saved, and not the end
        return False

    monkeypatch.setattr(objective_runs, "train_within", half)
    assert reproduce_training(*common, tmp_path / "runs", None, None, said.append) == UNFINISHED
    assert any("stopped at step 2 of 4" in line for line in said) and not (tmp_path / "rows.jsonl").exists()
    monkeypatch.setattr(objective_runs, "train_within", whole)
    assert reproduce_training(*common, tmp_path / "runs", None, tmp_path / "pages", said.append) == 0
    assert any("none-seed-0: 4 steps, from step 2" in line for line in said)
    reproduce_training(*common[:-1], tmp_path / "other.jsonl", tmp_path / "straight", None, None, said.append)
    rows, other = read_rows(tmp_path / "rows.jsonl"), read_rows(tmp_path / "other.jsonl")
    found = {origin.name: origin for origin in origins(rows)}
    # the network of a run that stopped is that of one that did not
    assert {name: origin.networks for name, origin in found.items()} == {own.name: own.networks for own in origins(other)}
    assert found["branch"].facts["weight"] == 0.3 and found["branch"].steps == 4 and found["branch"].kind == TRAINED
    cases = {row.case.partition(",")[0]: set() for row in rows if row.suite == "quality"}
    for row in rows:
        if row.suite == "quality":
            cases[row.case.partition(",")[0]].add(row.variant)
    plain = found["none"].networks
    assert set(cases) == {found["none"].parent, plain, found["branch"].networks}
    assert cases[plain] == {"none", "cfg:scale=2", "cfg:scale=1.43"} and cases[found["none"].parent] == {"none", "cfg:scale=2"}
    page = (tmp_path / "pages" / "training.md").read_text()
    assert "| none, none | 10 | `segue reproduce training` |" in page and "| uncond, trained | 0 |" in page
    monkeypatch.setattr(Engine, "sample", None)  # who would draw would fail
    monkeypatch.setattr(objective_runs, "train_within", None)
    assert reproduce_training(*common, tmp_path / "runs", None, None, said.append) == 0
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_checkpoint_without_a_head_gets_one_for_the_objectives_that_read_it(tmp_path):
    path = tmp_path / "headless.safetensors"
    save_model(randomize(SiT(replace(TINY_SPEC, exits=())), 0), path)
    begun = begun_from(Training(str(path), Herbarium(), SETTINGS, tmp_path))
    assert begun.spec.exits == (1,)


def test_other_settings_are_refused_beside_a_run(checkpoint, tmp_path):
    training = Training(checkpoint, Herbarium(), SETTINGS, tmp_path)
    run, begun = ObjectiveRun("none", 0), training.weights()
    training.trainer(run, begun).save()
    other = replace(training, settings=SETTINGS | {"learning_rate": 0.5})
    with pytest.raises(ValueError, match="holds a run with another learning_rate"):
        other.train(run, begun, TimeLimit(), print)


TAIL = f"{LEAST} samples from seed 7, 3 steps, euler, beside 99 leaves"
BASE = "small 12ab"


def networks(environment, distances: dict[tuple[str, int], float], rule: str = "none"):
    """Rows of trained networks by objective and seed, with the distance that one judge gives."""
    rows = []
    for index, ((weak, seed), distance) in enumerate(distances.items()):
        name = f"small-{weak}-{seed} {index}"
        facts = {"seed": seed, "weight": 0.5, "seconds_per_step": 2.0 if weak == "uncond" else 1.0}
        rows.append(Origin(name, BASE, TRAINED, weak, 40, facts).row(environment))
        form = RowForm(environment, f"{name}, {TAIL}", "float32")
        found = Interval(distance, distance - 0.001, distance + 0.001)
        rows.append(form.interval_row(rule, "Frechet distance per feature by judge@1", "distance", found, LEAST))
    return rows


def test_seeds_are_averaged_and_the_published_order_is_judged_by_intervals(environment):
    distances = {("none", 0): 0.50, ("none", 1): 0.52, ("uncond", 0): 0.2, ("segmented", 0): 0.2}
    rows = networks(environment, distances)
    cost = make_row(environment, "training", "herbarium batch 4", "uncond", "relative", "x", once(1.3), "float32", 1.25)
    content = training_content(rows, BASE, TAIL, ("cfg:scale=2",), [cost], "segue reproduce training")
    text, by_hand = content.text(), mean_interval([0.5, 0.52])
    assert by_hand.high - 0.51 == pytest.approx(student_quantile(0.975, 1) * 0.01)  # the deviation of two, over the root of 2
    assert f"| none, 2 seeds | 40 | 1.00 |  | .510 ({by_hand.low:.3f} to {by_hand.high:.3f})".replace("0.", ".")[:30] in text
    assert "| uncond | 40 | 2.00 |  | .200" in text and "| 5.88 |" in text
    assert "| uncond | 2 s | 1.30 (1.30 to 1.30) | 1.25 | 1.23 |" in text
    assert "| uncond, cfg:scale=2 | 0 |" in text and "| branch, trained | 0 |" in text
    verdicts = [claim.verdict for claim in content.claims]
    assert len(content.claims) == 3 < len(ORDER) and verdicts == [AGREES, AGREES, OPEN]


def test_a_judge_of_the_checkpoint_alone_hides_no_table(environment):
    """Plain training at the scale that an objective builds in stands beside that objective, by the judge of both."""
    rows = networks(environment, {("none", 0): 0.5, ("uncond", 0): 0.2})
    rows += networks(environment, {("none", 0): 0.3}, "cfg:scale=2")[1:]
    checkpoint = RowForm(environment, f"{BASE}, {TAIL}", "float32")
    for judge in ("judge@1", "another@2"):
        metric = f"Frechet distance per feature by {judge}"
        rows.append(checkpoint.interval_row("none", metric, "distance", Interval(0.6, 0.5, 0.7), LEAST))
    costs = [
        make_row(environment, "training", "batch 4", weak, "relative", "x", once(1.0), "float32") for weak in ("none", "uncond")
    ]
    text = training_content(rows, BASE, TAIL, (), costs, "segue reproduce training").text()
    assert "| none, first seed | `cfg:scale=2` | .300 (" in text and "another" not in text
    assert "a step in these runs" not in text and "| uncond | 1.00 (1.00 to 1.00) |" in text


def test_networks_scored_on_too_few_samples_are_missing(environment):
    few = TAIL.replace(str(LEAST), str(LEAST - 1))
    rows = [replace(row, case=row.case.replace(TAIL, few)) for row in networks(environment, {("none", 0): 0.123})]
    text = training_content(rows, BASE, few, (), [], "segue reproduce training").text()
    assert ".123 (" not in text and f"| none, none | {LEAST - 1} | `segue reproduce training` |" in text


def test_origins_come_back_from_their_rows(environment):
    origin = Origin("a 1", "b 2", DISTILLED, "sgg:scale=2", 7, {"adapter": "sgg"})
    row = origin.row(environment)
    assert Origin.of(json.loads(json.dumps(row, default=vars)) and row) == origin
    assert origins([row], "b 2") == [origin] and origins([row], "c 3") == []
    with pytest.raises(ValueError, match="a row of the suite origin is needed"):
        Origin.of(replace(row, suite="quality"))


@pytest.fixture(scope="module")
def engines():
    spec = replace(TINY_SPEC, height=8, width=8, patch=4, parents=(), num_classes=5)
    return [Engine(randomize(SiT(spec), seed), device="cpu") for seed in (0, 1)]


def test_distances_are_those_of_finished_samples_and_measured_once(engines, environment, tmp_path, monkeypatch):
    base, adapted = engines
    trial = Trial(samples=11, steps=2, first_seed=900, batch=4)
    far, path = Distances(base, adapted, "cfg:scale=3", trial), tmp_path / "rows.jsonl"
    append_rows(path, missing_distances(far, path, environment, TimeLimit()))
    from segue import CFG

    labels, seeds = [i % 5 for i in range(11)], list(range(900, 911))
    exact = base.sample(labels, CFG(3.0), steps=2, seeds=seeds).latents.double().flatten(1)
    for row, engine in zip(read_rows(path), engines, strict=True):
        own = engine.sample(labels, None, steps=2, seeds=seeds).latents.double().flatten(1)
        # other batches round otherwise
        expected = Statistic.of(((own - exact).norm(dim=1) / exact.norm(dim=1)).numpy())
        assert row.value == pytest.approx(expected.median, rel=1e-3) and row.n == 11
    monkeypatch.setattr(Engine, "sample", None)
    assert missing_distances(far, path, environment, TimeLimit()) == []


def test_the_page_of_an_adapter_judges_scores_and_distances(environment):
    rows, adapted, exact = [], "small 99cd", "sgg:scale=2,weight=1,layers=1,switch=0.5"
    for name, rule, right in ((BASE, "none", 500), (BASE, exact, 800), (adapted, "none", 795)):
        form = RowForm(environment, f"{name}, {TAIL}", "float32")
        rows.append(form.interval_row(rule, "accuracy by judge@1", "share", wilson(right, LEAST, 0.6), LEAST))
        rows.append(form.row(rule, "cost relative to unguided", "x", once(1.78 if rule == exact else 1.0)))
    for name, value in (("none", 0.16), (adapted, 0.04)):
        statistic = Statistic(value, value, value, LEAST)
        rows.append(make_row(environment, "distilled", "far", name, "distance", "relative", statistic, "float32"))
    content = distilled_content(rows, BASE, adapted, exact, TAIL, "far", "segue reproduce distilled")
    assert [claim.verdict for claim in content.claims] == [AGREES, AGREES]
    assert "75% of the way" in content.claims[1].measured
    text = content.text()
    assert "| its adapter, unguided | 1.00x |" in text and "0.040 (0.040 to 0.040)" in text and "missing" not in text
    less = distilled_content(rows[:-1], BASE, adapted, exact, TAIL, "far", "segue reproduce distilled")
    assert f"| distance of {adapted} | 0 |" in less.text() and len(less.claims) == 1


def test_the_effective_scale_of_guidance_in_the_weights_is_along_the_base_network(engines):
    """Of the network itself its unguided scale is 1; of another it is the formula of the two."""
    from segue import CFG
    from segue.bench.scores.effective_scale import effective_scale, effective_scales

    base, other = engines
    common = {"steps": 1, "seeds": [3, 4]}
    assert effective_scales(base, None, [0, 1], **common, beside=base)[1].tolist() == [[1.0, 1.0]]
    plan, found = effective_scales(other, None, [0, 1], **common, beside=base)
    noise, level = base.draw_noise(plan, [3, 4]), torch.ones(2, dtype=torch.float64)
    g, c, u = (
        engine.denoiser(rule, [0, 1], schedule=plan.schedule).velocity(noise, level)
        for engine, rule in ((other, None), (base, None), (base, CFG(0.0)))
    )
    assert found[0].tolist() == pytest.approx(effective_scale(g, c, u).tolist())
    assert networks_of(base) != networks_of(other)


def test_the_figure_has_the_points_of_networks_that_were_made_of_the_model(environment):
    rows = networks(environment, {("segmented", 0): 0.2, ("segmented", 1): 0.3})
    form = RowForm(environment, f"{BASE}, {TAIL}", "float32")
    metric = "Frechet distance per feature by judge@1"
    rows.append(form.interval_row("none", metric, "distance", Interval(0.5, 0.49, 0.51), LEAST))
    rows += [row for name in {row.case for row in rows if row.suite == "quality"} for row in [
        RowForm(environment, name, "float32").row("none", "cost relative to unguided", "x", once(1.0))]]  # fmt: skip
    measured = Measured.of(rows, BASE, "judge@1", "rows.jsonl")
    from segue.bench.pictures.quality_cost import made_points

    points = made_points(measured, "Frechet distance per feature")
    assert [(point.name, point.cost, point.score.value) for point in points] == [("trained, segmented", 1.0, 0.2)]
