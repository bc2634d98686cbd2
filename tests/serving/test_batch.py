"""``segue batch``: every row once and bit for bit the same, whatever is killed; what fails stops nothing and is told."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_checkpoint import save_tiny
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue import Engine
from segue.__main__ import app
from segue.engine.images import read_png
from segue.engine.records.provenance import Record
from segue.serving import batch_drawing

RULES = ("cfg:scale=2", "none", "cfg:scale=3", "slg:weight=1,layers=7")
OPTIONS = ("--steps", "2", "--max-batch", "3")  # before others, which may say otherwise
# kills itself as an operating system would, at one of the files that it is about to put in its place
KILLED = """
import os, signal
from pathlib import Path
from segue.__main__ import main
replace, calls = Path.replace, []
def killing(path, target):
    calls.append(target)
    if len(calls) == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
Path.replace = killing
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def segue(model, tmp_path, monkeypatch):
    """Runs ``segue batch`` with the tiny model in an empty folder; returns its report."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        given = [] if "--model" in arguments else ["--model", str(model)]
        result = CliRunner().invoke(app, ["batch", *OPTIONS, *map(str, arguments), *given, "--json"])
        assert result.exit_code == code, result.stderr or result.exception
        return json.loads(result.stdout) if code < 2 else result.stderr

    return run


def table(rows, name="rows.csv"):
    with Path(name).open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)
    return name


def leaves(count=11):
    return [{"label": index % 5, "guidance": RULES[index % 4], "seed": 40 + index} for index in range(count)]


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder, "pictures").iterdir()}


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def drawn(monkeypatch):
    """The seeds of every batch that is drawn."""
    batches, sample = [], Engine.sample

    def noted(engine, labels, *arguments, seeds, **options):
        batches.append(list(seeds))
        return sample(engine, labels, *arguments, seeds=seeds, **options)

    monkeypatch.setattr(Engine, "sample", noted)
    return batches


def counts(report):
    return tuple(report[name] for name in ("rows", "drawn", "skipped", "failed", "retried"))


def test_every_row_has_the_picture_that_its_record_draws_again(segue, model):
    assert counts(segue(table(leaves()), "--out", "made")) == (11, 11, 0, 0, 0)
    engine, manifest = Engine.from_pretrained(model, device="cpu"), lines("made/manifest.jsonl")
    assert [line["row"] for line in manifest] == list(range(11)) and lines("made/failures.jsonl") == []
    found = hashes("made")
    for line, row in zip(manifest, leaves(), strict=True):
        assert {name: line[name] for name in row} == row
        assert found == found | {Path(line["file"]).name: line["sha256"]}
        image, chunk = read_png(Path("made", line["file"]))
        assert chunk["row"] == {"id": line["id"], "digest": line["digest"]}
        record = Record.from_dict(chunk, line["file"])
        again = CliRunner().invoke(app, ["sample", "--from", str(Path("made", line["file"])), "--out", f"{line['id']}.png"])
        assert again.exit_code == 0 and "identical" in again.stdout, again.stderr or again.stdout
        alone = engine.sample([row["label"]], row["guidance"], steps=2, seeds=[row["seed"]])
        difference = torch.tensor(list(alone.images[0].tobytes())).sub(torch.tensor(list(image.tobytes()))).abs().max()
        assert record.seeds[record.index] == row["seed"] and difference <= 1  # rounding, of another batch


@pytest.mark.parametrize("at", (5, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 4, 8))))
def test_a_killed_run_goes_on_and_its_pictures_are_those_of_one_that_was_not(segue, model, drawn, at):
    command = [sys.executable, "-c", KILLED, "batch", table(leaves()), "--out", "made", *OPTIONS, "--model", str(model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KILL_AT": str(at)}
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == -9, ended.stderr.decode()
    left = len([name for name in hashes("made") if name.endswith(".png")])
    report = segue("rows.csv", "--out", "made")
    assert report["drawn"] + report["skipped"] == 11 and report["skipped"] <= left
    assert counts(segue("rows.csv", "--out", "whole")) == (11, 11, 0, 0, 0)
    assert hashes("made") == hashes("whole")
    assert Path("made/manifest.jsonl").read_bytes() == Path("whole/manifest.jsonl").read_bytes()
    assert list(Path("made/shards").iterdir()) == []


def test_what_is_there_is_not_drawn_again(segue, drawn):
    segue(table(leaves()), "--out", "made")
    before, names = len(drawn), hashes("made")
    assert counts(segue("rows.csv", "--out", "made")) == (11, 0, 11, 0, 0) and len(drawn) == before
    Path("made/pictures/000004.png").unlink()
    Path("made/pictures/000008.png").write_bytes(b"cut short")
    assert counts(segue("rows.csv", "--out", "made")) == (11, 2, 9, 0, 0)
    assert hashes("made") == names and drawn[before:] == [[40, 42, 44], [46, 48, 50]]  # whole batches, as before


def test_pictures_that_no_file_names_are_never_those_of_a_row_that_says_otherwise_now(segue):
    """As after a kill before the file of a shard, and then a change of the table."""
    segue(table(leaves(4)), "--out", "made")
    Path("made/manifest.jsonl").unlink()
    changed = leaves(3)
    changed[0]["guidance"], changed[1]["seed"] = "cfg:scle=2", 7
    assert counts(segue(table(changed), "--out", "made", code=1)) == (3, 2, 0, 1, 0)
    assert [line["id"] for line in lines("made/failures.jsonl")] == ["000000"]
    assert hashes("made") == {Path(line["file"]).name: line["sha256"] for line in lines("made/manifest.jsonl")}
    assert [line["seed"] for line in lines("made/manifest.jsonl")] == [7, 42]


def test_an_interruption_ends_with_130_and_keeps_what_is_there(segue, drawn, monkeypatch):
    noted = Engine.sample

    def stops(engine, *arguments, **options):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return noted(engine, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "sample", stops)
        assert segue(table(leaves()), "--out", "made", code=130) == "segue: interrupted\n"
    assert [line["row"] for line in lines("made/manifest.jsonl")] == [0, 2, 4, 6, 8, 10]
    assert counts(segue("rows.csv", "--out", "made")) == (11, 5, 6, 0, 0)


def test_rows_may_be_added_and_a_row_that_has_changed_is_refused(segue, drawn):
    segue(table(leaves()), "--out", "made")
    before = hashes("made")
    assert counts(segue(table(leaves(13)), "--out", "made")) == (13, 2, 11, 0, 0)
    changed = leaves(13)
    changed[4]["seed"] = 7
    said = segue(table(changed), "--out", "made", code=2)
    assert "row '000004' says something else than when its picture was drawn; take another folder than made" in said
    said = segue(table(leaves(12)), "--out", "made", code=2)
    assert "row '000012' is not in the table any more" in said
    assert counts(segue(table(changed[:12]), "--out", "made", "--force")) == (12, 1, 11, 0, 0)
    after = hashes("made")
    assert {name for name in before if before[name] != after[name]} == {"000004.png"} and len(after) == 12


def test_rows_that_fail_are_told_and_the_others_are_drawn(segue):
    rows = leaves(6)
    rows[1]["guidance"], rows[2]["label"], rows[4]["guidance"] = "cfg:scle=2", 99, "cfg:scale=1e38"
    report = segue(table(rows), "--out", "made", code=1)
    assert counts(report) == (6, 3, 0, 3, 0)
    first, second, third = lines("made/failures.jsonl")
    assert (first["row"], second["row"], third["row"]) == (1, 2, 4)
    assert "did you mean 'scale'?" in first["reason"] and "out of range" in second["reason"]
    assert "not finite" in third["reason"] and "call" in third["reason"]
    assert sorted(hashes("made")) == ["000000.png", "000003.png", "000005.png"]
    assert counts(segue("rows.csv", "--out", "made", code=1)) == (6, 0, 3, 3, 0)  # tried again
    rows[1]["guidance"], rows[2]["label"], rows[4]["guidance"] = "none", 3, "cfg:scale=2"
    assert counts(segue(table(rows), "--out", "made")) == (6, 3, 3, 0, 0)
    assert lines("made/failures.jsonl") == [] and len(lines("made/manifest.jsonl")) == 6


def test_an_error_of_one_batch_stops_no_other(segue, drawn, monkeypatch):
    noted = Engine.sample

    def fails(engine, labels, *arguments, seeds, **options):
        if 44 in seeds:
            raise torch.OutOfMemoryError("no memory\nfor this")
        return noted(engine, labels, *arguments, seeds=seeds, **options)

    monkeypatch.setattr(Engine, "sample", fails)
    assert counts(segue(table(leaves()), "--out", "made", code=1)) == (11, 8, 0, 3, 0)
    reasons = {line["id"]: line["reason"] for line in lines("made/failures.jsonl")}
    assert reasons == dict.fromkeys(("000000", "000002", "000004"), "OutOfMemoryError: no memory for this")


def test_a_folder_belongs_to_its_networks_and_its_batch(segue, model, tmp_path):
    segue(table(leaves(4)), "--out", "made")
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    pictures = sorted(path.name for path in Path("made/pictures").iterdir())
    assert "made was begun with weights" in segue(table(leaves(4)), "--out", "made", "--model", other, code=2)
    assert "made was begun with weights" in segue(table(leaves(2)), "--out", "made", "--model", other, "--force", code=2)
    assert sorted(path.name for path in Path("made/pictures").iterdir()) == pictures
    rows = table(leaves(5))
    assert "made was begun with weights" in segue(rows, "--out", "made", "--model", other, code=2)
    assert "made was begun with batch 3, and cannot go on with 4" in segue(rows, "--out", "made", "--max-batch", 4, code=2)
    assert counts(segue(rows, "--out", "made")) == (5, 1, 4, 0, 0)
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("")
    assert "mine holds something else already" in segue(rows, "--out", "mine", code=2)
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.tex"]


def test_where_nothing_is_left_to_draw_no_device_is_needed_and_other_weights_are_refused(segue, model, tmp_path, monkeypatch):
    """A folder that workers with a GPU drew, and a head without one."""
    mine, made = tmp_path / "mine.safetensors", Path("made/batch.json")
    mine.write_bytes(model.read_bytes())
    segue(table(leaves(4)), "--out", "made", "--model", mine)
    begun = json.loads(made.read_text())
    made.write_text(json.dumps(begun | {"device": "cuda"}))
    with monkeypatch.context() as patch:
        patch.setattr(batch_drawing, "open_served", lambda _: pytest.fail("the model was opened"))
        assert counts(segue("rows.csv", "--out", "made", "--model", mine)) == (4, 0, 4, 0, 0)
        assert counts(segue("rows.csv", "--out", "made", "--model", mine, "--device", "cpu")) == (4, 0, 4, 0, 0)
        assert "with batch 3, and" in segue("rows.csv", "--out", "made", "--model", mine, "--max-batch", 4, code=2)
        assert counts(segue(table(leaves(3)), "--out", "made", "--model", mine, "--force")) == (3, 0, 3, 0, 0)
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(mine.read_bytes())
    assert counts(segue("rows.csv", "--out", "made", "--model", copied)) == (3, 0, 3, 0, 0)  # by its weights
    assert "made was begun with dtype 'float32'" in segue("rows.csv", "--out", "made", "--dtype", "bfloat16", code=2)
    save_tiny(mine, seed=1)
    assert "made was begun with weights" in segue("rows.csv", "--out", "made", "--model", mine, code=2)
    assert len(hashes("made")) == 3


def test_other_networks_are_refused_before_the_pictures_of_changed_rows_go(segue):
    segue(table(leaves(4)), "--out", "made")
    made, before = Path("made/batch.json"), hashes("made")
    made.write_text(json.dumps(json.loads(made.read_text()) | {"device": "cuda"}))
    changed = leaves(4)
    changed[2]["seed"] = 7
    assert "made was begun with device 'cuda'" in segue(table(changed), "--out", "made", "--force", code=2)
    assert hashes("made") == before and len(lines("made/manifest.jsonl")) == 4


def test_options_of_a_pool_need_one(segue):
    assert "--workers 2 is for processes of Ray's: give --ray" in segue(table(leaves(1)), "--workers", 2, code=2)
    assert "a pool has at least one worker, got 0" in segue("rows.csv", "--ray", "--workers", 0, code=2)
    assert not Path("rows").exists()


@pytest.mark.slow
def test_prompts_with_negatives_and_sizes(segue, tmp_path):
    pipe = tiny_pipeline("sd3.5-medium", num_layers=12)
    pipe.save_pretrained(tmp_path / "sd3")
    rows = [
        {"id": f"p{index}", "prompt": f"a leaf of {index}", "negative_prompt": "blur" * (index % 2), "guidance": "cfg:scale=3"}
        for index in range(4)
    ]
    rows[3]["height"] = 32
    rows.append({"id": "none", "prompt": " ", "guidance": "cfg:scale=3"})
    report = segue(table(rows), "--out", "made", "--model", "sd3", code=1)
    assert counts(report) == (5, 4, 0, 1, 0)
    assert "draws from prompts, and the row has none" in lines("made/failures.jsonl")[0]["reason"]
    sizes = {path.stem: Image.open(path).size for path in Path("made/pictures").iterdir()}
    assert sizes["p3"] == (sizes["p0"][0], 32) and sizes["p0"][1] != 32
    engine = Engine.from_pretrained("sd3", device="cpu")
    run = engine.generate([row["prompt"] for row in rows[:3]], ["", "blur", ""], "cfg:scale=3", steps=2, seeds=[0, 1, 2])
    for index, image in enumerate(run.images):
        assert image.tobytes() == Image.open(f"made/pictures/p{index}.png").tobytes()
