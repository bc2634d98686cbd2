"""Pictures drawn again by another rule, sheets drawn again, and what the commands print about them on 80 columns."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from tiny_checkpoint import save_tiny
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue import Engine, parse_rule
from segue.__main__ import app

RULE = "sgg:scale=3,weight=1.5,layers=1,2,switch=0.6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "tiny.safetensors", seed=1)
    save_tiny(folder / "other.safetensors", seed=2)
    tiny_pipeline(seed=8, num_layers=2, dual_attention_layers=(0,)).save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture
def segue(folder, tmp_path, monkeypatch):
    """Runs a command on a terminal of 80 columns, in an empty folder beside links to the models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for item in folder.iterdir():
        (tmp_path / item.name).symlink_to(item)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.stderr or result.exception
        return result.stderr if code else result.stdout

    return run


TINY = ("--model", "tiny.safetensors", "--classes", "0,3", "--seeds", 7, "--steps", 2)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("-g", "cfg:scale=2"), "cfg:scale=2"),
        (("--scale", 1.5, "--switch", "fraction:0.25"), "sgg:scale=1.5,weight=1.5,layers=1,2,switch=fraction:0.25"),
    ],
)
def test_the_same_picture_with_another_rule_is_the_one_that_rule_draws(segue, flags, text):
    """By a run of its own: class, seed, noise levels and solver stay, the record tells the new rule."""
    segue("sample", *TINY, "-g", RULE, "--solver", "heun", "--schedule", "shift=2", "--out", "old")
    (before,) = Path("old").glob("003*")
    printed = segue("sample", "--from", before, *flags, "--out", "new.png")
    assert printed.startswith(f"new.png: the same picture with {text} as {before}, ")
    segue("sample", *TINY, "-g", text, "--solver", "heun", "--schedule", "shift=2", "--out", "fresh")
    (fresh,) = Path("fresh").glob("003*")
    with Image.open(fresh) as wanted, Image.open("new.png") as found:
        assert found.tobytes() == wanted.tobytes()
        assert found.info["parameters"] == wanted.info["parameters"]
    again = json.loads(segue("sample", "--from", "new.png", "--out", "again.png", "--json"))
    assert again["identical"] and again["rule"] == text


def test_a_grid_and_a_prompt_with_another_rule(segue):
    segue("sample", *TINY, "-g", RULE, "--out", "grid.png")
    segue("sample", "--from", "grid.png", "-g", "cfg:scale=2", "--out", "by-cfg.png")
    segue("sample", *TINY, "-g", "cfg:scale=2", "--out", "fresh.png")
    assert Image.open("by-cfg.png").tobytes() == Image.open("fresh.png").tobytes()
    prompt = ("--model", "pipeline", "-p", "leaf", "--steps", 2)
    segue("sample", *prompt, "-g", "none", "--out", "plain.png")
    segue("sample", "--from", "plain.png", "-g", "cfg:scale=3", "--out", "guided.png")
    segue("sample", *prompt, "-g", "cfg:scale=3", "--out", "wanted.png")
    assert Image.open("guided.png").tobytes() == Image.open("wanted.png").tobytes()


def test_flags_alone_cannot_change_a_sum_nor_what_a_rule_has_not(segue):
    segue("sample", *TINY, "-g", "cfg:scale=2 + slg:weight=1,layers=1", "--out", "sum.png")
    assert "drawn by a sum, cfg:scale=2 + slg:weight=1,layers=1: write" in segue(
        "sample", "--from", "sum.png", "--scale", 3, code=2
    )
    segue("sample", *TINY, "-g", "cfg:scale=2", "--out", "cfg.png")
    assert "cfg has no option 'layers'" in segue("sample", "--from", "cfg.png", "--layers", 1, code=2)
    assert "--from takes --steps from the picture" in segue("sample", "--from", "cfg.png", "--steps", 3, code=2)


SHEETS = [
    ((*TINY, "--max-batch", 1), ("none", "cfg:scale=2", RULE)),
    (("--model", "pipeline", "-p", "leaf", "-p", "a b", "--steps", 2), ("none", "cfg:scale=2,window=fraction:0,0.5")),
]


@pytest.mark.parametrize(
    ("options", "rules"),
    [pytest.param(*SHEETS[0], id="classes"), pytest.param(*SHEETS[1], id="prompts", marks=pytest.mark.slow)],
)
def test_a_sheet_is_drawn_again_byte_for_byte(segue, options, rules):
    segue("compare", *options, *(word for rule in rules for word in ("-r", rule)), "--zoom", 3, "--out", "a.png")
    said = json.loads(segue("compare", "--from", "a.png", "--out", "b.png", "--json"))
    assert said["identical"] and [entry["rule"] for entry in said["rules"]] == list(rules)
    for suffix in ("png", "json"):
        assert Path(f"a.{suffix}").read_bytes() == Path(f"b.{suffix}").read_bytes()
    assert segue("compare", "--from", "b.png", "--out", "c.png") == "c.png: identical to b.png\n"


