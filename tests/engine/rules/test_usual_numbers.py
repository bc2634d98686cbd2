"""A model without numbers of its own: every rule by its name alone runs, with usual numbers that are said in a line."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import save_tiny
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

import segue
from segue import Engine, PlanWarning, compile_plan, linear, parse_rule
from segue.__main__ import app
from segue.engine.cli.options import RULE_HELP
from segue.engine.rules.preset_numbers import WITHHELD
from segue.engine.rules.presets import KINDS, default_options, default_rules
from segue.engine.rules.rule_names import NAMES
from segue.models.sd3_sizes import sd3_spec

SPEC = tiny_sit().spec  # 5 blocks, a head after 2
HEADLESS = tiny_sit(exits=(), name="headless").spec
BY_NAME = [name for name, named in NAMES.items() if not named.correction and name != "gfcg"]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_rule_by_its_name_alone_compiles_and_says_what_it_took(name):
    spec = replace(sd3_spec("sd3-medium"), name="tiny", depth=5) if name == "nag" else SPEC  # NAG guides by prompts
    specs = {"main": spec, "weak": spec}
    plan = compile_plan(name, linear(9), "euler", specs)
    rule = parse_rule(name, spec)
    assert plan.guidance == rule.guidance == parse_rule(rule.text).guidance
    if name == "none":
        assert rule.notes == plan.warnings == ()
        return
    assert plan.warnings == rule.notes and len(rule.notes) == 1
    for option in KINDS[name].needed:
        assert f"{option}=" in rule.notes[0]
    assert rule.notes[0].startswith(f"no tuned numbers of {name} for tiny,")


@given(st.integers(1, 60), st.booleans())
def test_the_layers_are_the_middle_ones_of_any_depth(depth, prompts):
    spec = replace(sd3_spec("sd3-medium"), name="mine", depth=depth, dual_layers=()) if prompts else HEADLESS
    spec = replace(spec, depth=depth)
    layers = dict(parse_rule("pag", spec).parts[0].options)["layers"]
    assert layers[0] >= 0 and layers[-1] < depth and list(layers) == list(range(layers[0], layers[-1] + 1))
    assert abs(layers[0] - (depth - 1 - layers[-1])) <= 1
    assert 1 <= len(layers) <= max(1, depth / 4)


def test_the_usual_share_of_cfgpp_is_a_usual_scale_in_the_mean():
    """Its number is a share of each step's noise: as a scale of CFG it would be several times as strong."""
    for spec in (SPEC, replace(sd3_spec("sd3-medium"), name="tiny", depth=5)):
        weights = [compile_plan(name, linear(28), "euler", {"main": spec}).weights.mean() for name in ("cfg", "cfgpp")]
        assert weights[1] == pytest.approx(weights[0], rel=0.2)


def test_a_correction_has_a_usual_number_of_its_own():
    rule = parse_rule("cfg + higs", SPEC)
    assert rule.parts[1].text == "higs:weight=1" and rule.notes[1] == "no tuned numbers of higs for tiny, using weight=1"


def test_what_is_given_is_not_replaced_nor_named():
    rule = parse_rule("slg:layers=1", SPEC)
    assert dict(rule.parts[0].options)["layers"] == (1,) and rule.notes == (
        "no tuned numbers of slg for tiny, using weight=0.2",
    )
    assert parse_rule("slg:layers=1,weight=2", SPEC).notes == ()
    both = parse_rule("cfg + slg", SPEC)
    assert [note.split()[4] for note in both.notes] == ["cfg", "slg"]


def test_a_rule_by_a_classifier_needs_one_where_none_ships_with_the_model():
    with pytest.raises(ValueError, match="gfcg needs classifier: model 'tiny' has no default for it; write gfcg:classifier="):
        parse_rule("gfcg", SPEC)
    rule = parse_rule("gfcg", tiny_sit(name="herbarium").spec)
    assert rule.notes == ("no tuned numbers of gfcg for herbarium, using weight=0.2,classifier=herbarium-classifier",)


def test_numbers_that_are_tuned_or_withheld_stay():
    herbarium = tiny_sit(name="herbarium", depth=12, exits=(4,)).spec
    assert default_rules(herbarium)
    for name in default_rules(herbarium):
        rule = parse_rule(name, herbarium)
        assert rule.notes == () and dict(rule.parts[0].options) == default_options("herbarium", name)
    assert WITHHELD
    for model, option in WITHHELD:
        with pytest.raises(ValueError, match=f"needs {option}: .* because"):
            parse_rule("sgg", sd3_spec(model))
    with pytest.raises(ValueError, match="exit needs layer: model 'headless' has no default for it"):
        parse_rule("exit", HEADLESS)
    with pytest.raises(ValueError, match="no default for it; write slg:weight"):
        parse_rule("slg", "some model")


def test_a_bare_command_draws_a_model_that_nobody_tuned(tmp_path):
    model = save_tiny(tmp_path / "mine.safetensors", name="mine")
    options = ["--steps", "2", "--classes", "0", "--out", str(tmp_path / "a.png")]
    result = CliRunner().invoke(app, ["sample", "--model", str(model), *options])
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines() == [
        f"note: {note}" for note in parse_rule("sgg", Engine.from_pretrained(model).spec).notes
    ]
    assert (tmp_path / "a.png").exists()


def test_python_says_it_as_a_warning():
    engine, pipe = Engine(tiny_sit(), device="cpu"), tiny_pipeline(num_layers=2, dual_attention_layers=(0,))
    with pytest.warns(PlanWarning, match="no tuned numbers of sgg for tiny, using scale=1.5"):
        engine.sample([0], "sgg", steps=1)
    with pytest.warns(
        PlanWarning, match="no tuned numbers of sgg for .*, using scale=4.5,weight=2.8,layers=0,switch=fraction:0.5"
    ):
        segue.attach(pipe, "sgg")
    segue.detach(pipe)


def test_the_help_of_the_command_line_lists_every_rule_with_its_options():
    rules, corrections = RULE_HELP.split("Rules: ")[1].split(". Corrections, to add: ")
    listed = {}
    for piece in f"{rules}; {corrections}".split(". ")[0].replace(")", "").split("; "):
        names, bracket, options = piece.partition(" (")
        if bracket or set(names.split(", ")) <= set(KINDS):
            current = names.split(", ")
            listed |= {name: options.split(", ") if bracket else [] for name in current}
        else:
            for name in current:
                listed[name] += piece.split(", ")
    assert listed == {name: [*kind.needed, *kind.optional] for name, kind in KINDS.items()}
