"""The demo marks what its judge takes for another class and nothing else, and says of a rule what its rows say."""

import numpy as np
import pytest
import torch
from made_up_scores import SCORES, made_up_scores
from tiny_models import tiny_sit

from segue import Engine
from segue.bench.pictures.demo import Demo, _detail, default_classes
from segue.bench.pictures.measured import Measured
from segue.bench.quality.interval import interval_of
from segue.bench.quality.tables import interval_text
from segue.bench.quality.trial import Trial, networks_of
from segue.bench.scores.judge import Judge
from segue.engine.cli.sheets import GAP, MARGIN, MARKED
from segue.engine.rules.presets import parse_rule

NAMES = ("Acer alba", "Acer nigra", "Betula alba", "Betula nigra", "Cornus alba", "Cornus nigra")
TRIAL = Trial(samples=24, steps=3, first_seed=7)
LABELS = (0, 3, 4)


def engine_of(seed: int) -> Engine:
    options = {"parents": (0, 0, 1, 1, 2, 2), "class_names": NAMES}
    return Engine(tiny_sit(seed, channels=3, height=8, width=8, name="small", **options), device="cpu")


@pytest.fixture(scope="module")
def engine():
    return engine_of(0)


def logits(pictures: torch.Tensor) -> torch.Tensor:
    """Of six classes."""
    return pictures.mean(dim=(2, 3)) @ torch.randn(3, 6, generator=torch.Generator().manual_seed(2))


JUDGE = Judge("judge@1234", lambda pictures: pictures.flatten(1), logits)


def real(labels: torch.Tensor) -> torch.Tensor:
    """Such as the judge takes for what they are: its logits are linear in the three means."""
    weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    candidates = torch.rand(4000, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1
    found = (candidates @ weights).argmax(dim=1)
    means = torch.stack([candidates[int((found == label).nonzero()[0, 0])] for label in labels])
    return means[:, :, None, None].expand(-1, -1, 8, 8)


@pytest.fixture
def rows(engine, environment):
    return made_up_scores(environment, TRIAL.case(engine, "99 leaves"), JUDGE.name)


def demo_of(engine, rows=None, path="rows.jsonl"):
    measured = None if rows is None else Measured.of(rows, networks_of(engine), JUDGE.name, path)
    return Demo(engine, JUDGE, real, TRIAL, LABELS, measured, "" if rows else "there is no file of scores")


def test_a_picture_is_marked_exactly_where_the_judge_takes_it_for_another_class(engine, rows):
    demo = demo_of(engine, rows)
    lines = [demo.real_line(), *map(demo.line, SCORES)]
    sheet = np.asarray(demo.sheet(lines, zoom=12))
    seen = []
    for line in lines:
        found = logits(line.pictures).argmax(dim=1).tolist()
        for asked, taken, mark in zip(LABELS, found, demo.wrong(line), strict=True):
            same_genus = NAMES[asked].split()[0] == NAMES[taken].split()[0]
            assert mark == ("" if asked == taken else NAMES[taken].split()[1] if same_genus else NAMES[taken])
        seen.append([asked != taken for asked, taken in zip(LABELS, found, strict=True)])
    assert not any(seen[0]) and 0 < sum(map(sum, seen)) < 3 * (len(seen) - 1)  # real ones are right, others are of both kinds
    reds = (sheet == MARKED).all(axis=2)
    for column in range(len(LABELS)):  # the left edges of frames
        edge = reds[:, MARGIN + column * (96 + GAP) - 1]
        assert edge.sum() == sum(row[column] for row in seen) * (96 + 4)


def test_the_pictures_are_those_that_were_scored(engine):
    """Sample ``i`` of a trial is of class ``i`` modulo their number, from the seed ``first_seed + i``."""
    from segue.engine.rules.presets import parse_rule

    rule = "cfg:scale=2"
    drawn, labels = next(TRIAL.draw(engine, parse_rule(rule, engine.spec)))
    shown = demo_of(engine).line(rule).pictures
    for picture, label in zip(shown, LABELS, strict=True):
        assert labels[label] == label and torch.allclose(picture, drawn[label], atol=1e-5)


def test_captions_say_what_the_rows_say(engine, rows):
    demo = demo_of(engine, rows)
    by_key = {(row.variant, row.metric): row for row in rows}
    for rule in SCORES:
        line = demo.line(rule)
        accuracy, distance = (
            by_key[rule, f"{score} by {JUDGE.name}"] for score in ("accuracy", "Frechet distance per feature")
        )
        cost = engine.plan(rule, TRIAL.steps).cost.relative
        assert line.caption == f"{cost:.2f}x  |  accuracy {interval_text(accuracy)}  |  FD {interval_text(distance)}"
        assert demo.measured.interval(rule, "accuracy") == interval_of(accuracy)
    assert "24 samples a rule beside 99 leaves, judged by judge; intervals at 95 %" in demo.note()
    assert "evaluation" not in demo.title() + demo.note()


def test_what_was_not_scored_is_said_to_be(engine, rows):
    assert demo_of(engine, rows).line("slg:weight=2,layers=1").caption.endswith("x  |  not scored")
    alone = demo_of(engine)
    assert alone.line("none").caption == "1.00x  |  not scored"
    assert "no accuracy and no FD: there is no file of scores" in alone.note()


def test_scores_of_other_weights_and_of_other_judges_are_refused(engine, rows):
    other = engine_of(1)
    with pytest.raises(ValueError, match=f"scores in rows.jsonl are of {networks_of(engine)}, and not of {networks_of(other)}"):
        demo_of(other, rows)
    with pytest.raises(ValueError, match=r"rows.jsonl are by judge@1234, and not by judge@9999"):
        Measured.of(rows, networks_of(engine), "judge@9999", "rows.jsonl")
    with pytest.raises(ValueError, match=r"none of the suite quality"):
        Measured.of([], networks_of(engine), JUDGE.name, "rows.jsonl")


def test_the_judgement_counts_and_not_the_search(engine, environment, rows):
    """Of several cases of a model that of the most samples."""
    search = made_up_scores(environment, Trial(samples=12, steps=3).case(engine, "99 leaves"), JUDGE.name, shift=0.1)
    for both in (rows + search, search + rows):
        assert Measured.of(both, networks_of(engine), JUDGE.name, "").case.trial.samples == 24


def test_a_line_tells_the_numbers_of_a_rule_and_its_form():
    engine = Engine.from_pretrained("herbarium", device="cpu")
    told = {
        "sgg:scale=1.5,weight=0.6,layers=7,8,switch=0.3": "scale 1.5, weight 0.6, switch 0.3",
        "gfcg:weight=0.6,classifier=herbarium-classifier,form=ag-swap,gain=1,lag=0": "weight 0.6, form ag-swap, gain 1, lag 0",
        "none": "",
        "cfg:scale=2 + zero-star": "scale 2",
        "none + epsilon:factor=1.005": "",
    }
    for text, detail in told.items():
        assert _detail(parse_rule(text, engine.spec)) == detail


def test_two_species_of_every_genus_are_shown_and_all_details():
    from segue.training.data.species import PARENTS, SPECIES

    chosen = default_classes(PARENTS)
    assert [PARENTS[label] for label in chosen] == [genus for genus in range(6) for _ in range(2)]
    assert {SPECIES[label].split()[1] for label in chosen} == {name.split()[1] for name in SPECIES}
    assert default_classes((0, 0, 1)) == (0, 1, 2)
    assert [PARENTS[label] for label in default_classes(PARENTS, each=1)] == list(range(6))
