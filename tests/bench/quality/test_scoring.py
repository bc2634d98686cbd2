"""Rows of quality: written rule by rule, not drawn again when a file holds them, and their intervals at any level."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_sit

from segue import Engine
from segue.bench.compare import compare
from segue.bench.quality.interval import interval_of
from segue.bench.quality.real_samples import RealSamples
from segue.bench.quality.scoring import EFFECTIVE_SAMPLES, Scorer
from segue.bench.quality.tables import quality_tables
from segue.bench.quality.time_limit import OutOfTimeError, TimeLimit
from segue.bench.quality.trial import Trial
from segue.bench.report import write_report
from segue.bench.rows import Row, make_row, read_rows
from segue.bench.scores.effective_scale import effective_scales
from segue.bench.scores.extractors import RandomConvolutions, colour_statistics
from segue.bench.scores.intervals import wilson
from segue.bench.scores.judge import Judge
from segue.bench.timing import Statistic

ROOT = Path(__file__).parents[3]
RULES = ("none", "cfg:scale=3", "slg:weight=2,layers=1,3")
TRIAL = Trial(samples=24, steps=3, batch=10, first_seed=5)


def small(seed: int = 0):
    return tiny_sit(seed, channels=3, height=8, width=8, name="small")


@pytest.fixture(scope="module")
def engine():
    return Engine(small(), device="cpu")


def logits(pictures: torch.Tensor) -> torch.Tensor:
    """Of six classes."""
    return pictures.mean(dim=(2, 3)) @ torch.randn(3, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def judges():
    """Two, one with a classifier of six classes."""
    return Judge("colours", colour_statistics, logits), Judge("textures", RandomConvolutions(features=8))


def made_up(count: int = 40, size=(3, 8, 8)) -> RealSamples:
    pictures = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return RealSamples(f"{count} made up", count, size, lambda: pictures.split(17))


REAL = made_up()


@pytest.fixture
def drawn(engine, monkeypatch):
    """Counts the samples that are drawn."""
    counts, sample = [], engine.sample

    def counted(labels, *arguments, **options):
        counts.append(len(labels))
        return sample(labels, *arguments, **options)

    monkeypatch.setattr(engine, "sample", counted)
    return counts


def score(engine, judges, environment, path, rules=RULES, trial=TRIAL, real=REAL, **options):
    return Scorer(engine, tuple(judges), real, trial, environment, path, echo=lambda _: None, **options).score(rules)


def test_every_rule_has_its_cost_and_its_scores_by_every_judge(engine, judges, environment, tmp_path):
    path = tmp_path / "quality.jsonl"
    score(engine, judges, environment, path)
    rows = read_rows(path)
    by_rule = {rule: [row for row in rows if row.variant == rule] for rule in RULES}
    assert all(len(own) == 3 + 9 + 6 for own in by_rule.values()) and len(rows) == 3 * 18
    costs = [engine.plan(rule, steps=3).cost for rule in guidances(engine)]
    found = [tuple(row.value for row in own[:3]) for own in by_rule.values()]
    assert found == [(cost.relative, cost.evaluations, cost.flops) for cost in costs]
    for row in rows:
        assert row.case.endswith("24 samples from seed 5, 3 steps, euler, beside 40 made up")
        assert row.suite == "quality" and row.p20 <= row.value <= row.p80
    names = {row.metric for row in by_rule["none"]}
    assert {"superclass accuracy by colours", "precision by textures"} <= names and "accuracy by textures" not in names


def guidances(engine):
    from segue import parse_rule

    return [parse_rule(rule, engine.spec).guidance for rule in RULES]


def test_scores_are_of_the_samples_that_the_trial_names(engine, judges, environment, tmp_path):
    rows = score(engine, judges, environment, tmp_path / "quality.jsonl", rules=("cfg:scale=3",))
    run = engine.sample([i % 6 for i in range(24)], guidances(engine)[1], steps=3, seeds=list(range(5, 29)))
    judge = judges[0]
    expected = judge.scores(run.latents.clamp(-1, 1), torch.arange(24) % 6, REAL.features(judge), engine.spec.parents)
    found = {row.metric.removesuffix(" by colours"): row.value for row in rows if row.metric.endswith("colours")}
    # other batches round otherwise, and a rounding can turn a neighbour
    assert found == pytest.approx({name: interval.value for name, interval in expected.items()}, rel=1e-3, abs=1e-3)


def test_what_a_file_holds_is_not_drawn_again(engine, judges, environment, tmp_path, drawn):
    path = tmp_path / "quality.jsonl"
    first = score(engine, judges, environment, path, rules=RULES[:2])
    assert drawn == [8, 8, 8] * 2
    text = path.read_text()
    again = score(engine, judges, environment, path)
    assert drawn == [8, 8, 8] * 3 and path.read_text().startswith(text)
    assert again[: len(first)] == first
    assert score(engine, judges, environment, path) == again and drawn == [8, 8, 8] * 3


def test_a_new_judge_judges_what_is_drawn_for_it_alone(engine, judges, environment, tmp_path, drawn):
    path = tmp_path / "quality.jsonl"
    score(engine, judges[:1], environment, path, rules=RULES[:1])
    both = score(engine, judges, environment, path, rules=RULES[:1])
    assert drawn == [8, 8, 8] * 2
    rows = read_rows(path)
    assert sum("by colours" in row.metric for row in rows) == 9 and sum("by textures" in row.metric for row in rows) == 6
    assert {row.key for row in both} == {row.key for row in rows}


def test_what_another_device_drew_is_not_drawn_again(engine, judges, environment, tmp_path, drawn):
    path = tmp_path / "quality.jsonl"
    first = score(engine, judges, replace(environment, device="a card"), path, rules=RULES[:1])
    drawn.clear()
    assert score(engine, judges, environment, path, rules=RULES[:1]) == first and not drawn
    score(engine, judges, environment, path, rules=RULES[:2])
    text = quality_tables(read_rows(path))
    assert "a card and test machine, float32; " in text and text.count("| rule |") == 1


def test_an_interruption_keeps_the_rules_before_it(engine, judges, environment, tmp_path, monkeypatch):
    path, sample, calls = tmp_path / "quality.jsonl", engine.sample, []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return sample(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "sample", stops)
        with pytest.raises(KeyboardInterrupt):
            score(engine, judges, environment, path)
    assert {row.variant for row in read_rows(path)} == {"none"}
    score(engine, judges, environment, path)
    whole = score(engine, judges, environment, tmp_path / "at-once.jsonl")
    assert [(row.key, row.value) for row in read_rows(path)] == [
        (row.key, row.value) for row in read_rows(tmp_path / "at-once.jsonl")
    ]
    assert whole == read_rows(tmp_path / "at-once.jsonl")


def test_rows_of_another_network_or_trial_are_others(judges, engine, environment, tmp_path, drawn):
    path = tmp_path / "quality.jsonl"
    score(engine, judges, environment, path, rules=RULES[:1])
    score(Engine(small(1), device="cpu"), judges, environment, path, rules=RULES[:1])
    score(engine, judges, environment, path, rules=RULES[:1], trial=Trial(samples=24, steps=3, batch=10, first_seed=50))
    score(engine, judges, environment, path, rules=RULES[:1], real=made_up(30))
    assert len({row.case for row in read_rows(path)}) == 4 and drawn == [8, 8, 8] * 3


def test_intervals_come_back_from_rows(engine, judges, environment, tmp_path):
    """Wilson's and Student's, at the level asked for, though a row holds another."""
    rows = score(engine, judges, environment, tmp_path / "quality.jsonl", rules=RULES[:1])
    judge = judges[0]
    pictures, labels = (torch.cat(parts) for parts in zip(*TRIAL.draw(engine, parsed("none", engine)), strict=True))
    expected = judge.scores(pictures, labels, REAL.features(judge), engine.spec.parents, level=0.95)
    for row in rows:
        if row.metric.endswith("by colours"):
            found, own = interval_of(row), expected[row.metric.removesuffix(" by colours")]
            assert (found.value, found.low, found.high) == pytest.approx((own.value, own.low, own.high), abs=1e-9)
    accuracy = next(row for row in rows if row.metric == "accuracy by colours")
    assert interval_of(accuracy, 0.8) == wilson(round(24 * accuracy.value), 24, 0.8)


def parsed(text, engine):
    from segue import parse_rule

    return parse_rule(text, engine.spec)


def quality_row(environment, metric: str, value: float, half: float, unit: str) -> Row:
    statistic = Statistic(value, value - half, value + half, 100)
    return make_row(environment, "quality", "a model", "cfg", f"{metric} by colours", unit, statistic, "float32")


@pytest.mark.parametrize(
    ("metric", "unit", "before", "after", "half", "verdict"),
    [
        ("accuracy", "share", 0.70, 0.90, 0.02, "better"),  # Wilson's intervals of 100 samples are .60 to .78 and .83 to .94
        ("accuracy", "share", 0.90, 0.70, 0.02, "worse"),
        ("accuracy", "share", 0.80, 0.90, 0.02, "same"),
        ("kernel distance", "distance", -0.01, 0.09, 0.01, "worse"),  # each 2.95 times as wide at 95 % as at 60 %
        ("kernel distance", "distance", 0.09, -0.01, 0.01, "better"),
        ("kernel distance", "distance", 0.04, -0.01, 0.01, "same"),
        ("inception score", "score", 3.0, 2.0, 0.1, "worse"),
        ("effective scale", "scale", 1.5, 3.0, 0.1, "same"),
        ("effective scale", "scale", 3.0, 1.5, 0.1, "same"),
    ],
)
def test_rows_differ_where_their_intervals_are_apart(environment, metric, unit, before, after, half, verdict):
    sides = [[quality_row(environment, metric, value, half, unit)] for value in (before, after)]
    (difference,), _ = compare(*sides)
    assert difference.verdict == verdict


def test_the_report_goes_by_rows_of_quality(engine, judges, environment, tmp_path):
    path = tmp_path / "quality.jsonl"
    score(engine, judges, environment, path, rules=RULES[:1])
    assert (tmp_path / "report.md") in write_report([path], tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rules": ("none", "magic")}, "unknown guidance rule 'magic'"),
        ({"path": "quality.csv"}, r"must end in \.jsonl"),
    ],
)
def test_bad_input_is_refused_before_any_work(engine, judges, environment, tmp_path, drawn, change, said):
    given = {"rules": RULES, "path": "quality.jsonl"} | change
    with pytest.raises(ValueError, match=said):
        score(engine, judges, environment, tmp_path / given["path"], rules=given["rules"])
    assert not drawn and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("judges", "real", "said"),
    [
        ((Judge("same", colour_statistics), Judge("same", colour_statistics)), REAL, "names of their own, got same, same"),
        ((), REAL, "name at least one judge"),
        (
            (Judge("two", colour_statistics, lambda x: torch.zeros(len(x), 2)),),
            REAL,
            "two tells 2 classes apart, and small has 6",
        ),
        ((Judge("flat", lambda x: x),), REAL, r"flat must give features \[2, F\] of two pictures, got shape \[2, 3, 8, 8\]"),
        ((Judge("greys", lambda x: x @ torch.zeros(7, 7)),), REAL, "greys does not take pictures of 3x8x8: "),
        ((Judge("colours", colour_statistics),), made_up(23), "24 samples need as many real ones beside them, got 23"),
        ((Judge("colours", colour_statistics),), made_up(size=(3, 8, 9)), "3x8x8 need real ones of that size .* got 3x8x9"),
    ],
)
def test_judges_and_real_samples_that_do_not_fit_are_refused(engine, environment, tmp_path, drawn, judges, real, said):
    with pytest.raises(ValueError, match=said):
        score(engine, judges, environment, tmp_path / "quality.jsonl", real=real)
    assert not drawn and not list(tmp_path.iterdir())


def test_latents_are_no_pictures_to_judge(environment, tmp_path):
    judge, real = Judge("colours", colour_statistics), made_up()
    with pytest.raises(ValueError, match="latents with 4 channels are not pixels: give the VAE"):
        score(Engine(tiny_sit(height=8, width=8), device="cpu"), [judge], environment, tmp_path / "quality.jsonl", real=real)
    assert not list(tmp_path.iterdir())


def test_impossible_trials_are_refused():
    with pytest.raises(ValueError, match="samples must be a whole number of at least 10, got 9"):
        Trial(samples=9)
    with pytest.raises(ValueError, match="first_seed must be a whole number of at least 0, got -1"):
        Trial(samples=20, first_seed=-1)
    with pytest.raises(ValueError, match="unknown solver 'magic'"):
        Trial(samples=20, solver="magic")


def test_the_effective_scale_is_the_mean_over_the_calls_of_samples_of_classes_spread_over_all(
    engine, judges, environment, tmp_path
):
    path, rules = tmp_path / "quality.jsonl", ("none", "cfg:scale=3", "slg:weight=2,layers=1,3")
    rows = score(engine, judges, environment, path, rules=rules, effective=True)
    found = [row for row in rows if row.metric == "effective scale"]
    assert [row.value for row in found[:2]] == pytest.approx([1, 3], abs=1e-4) and {row.n for row in found} == {15}
    labels = [index * 6 // EFFECTIVE_SAMPLES for index in range(EFFECTIVE_SAMPLES)]
    rule = guidances(engine)[2]
    _, scales = effective_scales(engine, rule, labels, steps=3, seeds=range(5, 5 + EFFECTIVE_SAMPLES))
    assert set(labels) == set(range(6)) and found[2].value == pytest.approx(float(scales.mean()))


def test_a_scale_that_is_missing_is_found_without_drawing_the_rule_again(engine, judges, environment, tmp_path, drawn):
    path = tmp_path / "quality.jsonl"
    score(engine, judges, environment, path, rules=RULES[:2])
    drawn.clear()
    rows = score(engine, judges, environment, path, rules=RULES[:2], effective=True)
    assert drawn == [EFFECTIVE_SAMPLES] * 2 and sum(row.metric == "effective scale" for row in rows) == 2


def test_a_piece_that_would_end_too_late_does_not_begin():
    minutes = iter([0, 0, 0, 30, 30, 30])
    limit = TimeLimit(minutes=50, now=lambda: 60 * next(minutes))
    with limit.piece("first", 72):
        pass
    limit.check("smaller", 47)
    with pytest.raises(OutOfTimeError, match=r"cfg: not begun, 1200 s left of 50 minutes, 3600 s needed"):
        limit.check("cfg", 144)


def test_a_rule_without_time_is_left_and_those_before_it_stay(engine, judges, environment, tmp_path, drawn):
    class Stops(TimeLimit):
        def check(self, what, work):
            assert work == {"none": 72, "cfg:scale=3": 144}[what]  # evaluations of 24 samples at 3 steps
            if what != "none":
                raise OutOfTimeError(what)

    path = tmp_path / "quality.jsonl"
    with pytest.raises(OutOfTimeError, match="cfg"):
        score(engine, judges, environment, path, limit=Stops())
    assert {row.variant for row in read_rows(path)} == {"none"} and drawn == [8, 8, 8]


def test_the_accuracy_says_what_was_taken_for_what(engine, judges, environment, tmp_path):
    from segue.bench.quality.rows import confused
    from segue.bench.scores.accuracy import Confusion

    rows = score(engine, judges, environment, tmp_path / "quality.jsonl", rules=RULES[:1])
    pictures, labels = (torch.cat(parts) for parts in zip(*TRIAL.draw(engine, parsed("none", engine)), strict=True))
    expected = Confusion.of(logits(pictures), labels).most_confused(12)
    (accuracy,) = (row for row in rows if row.metric == "accuracy by colours")
    assert expected and confused(accuracy) == expected


def test_the_code_of_the_document_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    for size, smaller in (("samples=192", "samples=12, steps=1"), ("leaves(2000)", "leaves(16)")):
        assert size in code
        code = code.replace(size, smaller)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    rows = read_rows(tmp_path / "out" / "quality.jsonl")
    assert {row.variant for row in rows} == {"none", "cfg:scale=1.5"} and len(rows) == 2 * 15
    said = capsys.readouterr().out
    assert said.count("precision by colours") == 2 and "cfg:scale=1.5: 2.00x, FD by colours ." in said
