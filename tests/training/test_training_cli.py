"""``segue train``, ``export`` and ``herbarium`` as a shell sees them: files, exit codes and one sentence."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from training_fixtures import TINY_CLASSIFIER, TINY_SPEC, tiny_settings
from typer.testing import CliRunner

from segue.__main__ import app
from segue.models.classifiers import load_classifier
from segue.models.weights import load_network
from segue.training import recipes
from segue.training.data.sheet import leaf
from segue.training.loop import Trainer
from segue.training.recipes import Recipe


@pytest.fixture
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, TINY_SPEC.name, Recipe(TINY_SPEC, tiny_settings(steps=4)))


def segue(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def train(out, *arguments) -> tuple[int, str]:
    return segue("train", "--out", out, "--device", "cpu", *arguments)


def test_train_trains_the_recipe_with_the_options_given(tiny_recipe, tmp_path):
    code, output = train(tmp_path / "run", "--recipe", TINY_SPEC.name, "--steps", 3, "--batch-size", 2, "--seed", 6)
    assert code == 0, output
    theirs = Trainer(TINY_SPEC, tiny_settings(steps=3, batch_size=2, seed=6), tmp_path / "reference")
    theirs.run()
    network, _ = load_network(tmp_path / "run")
    for name, value in theirs.average.values.items():
        assert torch.equal(network.state_dict()[name], value), name


def test_resume_takes_the_settings_of_the_run(tiny_recipe, tmp_path):
    train(tmp_path, "--recipe", TINY_SPEC.name, "--steps", 3, "--learning-rate", 0.01, "--seed", 6)
    code, output = train(tmp_path, "--resume", "--steps", 5)
    assert code == 0 and "after step 3" in output, output
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["step"], record["settings"]["learning_rate"], record["settings"]["seed"]) == (5, 0.01, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--recipe", "roses"), "unknown recipe 'roses'; there are: herbarium"),
        (("--steps", 0), "steps must be at least 1, got 0"),
        (("--minutes", "nan"), "minutes must be finite and at least 0, got nan"),
        (("--learning-rate", -1), "learning_rate must be finite and positive, got -1.0"),
        (("--dtype", "int8"), "dtype must be bfloat16 or float32, got 'int8'"),
        (("--device", "tpu"), "device must be cpu or cuda, got 'tpu'"),
        (("--resume",), "there is no run in"),
        (("--momentum", 1), "No such option"),
    ),
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(tmp_path, arguments, words):
    code, output = train(tmp_path / "run", *arguments)
    assert code == 2 and words in output and len(output.splitlines()) == 1, output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tiny_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    code, output = train(tmp_path / "file" / "run", "--recipe", TINY_SPEC.name)
    assert code == 2 and "cannot write to" in output and len(output.splitlines()) == 1, output


def test_another_run_is_not_overwritten(tiny_recipe, tmp_path):
    train(tmp_path, "--recipe", TINY_SPEC.name)
    before = (tmp_path / "state.pt").read_bytes()
    for arguments in ((), ("--fresh", "--recipe", "herbarium-weak"), ("--resume", "--seed", 9)):
        code, output = train(tmp_path, *arguments)
        assert code == 2 and len(output.splitlines()) == 1, output
    assert (tmp_path / "state.pt").read_bytes() == before
    assert train(tmp_path, "--fresh", "--recipe", TINY_SPEC.name)[0] == 0


INTERRUPTED_RUN = """
import os, signal, sys
from training_fixtures import TINY_CLASSIFIER, TINY_SPEC, tiny_settings
from segue.training import loop, showing
step = loop.Trainer.train_step
def step_and_press_ctrl_c(trainer, *parts):
    losses = step(trainer, *parts)
    if trainer.step == 3:
        os.killpg(0, signal.SIGINT)  # a terminal signals the whole process group: the workers too
    return losses
