"""Numbers that a search found: they are a model's defaults beside its own weights, and are refused beside any other."""

import json

import pytest

from segue import parse_rule
from segue.engine.rules import tuned_numbers
from segue.engine.rules.preset_numbers import DEFAULTS
from segue.engine.rules.presets import default_options, default_rules
from segue.engine.rules.tuned_numbers import numbers_file, numbers_record, set_aside, tuned_rules, write_numbers
from segue.models.bundled import BUNDLED

FOUND = {
    "cfg": "cfg:scale=1.4",
    "slg": "slg:weight=0.12,layers=6,7",
    "sgg": "sgg:scale=1.3,weight=0.2,layers=7,switch=fraction:0.5",
    "exit": "exit:weight=0.3,layer=4,window=sigma:0.2,0.9",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of bundled files with other content than the real ones, and no numbers yet."""
    monkeypatch.setattr(tuned_numbers, "_folder", lambda: tmp_path)
    monkeypatch.setattr(tuned_numbers, "_SET_ASIDE", set())
    for file in BUNDLED["herbarium"].values():
        (tmp_path / file).write_bytes(file.encode())
    tuned_rules.cache_clear()
    yield tmp_path
    tuned_rules.cache_clear()


def write(text: str | None = None) -> None:
    write_numbers("herbarium", FOUND, "segue tune-scales --write")
    if text is not None:
        numbers_file("herbarium").write_text(text)


def test_what_was_found_is_the_default_of_its_model_alone(folder):
    write()
    for name, text in FOUND.items():
        assert parse_rule(name, "herbarium") == parse_rule(text) and parse_rule(name, "herbarium").text == text
    assert default_rules("herbarium") == tuple(FOUND)
    assert parse_rule("slg:weight=2", "herbarium").text == "slg:weight=2,layers=6,7"
    assert parse_rule("slg", "sd3-medium").text != "slg:weight=0.12,layers=6,7"
    assert json.loads(numbers_file("herbarium").read_text())["command"] == "segue tune-scales --write"


def test_a_rule_that_was_not_searched_has_no_numbers(folder):
    write()
    with pytest.raises(ValueError, match="ag needs weight: model 'herbarium' has no default for it"):
        parse_rule("ag", "herbarium")


@pytest.fixture
def table(monkeypatch) -> dict:
    """Numbers that the table of untuned models has for a while."""
    numbers = {"cfg": {"scale": 3.0}, "exit": {"weight": 2.0, "layer": 4}}
    monkeypatch.setitem(DEFAULTS, "herbarium", numbers)
    return numbers


def test_without_a_search_the_numbers_are_those_of_the_table(folder, table):
    for name, numbers in table.items():
        assert default_options("herbarium", name) == numbers
    assert default_rules("herbarium") == tuple(table) and default_rules("nobody") == ()


@pytest.mark.parametrize("file", BUNDLED["herbarium"].values())
def test_numbers_beside_other_weights_are_refused(folder, file):
    write()
    (folder / file).write_bytes(b"trained again")
    with pytest.raises(ValueError, match=rf"herbarium\.numbers\.json was made .* but {file} has digest [0-9a-f]{{16}}"):
        parse_rule("cfg", "herbarium")


def test_a_search_may_begin_beside_numbers_of_other_weights_and_replaces_them(folder, table):
    write()
    (folder / "herbarium.safetensors").write_bytes(b"trained again")
    tuned_rules.cache_clear()
    set_aside("herbarium")
    assert default_options("herbarium", "cfg") == table["cfg"]
    write()
    assert parse_rule("cfg", "herbarium").text == FOUND["cfg"]


@pytest.mark.parametrize("text", ["{", "[]", '{"rules": {}}', '{"rules": 3, "made_for": {}}'])
def test_a_damaged_file_is_refused(folder, text):
    write(text)
    with pytest.raises(ValueError, match=r"herbarium\.numbers\.json does not hold the numbers of rules"):
        parse_rule("cfg", "herbarium")


def test_numbers_of_other_models_are_not_kept(folder):
    for call in (lambda: numbers_file("mine"), lambda: numbers_record("mine", {}, "")):
        with pytest.raises(ValueError, match=r"numbers are kept for bundled models \(herbarium\), not for 'mine'"):
            call()
    assert tuned_rules("mine") is None and tuned_rules("") is None


def test_the_numbers_that_are_bundled_fit_the_weights_that_are():
    """Whether there are any: every rule has all that it needs, and the file is that of these weights."""
    for name in default_rules("herbarium"):
        assert parse_rule(name, "herbarium").guidance is not None