def test_a_row_that_does_not_hold_is_refused_before_another_is_drawn(segue, monkeypatch):
    segue("compare", *TINY, "-r", "none", "-r", "cfg:scale=2", "--out", "a.png")
    with Image.open("a.png") as image:
        image.load()
        sheet = json.loads(image.info["segue"])["sheet"]
    sheet["rules"][1]["plan"]["weights"] = [[7.0], [7.0]]
    info = PngImagePlugin.PngInfo()
    info.add_text("segue", json.dumps({"sheet": sheet}))
    image.save("changed.png", pnginfo=info)
    monkeypatch.setattr(Engine, "sample", lambda *_, **__: pytest.fail("a row was drawn"))
    assert "resolves the weights of 'cfg:scale=2' differently" in segue("compare", "--from", "changed.png", code=2)


def test_samples_in_one_file_are_no_pictures(segue):
    """A name that ends in .npz would become a folder of pictures."""
    segue("sample", *TINY, "-g", "none", "--out", "old")
    (before,) = Path("old").glob("003*")
    message = "pictures are written as PNG, which carries their record, got new.npz"
    assert message in segue("sample", "--from", before, "--out", "new.npz", code=2)
    assert message in segue("compare", *TINY, "-r", "none", "--out", "new.npz", code=2)
    with pytest.raises(ValueError, match=message):
        Engine.from_pretrained("tiny.safetensors").sample([3], "none", steps=2, seeds=7).save("new.npz")


def test_a_sheet_that_does_not_hold_is_refused(segue):
    segue("compare", *TINY, "-r", "cfg:scale=2", "--out", "a.png")
    segue("sample", *TINY, "--out", "picture.png")
    assert "picture.png is no sheet of several rules; segue sample --from" in segue("compare", "--from", "picture.png", code=2)
    assert "a sheet of several rules, which segue compare --from draws" in segue("sample", "--from", "a.png", code=2)
    assert "was drawn by weights" in segue(
        "compare", "--from", "a.png", "--model", "other.safetensors", "--out", "b.png", code=2
    )
    for option, value in (("--rule", "none"), ("--steps", 3), ("--zoom", 2), ("--classes", 0)):
        assert f"takes {option} from the" in segue("compare", "--from", "a.png", option, value, code=2)
    with Image.open("a.png") as image:
        image.load()
        sheet = json.loads(image.info["segue"])["sheet"]
    changes = {"rules": [], "zoom": 0, "plan": None}
    for key, value in changes.items():
        broken = sheet | {key: value}
        if key == "plan":
            broken["rules"] = [{**entry, "plan": {}} for entry in sheet["rules"]]
        info = PngImagePlugin.PngInfo()
        info.add_text("segue", json.dumps({"sheet": broken}))
        image.save("broken.png", pnginfo=info)
        assert "broken.png holds no record that can be redrawn" in segue("compare", "--from", "broken.png", code=2)


@pytest.mark.parametrize(("classes", "rules"), [("0", ("none",)), ("0,1", ("none", "cfg:scale=2"))])
def test_one_of_a_thing_is_one(segue, classes, rules):
    flags = [word for rule in rules for word in ("-r", rule)]
    printed = segue("compare", *TINY[:2], "--steps", 1, "--classes", classes, *flags, "--out", "a.png").splitlines()[-1]
    pictures, drawn = len(classes.split(",")), len(rules)
    assert printed.startswith(f"{pictures} picture{'s' * (pictures > 1)} by {drawn} rule{'s' * (drawn > 1)} in ")


def test_the_published_rule_stands_on_one_line_of_80_columns(segue):
    """In the table of a comparison, and each run of its plan in that of segue plan."""
    rule = parse_rule("sgg", "sd3.5-medium").text
    options = ["--model", "tiny.safetensors", "--classes", "0", "--steps", 2, "--out", "a.png"]
    layered = save_tiny(Path("deep.safetensors"), depth=12)
    options[1] = str(layered)
    printed = segue("compare", *options, "-r", rule).splitlines()
    assert any(line.startswith(rule) for line in printed[:-1]) and all(len(line.rstrip()) <= 80 for line in printed[:-1])
    table = segue("plan", "--model", "sd3.5-medium").splitlines()
    rows = [line for line in table if re.match(r"\s*\d+-\d+ ", line)]
    assert len(rows) == 2 and rows[1].rstrip().endswith("cond | cond skip 7,8,9 (w 3)")
    assert " TFLOP per sample" in table[-1]


def test_redrawing_by_python_and_by_the_command_line_is_the_same(segue):
    segue("sample", *TINY, "-g", RULE, "--out", "old", "--no-grid")
    segue("sample", "--from", "old/000-acerites-alba-seed7.png", "-g", "cfg:scale=2", "--out", "new.png")
    run = Engine.from_pretrained("tiny.safetensors").sample([0, 3], "cfg:scale=2", steps=2, seeds=7)
    assert Image.open("new.png").tobytes() == run.images[0].tobytes()