loop.Trainer.train_step = step_and_press_ctrl_c
sys.exit(showing.show_run(loop.Trainer(TINY_SPEC, tiny_settings(steps=20, workers=2), sys.argv[1])))
"""


def test_ctrl_c_finishes_the_step_saves_and_exits_with_130(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED_RUN, str(tmp_path / "run")]
    path = os.pathsep.join([os.path.dirname(sys.modules["training_fixtures"].__file__), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True, capture_output=True)
    assert result.returncode == 128 + signal.SIGINT, result.stderr.decode()
    assert b"Traceback" not in result.stderr and b"stopped" in result.stderr
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 3


def test_export_writes_the_average_in_half_precision(tiny_recipe, tmp_path):
    train(tmp_path / "run", "--recipe", TINY_SPEC.name)
    code, output = segue("export", tmp_path / "run", "--out", tmp_path / "small.safetensors")
    assert code == 0, output
    (whole, _), (small, _) = (load_network(tmp_path / name) for name in ("run", "small.safetensors"))
    for name, value in whole.state_dict().items():
        assert torch.equal(small.state_dict()[name], value.half()), name
    assert (tmp_path / "small.safetensors").stat().st_size < 0.6 * (tmp_path / "run" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "words"), ((("--dtype", "int8"), "dtype must be one of float16"), ((), "there is no run in"))
)
def test_export_refuses_what_it_cannot_write(tmp_path, arguments, words):
    code, output = segue("export", tmp_path, "--out", tmp_path / "x.safetensors", *arguments)
    assert code == 2 and words in output and list(tmp_path.iterdir()) == [], output


def test_herbarium_draws_the_chosen_species(tmp_path):
    out = tmp_path / "leaves.png"
    code, output = segue("herbarium", "--out", out, "--species", "Acerites,7", "--per-species", 3, "--seed", 4, "--zoom", 1)
    assert code == 0, output
    sheet = Image.open(out).convert("RGB")
    pixels, columns = sheet.tobytes(), sheet.width
    for species in (0, 1, 2, 3, 7):
        for index in range(3):
            first_row = leaf(species, index, 4).crop((0, 0, 32, 1)).tobytes()
            assert pixels.count(first_row) >= 1, (species, index)
    assert columns >= 3 * 32


def test_a_sheet_or_an_export_is_written_over_a_file_only_when_told(tiny_recipe, tmp_path, monkeypatch):
    train(tmp_path / "run", "--recipe", TINY_SPEC.name)
    for out, command in (("x.png", ("herbarium", "--species", "3")), ("x.safetensors", ("export", tmp_path / "run"))):
        mine = tmp_path / out
        mine.write_bytes(b"of the user")
        code, output = segue(*command, "--out", mine)
        assert code == 2 and f"{out} is there already; choose another name, or write over it (--force, force=True)" in output
        assert mine.read_bytes() == b"of the user"
        code, output = segue(*command, "--out", mine, "--force")
        assert code == 0 and mine.read_bytes() != b"of the user", output


def test_another_seed_draws_another_sheet(tmp_path):
    for seed in (1, 2):
        assert segue("herbarium", "--out", tmp_path / f"{seed}.png", "--species", "3", "--seed", seed)[0] == 0
    first, second = (Image.open(tmp_path / f"{seed}.png").tobytes() for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--species", "Rosa"), "no class 'Rosa'"),
        (("--species", "48"), "class 48 is out of range"),
        (("--per-species", 0), r"per_species must lie in"),
        (("--seed", -1), "seed must lie in"),
        (("--out", "{tmp}/file/x.png"), "cannot write to"),
    ),
)
def test_herbarium_refuses_bad_input(tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    arguments = [str(argument).format(tmp=tmp_path) for argument in arguments]
    code, output = segue("herbarium", "--out", tmp_path / "x.png", *arguments)
    assert code == 2 and words in output and len(output.splitlines()) == 1, output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_export_takes_the_weights_of_a_step_and_names_the_model_they_are_made_for(tiny_recipe, tmp_path):
    train(tmp_path / "run", "--recipe", TINY_SPEC.name, "--snapshot-every", 2)
    main = tmp_path / "main.safetensors"
    assert segue("export", tmp_path / "run", "--out", main)[0] == 0
    code, output = segue("export", tmp_path / "run", "--out", tmp_path / "b.safetensors", "--step", 2, "--parent", main)
    assert code == 0, output
    (kept, _), (exported, _) = (load_network(tmp_path / name) for name in ("run/snapshots/2.safetensors", "b.safetensors"))
    assert all(torch.equal(value.half(), exported.state_dict()[name]) for name, value in kept.state_dict().items())
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        header = file.metadata()
    stated = {name: header.get(name) for name in ("recipe", "steps", "images", "seconds", "parent")}
    digest = hashlib.sha256(main.read_bytes()).hexdigest()[:16]
    assert stated == {"recipe": TINY_SPEC.name, "steps": "2", "images": "6", "seconds": None, "parent": digest}
    code, output = segue("export", tmp_path / "run", "--out", tmp_path / "c.safetensors", "--step", 3)
    assert code == 2 and "keeps no weights of step 3; it keeps: 2, 4" in output, output
    assert not (tmp_path / "c.safetensors").exists()


def test_a_classifier_is_trained_and_exported_by_the_same_commands(monkeypatch, tmp_path):
    monkeypatch.setitem(recipes.RECIPES, TINY_CLASSIFIER.name, Recipe(TINY_CLASSIFIER, tiny_settings(steps=2)))
    assert train(tmp_path / "run", "--recipe", TINY_CLASSIFIER.name)[0] == 0
    code, output = segue("export", tmp_path / "run", "--out", tmp_path / "c.safetensors")
    assert code == 0 and "tiny-classifier, 0.01 M parameters" in output, output
    whole, small = load_classifier(tmp_path / "run"), load_classifier(tmp_path / "c.safetensors")
    assert small.spec == TINY_CLASSIFIER
    code, output = train(tmp_path / "run", "--resume", "--class-dropout", 0.1)
    assert code == 2 and "tiny-classifier is a classifier, which takes no --class-dropout" in output, output
    assert all(torch.equal(value.half().float(), small.state_dict()[name]) for name, value in whole.state_dict().items())
