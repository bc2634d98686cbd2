"""Rows of quality: written rule by rule, not drawn again when a file holds them, and their intervals at any level."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_sit

from segue import Engine
from segue.bench.compare import compare
from segue.bench.quality.interval import interval_of
from segue.bench.quality.scoring import Trial, score_rules
from segue.bench.report import write_report
from segue.bench.rows import Row, make_row, read_rows
from segue.bench.scores.extractors import RandomConvolutions, colour_statistics, features_of
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


@pytest.fixture
def judges():
    """Two, one with a classifier of six classes, and their features of real pictures."""
    real = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    first = Judge("colours", colour_statistics, lambda x: x.mean(dim=(2, 3)) @ weights)
    second = Judge("textures", RandomConvolutions(features=8))
    return {judge: features_of(real, judge.features) for judge in (first, second)}


@pytest.fixture
def drawn(engine, monkeypatch):
    """Counts the samples that are drawn."""
    counts, sample = [], engine.sample

    def counted(labels, *arguments, **options):
        counts.append(len(labels))
        return sample(labels, *arguments, **options)

    monkeypatch.setattr(engine, "sample", counted)
    return counts


def score(engine, judges, environment, path, rules=RULES, trial=TRIAL):
    return score_rules(engine, rules, judges, trial, environment, path, echo=lambda _: None)


def test_every_rule_has_its_cost_and_its_scores_by_every_judge(engine, judges, environment, tmp_path):
    path = tmp_path / "quality.jsonl"
    score(engine, judges, environment, path)
    rows = read_rows(path)
    by_rule = {rule: [row for row in rows if row.variant == rule] for rule in RULES}
    assert all(len(own) == 1 + 9 + 6 for own in by_rule.values()) and len(rows) == 3 * 16
    assert [own[0].value for own in by_rule.values()] == [
        engine.plan(rule, steps=3).cost.relative for rule in guidances(engine)
    ]
    for row in rows:
        assert (
            row.suite == "quality" and "24 samples from seed 5, 3 steps, euler" in row.case and row.p20 <= row.value <= row.p80
        )
    names = {row.metric for row in by_rule["none"]}
    assert {"superclass accuracy by colours", "precision by textures"} <= names and "accuracy by textures" not in names


def guidances(engine):
    from segue import parse_rule

    return [parse_rule(rule, engine.spec).guidance for rule in RULES]


def test_scores_are_of_the_samples_that_the_trial_names(engine, judges, environment, tmp_path):
    rows = score(engine, judges, environment, tmp_path / "quality.jsonl", rules=("cfg:scale=3",))
    run = engine.sample([i % 6 for i in range(24)], guidances(engine)[1], steps=3, seeds=list(range(5, 29)))
    judge, real = next(iter(judges.items()))
    expected = judge.scores(run.latents.clamp(-1, 1), torch.arange(24) % 6, real, engine.spec.parents)
    found = {row.metric.removesuffix(" by colours"): row.value for row in rows if row.metric.endswith("colours")}
    # other batches round otherwise, and a rounding can turn a neighbour
    assert found == pytest.approx({name: interval.value for name, interval in expected.items()}, rel=1e-3, abs=1e-3)


def test_what_a_file_holds_is_not_drawn_again(engine, judges, environment, tmp_path, drawn):
    path = tmp_path / "quality.jsonl"
    first = score(engine, judges, environment, path, rules=RULES[:2])
    assert drawn == [10, 10, 4] * 2
    text = path.read_text()
    again = score(engine, judges, environment, path)
    assert drawn == [10, 10, 4] * 3 and path.read_text().startswith(text)
    assert again[: len(first)] == first
    assert score(engine, judges, environment, path) == again and drawn == [10, 10, 4] * 3


def test_a_new_judge_judges_what_is_drawn_for_it_alone(engine, judges, environment, tmp_path, drawn):
    path, (first, second) = tmp_path / "quality.jsonl", judges.items()
    score(engine, dict([first]), environment, path, rules=RULES[:1])
    both = score(engine, judges, environment, path, rules=RULES[:1])
    assert drawn == [10, 10, 4] * 2
    rows = read_rows(path)
    assert sum("by colours" in row.metric for row in rows) == 9 and sum("by textures" in row.metric for row in rows) == 6
    assert {row.key for row in both} == {row.key for row in rows} and second[0].name == "textures"


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
    assert len({row.case for row in read_rows(path)}) == 3 and drawn == [10, 10, 4] * 2


def test_intervals_come_back_from_rows(engine, judges, environment, tmp_path):
    """Wilson's and Student's, at the level asked for, though a row holds another."""
    rows = score(engine, judges, environment, tmp_path / "quality.jsonl", rules=RULES[:1])
    judge, real = next(iter(judges.items()))
    pictures, labels = (torch.cat(parts) for parts in zip(*TRIAL.draw(engine, parsed("none", engine)), strict=True))
    expected = judge.scores(pictures, labels, real, engine.spec.parents, level=0.95)
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


def test_judges_of_one_name_and_impossible_trials_are_refused(engine, environment, tmp_path):
    twins = {Judge("same", colour_statistics): torch.zeros(9, 96), Judge("same", RandomConvolutions()): torch.zeros(9, 64)}
    with pytest.raises(ValueError, match="names of their own, got same, same"):
        score(engine, twins, environment, tmp_path / "quality.jsonl")
    with pytest.raises(ValueError, match="samples must be a whole number of at least 10, got 9"):
        Trial(samples=9)
    with pytest.raises(ValueError, match="first_seed must be a whole number of at least 0, got -1"):
        Trial(samples=20, first_seed=-1)


def test_the_code_of_the_document_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    for size, smaller in (("samples=192", "samples=12, steps=2"), ("batch_size=2000", "batch_size=16")):
        assert size in code
        code = code.replace(size, smaller)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    rows = read_rows(tmp_path / "bench" / "results" / "quality.jsonl")
    assert {row.variant for row in rows} == {"none", "cfg:scale=1.5"} and len(rows) == 2 * 13
    assert capsys.readouterr().out.count("precision by colours") == 4  # said when it is written, and printed by the code
