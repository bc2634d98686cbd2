"""Figures and names in tables that people wrote are those of the code."""

import json
import re

import pytest
from markdown_pages import ROOT
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.rules.catalogue import ENTRIES
from segue.engine.rules.presets import KINDS
from segue.engine.rules.rule_names import NAMES

OF_MOST_RULES = ("window", "delta", "refresh", "order", "calls")


def lines(page: str, first: str) -> list[list[str]]:
    """The cells of the table of ``page`` whose header begins with ``first``, without header and rule."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    table = text[text.index(f"\n| {first} |") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.mark.parametrize(("column", "model"), [(1, "sd3.5-medium"), (2, "DiT-XL/2")])
def test_costs_are_those_that_plans_count(column, model):
    told = lines("guidance.md", "rule")
    assert len(told) > 5
    for line in told:
        result = CliRunner().invoke(app, ["plan", "--model", model, "-g", line[0].split("`")[1], "--json"])
        assert f"{json.loads(result.stdout)['cost']['relative']:.2f}" == line[column]


def test_every_rule_is_told_with_its_formula():
    told = [
        [name, f"`{entry.formula}`", entry.source, f"{entry.standing}: {entry.note}".removesuffix(": ")]
        for name, entry in ENTRIES.items()
    ]
    cells = lines("guidance.md", "name")
    assert [[line[0].strip("`"), *line[1:]] for line in cells] == told


def test_every_rule_is_told_with_the_options_that_are_its_own():
    told: dict[str, set[str]] = {}
    for names, _, options in lines("getting-started.md", "name"):
        words = set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", options)))
        told |= dict.fromkeys(re.findall(r"`([\w-]+)`", names), words)
    assert set(told) == set(KINDS)
    corrections = {name for name, named in NAMES.items() if named.correction}
    for name, options in told.items():
        kind = KINDS[name]
        own = {*kind.needed, *kind.optional} - {*OF_MOST_RULES}
        if name in corrections:
            assert own <= options
        else:  # rules that share a line share its words
            assert own <= options <= own | {"layer", "layers"}


@pytest.mark.parametrize("option", OF_MOST_RULES)
def test_options_of_most_rules_are_told_with_the_rules_that_have_them_not(option):
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    told = page[page.index("Rules that are no corrections also take") :]
    without = re.search(r"\bnot ([^)]*)\)", told[told.index(f"`{option}`") :])[1]
    rules = {name for name, named in NAMES.items() if not named.correction and name != "none"}
    assert set(re.findall(r"`([\w-]+)`", without)) == {name for name in rules if option not in KINDS[name].optional}
