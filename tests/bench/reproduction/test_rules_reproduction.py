"""``segue reproduce rules``: which rules at which strengths, the page of rows, one sentence for bad input."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_scores import SAMPLES, made_up_scores
from PIL import Image
from tiny_models import tiny_sit

from segue.bench.quality.judges import named_judge
from segue.bench.quality.real_samples import leaves
from segue.bench.quality.rows import RowForm, metric_by
from segue.bench.quality.scoring import Scorer
from segue.bench.quality.trial import Trial
from segue.bench.reproduction.page import LEAST
from segue.bench.reproduction.rule_sweep import ALONE, FACTORS, SWEPT, Swept, all_names, scaled, swept_rules
from segue.bench.reproduction.rule_times import RATIO
from segue.bench.reproduction.rule_times import SUITE as TIMES
from segue.bench.reproduction.rules import draw_rules
from segue.bench.reproduction.rules_page import best_texts, rules_content
from segue.bench.rows import append_rows, make_row, read_rows
from segue.bench.scores.units import EFFECTIVE
from segue.bench.timing import Statistic, once
from segue.engine.engine import Engine
from segue.engine.rules.presets import parse_rule
from segue.engine.rules.rule_names import NAMES

SMALL = ("--samples", "10", "--steps", "2", "--out", "rows.jsonl", "--judge", "textures", "--real", "real.npz")
CASE = f"tiny 0123, {LEAST} samples from seed 0, 2 steps, euler, beside 30 pictures"


@pytest.fixture
def rules(segue):
    """Runs the command on the tiny model."""
    return lambda *arguments, **options: segue("rules", "--model", "mine.safetensors", *SMALL, *arguments, **options)


def test_every_named_rule_is_drawn():
    """But one that differs for prompts alone; the unguided one carries what acts on its own noise."""
    texts = " + ".join((*SWEPT, *ALONE))
    named = {part.split(":")[0].strip() for part in texts.split(" + ")}
    assert named == set(NAMES) - {"pag-image"}


def test_numbers_move_from_where_they_do_nothing():
    spec = tiny_sit(name="herbarium", depth=12, exits=(4,)).spec
    assert scaled(parse_rule("cfg:scale=1.8", spec), 0.5) == "cfg:scale=1.4"
    assert scaled(parse_rule("sgg:scale=1.5,weight=0.6,layers=7,8,switch=0.3", spec), 2.0).startswith(
        "sgg:scale=2,weight=1.2,layers=7,8,switch=0.3"
    )
    assert scaled(parse_rule("exit:weight=0.7,layer=4", spec), 1.0) == "exit:weight=0.7,layer=4"


def test_all_rules_of_the_bundled_model_have_numbers():
    """Every one but those for prompts can be drawn, and each at as many strengths as there are factors where it is swept."""
    said = []
    engine = Engine.from_pretrained("herbarium", device="cpu")
    rules = swept_rules(engine, all_names(engine, said.append), FACTORS)
    assert [line.partition(" is left out")[0] for line in said] == ["nag"]
    assert {rule.name: len(rule.texts) for rule in rules if rule.name in SWEPT} == dict.fromkeys(SWEPT, len(FACTORS))
    assert len(rules) == 1 + len(SWEPT) + len(ALONE) - 1


def test_what_is_missing_is_drawn_once_and_all_rules_stand_on_the_page(rules, tmp_path, monkeypatch):
    common = ("-g", "cfg", "-g", "cfg + rescale:phi=0.5", "--factor", "2")
    rules(*common, "--into", "pages")
    rows = read_rows(tmp_path / "rows.jsonl")
    drawn = dict.fromkeys(row.variant for row in rows if " by textures" in row.metric and row.variant != "real samples")
    assert list(drawn) == ["none", "cfg:scale=1.5", "cfg:scale=1.5 + rescale:phi=0.5", "cfg:scale=2"]
    timed = [row.variant for row in rows if row.suite == TIMES]
    assert timed == ["cfg:scale=1.5", "cfg:scale=1.5 + rescale:phi=0.5"]
    page = (tmp_path / "pages" / "rules.md").read_text()
    assert "Nothing is measured yet" in page and "| cfg:scale=2 | 10 |" in page and "| cfg:scale=1.25 | 0 |" in page
    assert "| slg:weight=0.2" in page
    told = (
        "segue reproduce rules --model mine.safetensors --judge textures --real real.npz --samples 10 --seed 100000 --steps 2"
    )
    assert told in page
    monkeypatch.setattr(Engine, "sample", None)  # who would draw would fail
    rules(*common)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_page_shows_each_rule_at_its_best_strength(environment):
    rows = made_up_scores(environment, CASE, "textures")
    rows.append(make_row(environment, TIMES, "tiny", "cfg:scale=2", RATIO, "x", Statistic(1.9, 1.82, 2.0, 5), "float32"))
    rules = [Swept("none", {1.0: "none"}), Swept("cfg", {1.0: "cfg:scale=2", 2.0: "cfg:scale=3", 4.0: "cfg:scale=5"})]
    assert best_texts(rows, rules) == ["none", "cfg:scale=3"]
    content = rules_content(rows, rules, CASE, "segue draw", "rules.png")
    table, sweep = content.parts[1], content.parts[3]
    assert "| `cfg:scale=3` |" in table and "| 1.90x (1.82 to 2.00) |" in table and "cfg:scale=2`" not in table
    assert "| **`cfg:scale=3`** |" in sweep and "| `cfg:scale=2` |" in sweep and "none" not in sweep
    assert "![The same leaves by every rule](rules.png)" in content.parts
    assert [(each.what, each.command) for each in content.missing] == [("cfg:scale=5", 'segue draw -g "cfg:scale=5"')]
    few = CASE.replace(str(LEAST), str(SAMPLES))
    assert not best_texts(made_up_scores(environment, few, "textures"), rules)


@pytest.mark.parametrize("effective", [2.0, 1.991, 2.009])
def test_cfg_at_the_effective_scale_stands_below_a_rule_where_it_was_scored(environment, effective):
    """At a hundredth of it as well."""
    rows = made_up_scores(environment, CASE, "textures")
    scale = RowForm(environment, CASE, "float32").row("slg:weight=1,layers=1", EFFECTIVE, "x", once(effective))
    slg = [Swept("slg", {1.0: "slg:weight=1,layers=1"})]
    alone, beside = (rules_content(found, slg, CASE, "segue draw", None).parts for found in (rows, [*rows, scale]))
    assert "cfg:scale=2" not in alone[1] and "better" not in alone[2:]
    assert beside[1].splitlines()[3].startswith("| &nbsp;&nbsp;cfg:scale=2 |  | 2.00x |")
    assert "- FD by textures: worse `slg:weight=1,layers=1`." in beside[3]


def test_cfg_at_another_scale_is_none_of_a_rule(environment):
    rows = made_up_scores(environment, CASE, "textures")
    rows.append(RowForm(environment, CASE, "float32").row("slg:weight=1,layers=1", EFFECTIVE, "x", once(2.016)))
    parts = rules_content(rows, [Swept("slg", {1.0: "slg:weight=1,layers=1"})], CASE, "segue draw", None).parts
    assert "cfg:scale=2" not in parts[1] and any(part.startswith("Without CFG") for part in parts)


def test_a_rule_whose_equal_was_not_scored_is_named(environment):
    rows = made_up_scores(environment, CASE, "textures")
    form = RowForm(environment, CASE, "float32")
    rows += [
        form.row(name, EFFECTIVE, "x", once(scale)) for name, scale in (("slg:weight=1,layers=1", 2.0), ("cfg:scale=3", 2.9))
    ]
    rules = [Swept(name, {1.0: name}) for name in ("none", "slg:weight=1,layers=1", "exit:weight=1,layer=2")]
    rows += [replace(row, variant="exit:weight=1,layer=2") for row in rows if row.variant == "cfg:scale=3"]
    parts = rules_content(rows, rules, CASE, "segue draw", None).parts
    (told,) = [part for part in parts if part.startswith("Without CFG")]
    assert "`exit:weight=1,layer=2`; `segue draw --beside-cfg` scores it" in told and "slg" not in told


def test_columns_that_nothing_was_measured_for_are_left_out(environment):
    rows = made_up_scores(environment, CASE, "textures")
    plain = rules_content(rows, [Swept("none", {1.0: "none"})], CASE, "segue draw", None).parts[1]
    assert "time" not in plain and "recall" not in plain
    form = RowForm(environment, CASE, "float32")
    rows.append(form.row("none", metric_by("recall", "textures"), "share", once(0.9)))
    shown = rules_content(rows, [Swept("none", {1.0: "none"})], CASE, "segue draw", None).parts[1].splitlines()
    assert shown[0].endswith("| recall by textures |") and shown[2].count("(") == 3 and "time" not in shown[0]


def test_cfg_is_drawn_at_the_effective_scale_of_every_rule_on_demand(rules, tmp_path):
    rules("-g", "exit", "--factor", "1", "--beside-cfg")
    rows = read_rows(tmp_path / "rows.jsonl")
    (scale,) = [row.value for row in rows if row.variant.startswith("exit") and row.metric == EFFECTIVE]
    drawn = dict.fromkeys(row.variant for row in rows if " by textures" in row.metric and row.variant != "real samples")
    assert list(drawn)[2:] == ([f"cfg:scale={scale:.2f}".rstrip("0").rstrip(".")] if scale > 1.005 else [])


def test_a_text_that_is_swept_already_is_no_second_rule():
    engine = Engine(tiny_sit(), device="cpu")
    (cfg,) = swept_rules(engine, ["cfg", "cfg:scale=1.5", "cfg:scale=2"], (2.0,))
    assert cfg.texts == {1.0: "cfg:scale=1.5", 2.0: "cfg:scale=2"}


def test_a_rule_that_the_second_judge_alone_saw_is_shown(environment):
    rows = made_up_scores(environment, CASE, "first")
    rows = [row for row in rows if row.variant != "slg:weight=1,layers=1"]
    rows += [row for row in made_up_scores(environment, CASE, "second") if row.variant == "slg:weight=1,layers=1"]
    assert best_texts(rows, [Swept("none", {1.0: "none"}), Swept("slg", {1.0: "slg:weight=1,layers=1"})])[1].startswith("slg")


def test_a_picture_has_real_leaves_and_a_row_for_every_rule(tmp_path, environment):
    engine = Engine.from_pretrained("herbarium", device="cpu")
    judge = named_judge("herbarium-judge", engine.device)
    trial, said = Trial(10, first_seed=7, steps=1), []
    scorer = Scorer(engine, (judge,), leaves(20), trial, environment, tmp_path / "rows.jsonl")
    append_rows(scorer.path, made_up_scores(environment, scorer.form.case, judge.name))
    more = Trial(12, first_seed=7, steps=1).case(engine, scorer.real.name)  # another case of more samples
    append_rows(scorer.path, made_up_scores(environment, more, judge.name, shift=5.0))
    drawn = [
        draw_rules(tmp_path / f"{count}.png", engine, scorer, ["none", "cfg:scale=2"][:count], said.append)
        for count in (0, 1, 2)
    ]
    assert drawn == [None, "1.png", "2.png"] and not said
    heights = [Image.open(tmp_path / name).height for name in drawn[1:]]
    assert heights[1] > heights[0]
    assert draw_rules(tmp_path / "3.png", Engine(tiny_sit(), device="cpu"), scorer, ["none"], said.append) is None
    assert said == ["no picture: it shows leaves, and what a judge who classifies takes them for"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--factor", "0"), "numbers are multiplied with a positive factor, got 0"),
        (("-g", "cgf"), "unknown guidance rule 'cgf'; known: none, "),
        (("--factor", "inf"), "numbers are multiplied with a positive factor, got inf"),
        (("--data", "herbarium"), "--data herbarium brings real samples: leave --real real.npz out"),
        (("--page", "a/b"), "the name of a page is of letters, digits and hyphens, got 'a/b'"),
    ],
)
def test_bad_input_is_one_sentence(rules, arguments, says):
    assert says in " ".join(rules(*arguments, code=2).stderr.split())
    assert not Path("rows.jsonl").exists()
