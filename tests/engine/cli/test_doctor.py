"""``segue doctor`` says in ten lines what its long forms say in a hundred, and ``segue --version`` which Segue this is."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.cli import doctor
from segue.engine.cli.doctor_summary import summary_lines

ROOT = Path(__file__).parents[3]
CARD = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "memory": "79 GiB", "multiprocessors": 132}
OTHER = {"name": "NVIDIA L4", "capability": "8.9", "memory": "22 GiB", "multiprocessors": 58}


def segue(*arguments) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


@pytest.fixture(scope="module")
def found() -> dict:
    return json.loads(segue("doctor", "--json"))


def line(lines: list[str], name: str) -> str:
    (told,) = (text for text in lines if text.startswith(f"{name} "))
    return re.split(r"\s{2,}", told, maxsplit=1)[1]


def test_ten_lines_are_printed_and_the_rest_is_one_option_away(found):
    assert segue("doctor").splitlines() == summary_lines(found)
    sections = segue("doctor", "--verbose")
    assert all(operation in sections for operation in found["kernels"]) and "--verbose" in segue("doctor")


@pytest.mark.parametrize("cards", [[], [CARD], [CARD] * 8, [CARD, OTHER, CARD]])
def test_ten_lines_whatever_the_machine(found, cards):
    devices = found["devices"] | {f"cuda:{index}": card for index, card in enumerate(cards)}
    devices |= {} if cards else {"mps": {"name": "Metal"}}
    lines = summary_lines(found | {"devices": devices})
    assert len(lines) == 10 and max(map(len, lines)) <= 128 and not any("\n" in text for text in lines)
    told = line(lines, "devices")
    assert ("8 x NVIDIA H100" in told) == (len(cards) == 8) and ("2 x NVIDIA H100" in told) == (len(cards) == 3)
    assert ("NVIDIA L4 (22 GiB, capability 8.9)" in told) == (OTHER in cards) and ("Metal" in told) == (not cards)


def test_each_operation_is_counted_once(found):
    kernels = {"a": "triton (automatic: x)", "b": "triton (requested)", "c": "sdpa (automatic: y); triton at small"}
    assert line(summary_lines(found | {"kernels": kernels}), "kernels") == "triton for 2, sdpa for 1 of 3 operations"
    counts = map(int, re.findall(r"for (\d+)", line(summary_lines(found), "kernels")))
    assert sum(counts) == len(found["kernels"])


def test_what_is_missing_is_named_and_what_cannot_work_says_why(found):
    versions = found["versions"] | {"diffusers": None, "xformers": None}
    lines = summary_lines(
        found | {"versions": versions, "fp8": {"herbarium": "no weights"}, "models": {"herbarium": "no file"}}
    )
    assert {"diffusers", "xformers"} <= set(line(lines, "not installed").split(", "))
    assert "diffusers -" in line(lines, "torch")
    assert (line(lines, "fp8"), line(lines, "models")) == ("herbarium: no weights", "herbarium: no file")
    assert line(summary_lines(found | {"versions": dict.fromkeys(versions, "1.0")}), "not installed") == "nothing"


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert segue("--version") == f"segue {project['version']}\n"
    assert "--version" in segue("--help")


def test_a_bundled_model_that_cannot_be_used_says_why_and_the_rest_is_told(monkeypatch):
    def refuse(name):
        raise ValueError(f"the weak network of {name} was made for another model")

    monkeypatch.setattr(doctor, "bundled_files", refuse)
    told = segue("doctor").splitlines()
    assert line(told, "models") == "herbarium: the weak network of herbarium was made for another model"
    assert line(told, "engines run on").startswith(("cpu in", "cuda in"))
