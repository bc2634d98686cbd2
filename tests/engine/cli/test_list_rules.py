"""``segue guidance``: every rule once, its cost that of its plan, and why one does not run."""

import json

import pytest
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.rules.catalogue import ENTRIES
from segue.engine.rules.rule_names import NAMES


def listed(*arguments):
    result = CliRunner().invoke(app, ["guidance", "--json", *arguments])
    assert result.exit_code == 0, result.output
    return {rule["name"]: rule for rule in json.loads(result.stdout)["rules"]}


def test_every_named_rule_has_a_formula_and_a_source():
    assert set(ENTRIES) == set(NAMES)
    assert all(entry.formula and (entry.source or entry.standing == "own") for entry in ENTRIES.values())


@pytest.mark.parametrize("model", ["herbarium", "DiT-XL/2"])
def test_the_costs_are_those_of_plans(model):
    rules = listed("--model", model, "--steps", "8")
    assert list(rules) == list(ENTRIES)
    for rule in rules.values():
        if rule["cost"] is None:
            assert rule["reason"]
            continue
        plan = CliRunner().invoke(app, ["plan", "--model", model, "--steps", "8", "-g", rule["rule"], "--json"])
        cost = json.loads(plan.stdout)["cost"]
        assert (cost["relative"], cost["evaluations"]) == (rule["cost"], rule["evaluations"])
    assert "takes class labels" in rules["nag"]["reason"]
    assert rules["none"]["cost"] == 1.0 and rules["cfg"]["cost"] == pytest.approx(2.0, abs=0.01)  # one projection for both


def test_the_table_says_what_a_rule_lacks():
    result = CliRunner().invoke(app, ["guidance", "--model", "DiT-XL/2"], env={"COLUMNS": "200"})
    assert "gfcg" in result.stdout and "reconstruction" in result.stdout
    assert "ag: no network named 'weak'" in " ".join(result.stdout.split())
