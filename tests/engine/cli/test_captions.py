"""What grids and summaries say: that in which their pictures differ, and the numbers that were taken."""

import pytest
from tiny_checkpoint import NAMES, save_tiny
from typer.testing import CliRunner

from segue import parse_rule
from segue.__main__ import app
from segue.engine.cli.compare import seeds_text
from segue.engine.cli.jobs import captions
from segue.engine.rules.batch import parse_rules


@pytest.mark.parametrize(
    ("rule", "labels", "seeds", "expected"),
    [
        ("cfg:scale=1,2,4", [3] * 3, [0] * 3, ["scale 1", "scale 2", "scale 4"]),
        ("none | cfg:scale=2", [3] * 2, [0] * 2, ["none", "cfg:scale=2"]),
        ("cfg:scale=1,2", [3] * 2, [5, 6], ["seed 5, scale 1", "seed 6, scale 2"]),
        ("cfg:scale=1,2", [3, 1], [5, 6], [f"{NAMES[3]}, scale 1", f"{NAMES[1]}, scale 2"]),
        ("cfg:scale=1,2 + rescale:phi=0.5,0.7", [3] * 2, [0] * 2, ["scale 1, phi 0.5", "scale 2, phi 0.7"]),
        ("cfg:scale=2,2", [3] * 2, [5, 6], ["seed 5", "seed 6"]),
        ("none | none", [3] * 2, [5, 5], [NAMES[3]] * 2),
        ("cfg:scale=2", [3, 1], [0, 1], [NAMES[3], NAMES[1]]),
        ("slg:weight=1,layers=7,8", [3] * 2, [0, 1], ["seed 0", "seed 1"]),
    ],
)
def test_a_caption_is_that_in_which_a_picture_differs(rule, labels, seeds, expected):
    assert captions(NAMES, labels, seeds, parse_rules(rule)) == expected


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([7], "seed 7"),
        ([0, 0, 0], "seed 0"),
        ([3, 4, 5], "seeds 3 to 5"),
        ([3, 1, 2], "seeds 3, 1, 2"),
        ([4, 2] * 9, "18 seeds"),
    ],
)
def test_a_sheet_names_the_seeds_that_it_has(seeds, text):
    assert seeds_text(seeds) == text


def test_a_summary_names_the_numbers_and_every_command_takes_a_rule_by_the_same_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(save_tiny(tmp_path / "tiny.safetensors"))

    def run(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--model", model])
        assert result.exit_code == 0, result.stderr or result.exception
        return result.stdout

    for option, name in zip(("--guidance", "-g", "--rule", "-r"), "abcd", strict=True):
        said = run("sample", option, "cfg", "--classes", "3", "--steps", "2", "--out", f"{name}.png")
        assert said.startswith(f"Classifier-free guidance ({parse_rule('cfg', 'herbarium').text}): 4 evaluations per picture")
        assert "cfg:scale=2 " in run(
            "compare", option, "cfg:scale=2", "--classes", "3", "--steps", "1", "--out", f"{name}-s.png"
        )
        assert "rule: cfg:scale=2\n" in run("plan", option, "cfg:scale=2")
    many = run("sample", "-g", "cfg:scale=1,2", "--classes", "3", "--seeds", "0,0", "--steps", "1", "--out", "many.png")
    assert many.startswith("Classifier-free guidance (cfg:scale=1,2): 2 evaluations")
    drawn = run("sample", "-g", "cfg:scale=2", "--count", "2", "--steps", "1", "--out", "two.npz")
    assert "2 samples drawn by cfg:scale=2 in" in drawn
