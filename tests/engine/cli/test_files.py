"""The commands write beside the pictures that are there, never over them unless told so."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_checkpoint import save_tiny
from typer.testing import CliRunner

from segue import Engine, parse_rule
from segue.__main__ import app
from segue.engine.records.pictures import picture_name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def segue(model, tmp_path, monkeypatch):
    """Runs a command in an empty folder on the tiny model, with one step."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments, code=0):
        made = [] if "--from" in arguments else ["--model", str(model), "--steps", "1"]
        result = CliRunner().invoke(app, [command, *arguments, *made])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(result) -> list[str]:
    return json.loads(result.stdout)["files"]


def test_other_pictures_of_the_same_names_stay(segue, tmp_path):
    """Another rule, another number of steps, the same class and seed twice: every picture is there, and says what it is."""
    runs = [[], ["-g", "cfg"], ["--solver", "heun"], ["-g", "cfg:scale=3"]]
    files, kept = [], {}
    for number, options in enumerate(runs, start=1):
        result = segue("sample", "--classes", "0,1", "--seeds", "7", "--json", *options)
        files += written(result)
        assert contents(tmp_path).items() >= kept.items()
        kept = contents(tmp_path)
        told = f"seed7-{number}.png and 2 more got a number: a file of other content (--force" in result.stderr
        assert told == (number > 1)
    assert len(set(files)) == len(kept) == 3 * len(runs)
    assert "out/000-acerites-alba-seed7-4.png" in files and "out/grid-4.png" in files
    rules = [json.loads(Image.open(file).info["segue"])["rule"] for file in files[::3]]
    assert rules[1] == parse_rule("cfg", "herbarium").text and rules[3] == "cfg:scale=3"


def test_the_same_run_again_leaves_the_files_alone(segue, tmp_path):
    first = segue("sample", "-g", "cfg", "--classes", "0,1", "--json")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    again = segue("sample", "-g", "cfg", "--classes", "0,1", "--json")
    assert (written(again), again.stderr) == (written(first), "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_the_same_class_and_seed_twice_in_one_run(segue, tmp_path, force):
    files = written(segue("sample", "--classes", "2,2", "--seeds", "5,5", "--json", *force))
    assert files == ["out/002-betulina-alba-seed5.png", "out/002-betulina-alba-seed5-2.png", "out/grid.png"]
    assert len(contents(tmp_path)) == 3


def test_a_file_that_was_named_is_refused_before_any_work_or_written_over_when_told(segue, tmp_path, monkeypatch):
    (tmp_path / "mine.png").write_bytes(b"a picture of the user's")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "sample", lambda *_, **__: pytest.fail("it was drawn"))
        for command in ("sample", "compare"):
            assert "mine.png is there already" in segue(command, "--out", "mine.png", code=2).stderr
        (tmp_path / "notes.json").write_text("notes of the user's")
        assert "notes.json is there already" in segue("compare", "--out", "notes.png", code=2).stderr
    assert contents(tmp_path) == {"mine.png": b"a picture of the user's", "notes.json": b"notes of the user's"}
    segue("sample", "--classes", "0", "--out", "mine.png", "--force")
    segue("compare", "--classes", "0", "--out", "notes.png", "--force")
    assert json.loads((tmp_path / "notes.json").read_text())["labels"] == [0]
    assert Image.open(tmp_path / "mine.png").size == (12, 8)


def test_sheets_without_a_name_are_numbered_with_their_records(segue, tmp_path):
    files = [written(segue("compare", "-r", rule, "--classes", "0", "--json")) for rule in ("none", "cfg")]
    assert files == [["out/compare.png", "out/compare.json"], ["out/compare-2.png", "out/compare-2.json"]]
    assert [json.loads((tmp_path / pair[1]).read_text())["rules"][0]["rule"] for pair in files] == [
        "none",
        parse_rule("cfg", "herbarium").text,
    ]


def test_a_picture_drawn_again_takes_its_own_place_only_if_it_is_the_same(segue, tmp_path):
    segue("sample", "--classes", "3")
    (name,) = contents(tmp_path)
    assert written(segue("sample", "--from", name, "--json")) == [name]
    picture = tmp_path / name
    original = picture.read_bytes()
    changed = Image.open(picture)
    info, pixel = changed.info["segue"], changed.getpixel((0, 0))
    changed.putpixel((0, 0), tuple(255 - value for value in pixel))
    chunks = PngInfo()
    chunks.add_text("segue", info)
    changed.save(picture, pnginfo=chunks)
    retouched = picture.read_bytes()
    (again,) = written(segue("sample", "--from", name, "--json"))
    assert again == name.replace(".png", "-2.png")
    assert (picture.read_bytes(), (tmp_path / again).read_bytes()) == (retouched, original)
    assert f"{name} is there already" in segue("sample", "--from", name, "--out", name, code=2).stderr
    assert picture.read_bytes() == retouched


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("森の中の葉",), "000-森の中の葉-seed7.png"),
        (("Красный лист, ОДИН",), "000-красный-лист-один-seed7.png"),
        (("Blatt groß: ÄÖÜ",), "000-blatt-gross-äöü-seed7.png"),
        (("🍁🍂",), "000-seed7.png"),
        (("../../etc/passwd \x00 a:b*c?",), "000-etc-passwd-a-b-c-seed7.png"),
        (("葉" * 200,), f"000-{'葉' * 40}-seed7.png"),
        ((), "000-seed7.png"),
    ],
)
def test_names_of_prompts_in_any_alphabet(names, expected):
    assert picture_name(names, 0, 7) == expected
    assert len(picture_name(names, 0, 2**64 - 1).encode()) < 240  # and a number after it


def test_seeds_of_64_bits_are_drawn_recorded_and_drawn_again(segue, tmp_path):
    largest = str(2**64 - 1)
    options = ["--classes", "1", "--seeds", largest, "--solver", "euler-maruyama", "--schedule", "shift"]
    (file,) = written(segue("sample", *options, "--json"))
    assert file.endswith(f"seed{largest}.png")
    again = json.loads(segue("sample", "--from", file, "--out", "again", "--json").stdout)
    assert again["identical"] is True and again["seeds"] == [2**64 - 1]
    assert (tmp_path / "again" / file.removeprefix("out/")).read_bytes() == (tmp_path / file).read_bytes()


def test_seeds_out_of_range_are_refused_before_anything_is_drawn(segue, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("a program was loaded"))
    for seeds in (str(2**64), f"0,{2**70}"):
        refused = segue("sample", "--classes", "0,1", "--seeds", seeds, code=2).stderr
        assert refused == f"segue: a seed must lie in [0, 2^64), got {seeds.split(',')[-1]}\n"
    counted = segue("sample", "--classes", "0,1", "--seeds", str(2**64 - 1), code=2).stderr
    assert counted == f"segue: a seed must lie in [0, 2^64), got {2**64}\n"
    assert not contents(tmp_path)


def test_the_summary_names_the_grid_only_where_there_is_one(segue):
    drawn = ["sample", "--classes", "0,1"]
    assert segue(*drawn).stdout.endswith("2 pictures in out, all in out/grid.png\n")
    assert segue(*drawn, "--no-grid").stdout.endswith("2 pictures in out\n")
    assert segue(*drawn, "--out", "all.png").stdout.endswith("2 pictures in all.png\n")
    assert segue("sample", "--classes", "0").stdout.endswith("1 picture in out\n")
