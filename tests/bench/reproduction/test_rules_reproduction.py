"""``segue reproduce rules``: which rules at which strengths, the page of rows, one sentence for bad input."""

from pathlib import Path

import numpy as np
import pytest
from made_up_scores import SAMPLES, made_up_scores
from tiny_checkpoint import save_tiny
from tiny_models import tiny_sit
from typer.testing import CliRunner

from segue.__main__ import app
from segue.bench.reproduction.page import LEAST
from segue.bench.reproduction.rule_sweep import ALONE, FACTORS, SWEPT, Swept, all_names, scaled, swept_rules
from segue.bench.reproduction.rule_times import RATIO
from segue.bench.reproduction.rule_times import SUITE as TIMES
from segue.bench.reproduction.rules_page import best_texts, rules_content
from segue.bench.rows import make_row, read_rows
from segue.bench.timing import once
from segue.engine.engine import Engine
from segue.engine.rules.presets import parse_rule
from segue.engine.rules.rule_names import NAMES

SMALL = ("--samples", "10", "--steps", "2", "--out", "rows.jsonl", "--judge", "textures", "--real", "real.npz")
CASE = f"tiny 0123, {LEAST} samples from seed 0, 2 steps, euler, beside 30 pictures"


@pytest.fixture
def segue(tmp_path, monkeypatch):
    """Runs the command in a folder with real pictures and a tiny model."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "mine.safetensors", name="mine")
    pixels = np.random.default_rng(1).integers(0, 256, (30, 8, 12, 3), dtype=np.uint8)
    np.savez("real.npz", pixels, np.arange(30) % 5)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["reproduce", "rules", "--model", "mine.safetensors", *SMALL, *arguments])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


def test_every_named_rule_is_drawn():
    """But the unguided one, which is what the others are compared with, and one that differs for prompts alone."""
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


def test_what_is_missing_is_drawn_once_and_all_rules_stand_on_the_page(segue, tmp_path, monkeypatch):
    common = ("-g", "cfg", "-g", "cfg + rescale:phi=0.5", "--factor", "2")
    segue(*common, "--into", "pages")
    rows = read_rows(tmp_path / "rows.jsonl")
    drawn = dict.fromkeys(row.variant for row in rows if " by textures" in row.metric and row.variant != "real samples")
    assert list(drawn) == ["none", "cfg:scale=1.5", "cfg:scale=1.5 + rescale:phi=0.5", "cfg:scale=2"]
    timed = [row.variant for row in rows if row.suite == TIMES]
    assert timed == ["cfg:scale=1.5", "cfg:scale=1.5 + rescale:phi=0.5"]
    page = (tmp_path / "pages" / "rules.md").read_text()
    assert "Nothing is measured yet" in page and "| cfg:scale=2 | 10 |" in page and "| cfg:scale=1.25 | 0 |" in page
    assert "| slg:weight=0.2" in page
    monkeypatch.setattr(Engine, "sample", None)  # who would draw would fail
    segue(*common)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_page_shows_each_rule_at_its_best_strength(environment):
    rows = made_up_scores(environment, CASE, "textures")
    rows.append(make_row(environment, TIMES, "tiny", "cfg:scale=2", RATIO, "x", once(1.9), "float32"))
    rules = [Swept("none", {1.0: "none"}), Swept("cfg", {1.0: "cfg:scale=2", 2.0: "cfg:scale=3", 4.0: "cfg:scale=5"})]
    assert best_texts(rows, rules) == ["none", "cfg:scale=3"]
    content = rules_content(rows, rules, CASE, "segue draw", "rules.png")
    table, sweep = content.parts[1], content.parts[3]
    assert "| `cfg:scale=3` |" in table and "| 1.90x |" in table and "cfg:scale=2`" not in table
    assert "| **`cfg:scale=3`** |" in sweep and "| `cfg:scale=2` |" in sweep and "none" not in sweep
    assert "![The same leaves by every rule](rules.png)" in content.parts
    assert [(each.what, each.command) for each in content.missing] == [("cfg:scale=5", 'segue draw -g "cfg:scale=5"')]
    few = CASE.replace(str(LEAST), str(SAMPLES))
    assert not best_texts(made_up_scores(environment, few, "textures"), rules)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--factor", "0"), "numbers are multiplied with a positive factor, got 0"),
        (("-g", "cgf"), "cgf"),
    ],
)
def test_bad_input_is_one_sentence(segue, arguments, says):
    assert says in " ".join(segue(*arguments, code=2).stderr.split())
    assert not Path("rows.jsonl").exists()
