"""``segue train`` beyond the recipes: checkpoints to start from, sizes, parts, previews and the curve."""

import json

import pytest
import torch
from PIL import Image
from tiny_models import randomize
from training_fixtures import TINY_SPEC, tiny_settings
from typer.testing import CliRunner

from segue.__main__ import app
from segue.models.sit import SiT
from segue.models.weights import load_network, save_model
from segue.training import recipes
from segue.training.recipes import Recipe


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "herbarium", Recipe(TINY_SPEC, tiny_settings(steps=2)))


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "begun.safetensors"
    save_model(randomize(SiT(TINY_SPEC), 3), path)
    return path


def train(out, *arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", "--out", str(out), "--device", "cpu", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_checkpoint_is_fine_tuned_in_part_and_resumed_by_its_folder_alone(checkpoint, tmp_path):
    out = tmp_path / "run"
    code, output = train(out, "--from", checkpoint, "--train", "labels,biases", "--name", "tuned", "--batch-size", 16)
    assert code == 0 and "begun.safetensors" in output, output
    code, output = train(out, "--resume", "--steps", 3)
    assert code == 0 and "resuming tuned after step 2" in output, output
    stored, tuned = (load_network(path)[0].state_dict() for path in (checkpoint, out))
    changed = {name for name, value in tuned.items() if not torch.equal(value, stored[name])}
    assert changed and all("y_embedder" in name or name.endswith(".bias") for name in changed)
    header = json.loads((out / "run.json").read_text())["facts"]["from"]
    assert header["name"] == str(checkpoint) and len(header["digest"]) == 16


def test_the_weights_say_how_they_were_trained(tmp_path):
    from safetensors import safe_open

    assert train(tmp_path / "run", "--seed", 5)[0] == 0
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as file:
        header = file.metadata()
    stated = json.loads(header["training"])
    assert stated["settings"]["seed"] == 5 and stated["facts"]["data"]["name"] == "herbarium" and header["steps"] == "2"


def test_previews_and_the_curve_are_drawn_while_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("segue.training.loop.LOG_EVERY", 1)
    monkeypatch.setattr("segue.training.preview.STEPS", 2)
    assert train(tmp_path / "run", "--preview-every", 2, "--steps", 5)[0] == 0
    sheets = sorted((tmp_path / "run" / "previews").iterdir())
    assert [path.name for path in sheets] == ["2.png", "4.png"]
    first, second = (Image.open(path) for path in sheets)
    assert first.size == second.size and first.tobytes() != second.tobytes()
    assert Image.open(tmp_path / "run" / "loss.png").size[0] > 400
    assert train(tmp_path / "plain", "--steps", 5)[0] == 0
    plain, drawn = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("plain", "run"))
    for name, value in plain["networks"]["main"]["weights"].items():
        assert torch.equal(value, drawn["networks"]["main"]["weights"][name]), "a preview leaves the run alone"


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--from", "absent.safetensors"), "absent.safetensors"),
        (("--from", "{checkpoint}", "--size", "S/2"), "leave out --size"),
        (("--family", "sit"), "--family is of a checkpoint, and there is no --from; got 'sit'"),
        (("--size", "M/2"), "unknown size 'M/2'"),
        (("--train", "everything"), "unknown part 'everything'"),
        (("--micro-batches", 2), "batch_size must be a multiple of micro_batches (2), got 3"),
        (("--recipe", "herbarium-judge", "--size", "S/2"), "herbarium-judge is a classifier, which takes no --size"),
        (("--recipe", "herbarium-judge", "--class-dropout", 0.1), "is a classifier, which takes no --class-dropout"),
        (("--recipe", "herbarium-judge", "--preview-every", 5), "draws no pictures"),
        (("--exit-layer", 9), "an early-exit head must follow block 1 to 2, got 9"),
    ),
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(checkpoint, tmp_path, arguments, words):
    given = [str(argument).format(checkpoint=checkpoint) for argument in arguments]
    code, output = train(tmp_path / "run", *given)
    assert code == 2 and words in output and len(output.splitlines()) == 1, output
    assert not (tmp_path / "run").exists()


def test_a_truncated_checkpoint_is_refused_by_name(checkpoint, tmp_path):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    code, output = train(tmp_path / "run", "--from", checkpoint)
    assert code == 2 and "begun.safetensors" in output and len(output.splitlines()) == 1, output
    assert not (tmp_path / "run").exists()


def test_what_a_run_is_cannot_change_when_it_goes_on(checkpoint, tmp_path):
    train(tmp_path / "run")
    for option in (("--from", checkpoint), ("--name", "x"), ("--size", "S/2"), ("--exit-layer", 2)):
        code, output = train(tmp_path / "run", "--resume", *option)
        assert code == 2 and f"leave out {option[0]}" in output, output


def test_a_full_disk_is_one_sentence_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    train(tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    code, output = train(tmp_path / "run", "--resume", "--steps", 4)
    assert code == 2 and "No space left on device" in output, output
    assert (tmp_path / "run" / "state.pt").read_bytes() == before
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_weak_signal_is_trained_with_its_published_weight_and_says_its_scale(tmp_path):
    code, output = train(tmp_path / "run", "--objective", "segmented")
    assert code == 0 and "objective segmented, W 0.6: guidance of scale 2.5 is built in" in output, output
    record = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["objective"]
    assert (record["weak"], record["weight"], record["tau"]) == ("segmented", 0.6, 0.2)
    assert train(tmp_path / "run", "--resume", "--steps", 3)[0] == 0
    code, output = train(tmp_path / "run", "--resume", "--steps", 4, "--weight", 0.3)
    assert code == 2 and "holds a run with another objective" in output, output


def test_a_folder_of_images_is_trained_on_and_resumed(tmp_path):
    for number, name in enumerate(("tea", "dog", "tea", "dog", "dog")):
        file = tmp_path / "roses" / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20 + number), (40 * number, 90, 30)).save(file)
    code, output = train(tmp_path / "run", "--data", tmp_path / "roses", "--image-size", 16)
    assert code == 0 and "roses: 5 images of 2 classes, 3 x 16 x 16" in output, output
    network, _ = load_network(tmp_path / "run")
    assert (network.spec.name, network.spec.class_names, network.spec.parents) == ("roses", ("dog", "tea"), ())
    assert train(tmp_path / "run", "--resume", "--steps", 3)[0] == 0
    (tmp_path / "roses").rename(tmp_path / "moved")
    code, output = train(tmp_path / "run", "--resume", "--steps", 4)
    assert code == 2 and "is no file or folder" in output, output
    code, output = train(tmp_path / "run", "--resume", "--steps", 4, "--data", tmp_path / "moved")
    assert code == 0 and "resuming roses after step 3" in output, output
    (tmp_path / "moved" / "tea" / "0.png").unlink()
    code, output = train(tmp_path / "run", "--resume", "--steps", 5, "--data", tmp_path / "moved")
    assert code == 2 and "holds a run with another data" in output, output
