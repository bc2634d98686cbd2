"""Runs save their pictures as the command line does, byte for byte, and it draws them again."""

import json
import pickle

import pytest
import torch
from PIL import Image
from tiny_checkpoint import save_tiny
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue import CFG, SGG, AutoGuidance, Engine, SkipLayer, euler_maruyama
from segue.__main__ import app

RULE = "sgg:scale=3,weight=1.5,layers=1,2,switch=0.6"
BY_PROMPT = "cfg:scale=3,window=fraction:0,0.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "tiny.safetensors", seed=1)
    save_tiny(folder / "smaller.safetensors", seed=2)
    tiny_pipeline(seed=8, num_layers=2, dual_attention_layers=(0,)).save_pretrained(folder / "pipeline")
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(folder / "start.png")
    return folder


@pytest.fixture
def segue(folder, monkeypatch):
    """Runs a command where the models are."""
    monkeypatch.chdir(folder)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.stderr or result.exception
        return result.stderr if code else result.stdout

    return run


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("rule", [RULE, "cfg:scale=1,2,4", f"none | {RULE} | cfg:scale=2"])
def test_pictures_of_classes_are_those_of_the_command_line(segue, tmp_path, rule):
    options = ["-g", rule, "--steps", 3, "--classes", "0,3,4", "--seeds", 7, "--max-batch", 2, "--no-grid"]
    segue("sample", "--model", "tiny.safetensors", *options, "--out", tmp_path / "command")
    run = Engine.from_pretrained("tiny.safetensors").sample([0, 3, 4], rule, steps=3, seeds=7, max_batch=2)
    files = run.save(tmp_path / "python")
    assert [file.parent for file in files] == [tmp_path / "python"] * 3
    assert bytes_in(tmp_path / "python") == bytes_in(tmp_path / "command")
    again = json.loads(segue("sample", "--from", files[2], "--out", tmp_path / "again.png", "--json"))
    assert again["identical"] and again["labels"] == [4]
    assert (tmp_path / "again.png").read_bytes() == files[2].read_bytes()


PICTURE = ("--image", "start.png", "--strength", 0.7)


@pytest.mark.parametrize("start", [(), pytest.param(PICTURE, marks=pytest.mark.slow)], ids=["noise", "picture"])
def test_pictures_of_prompts_are_those_of_the_command_line(segue, tmp_path, start):
    texts = ["-p", "leaf", "-p", "a b", "--negative-prompt", "dull", "--num-images", 2]
    options = ["-g", BY_PROMPT, "--steps", 3, "--seeds", 7, *texts, *start, "--no-grid"]
    segue("sample", "--model", "pipeline", *options, "--out", tmp_path / "command")
    how = {"image": "start.png", "strength": 0.7} if start else {}
    engine = Engine.from_pretrained("pipeline")
    run = engine.generate(["leaf", "a b"], "dull", BY_PROMPT, num_images=2, steps=3, seeds=7, **how)
    files = run.save(tmp_path / "python")
    assert {name: without_length(file) for name, file in bytes_in(tmp_path / "python").items()} == {
        name: without_length(file) for name, file in bytes_in(tmp_path / "command").items()
    }
    again = json.loads(segue("sample", "--from", files[3], "--out", tmp_path / "again.png", "--json"))
    assert again["identical"] and again["seeds"] == [7, 8, 9, 10]


def without_length(file: bytes) -> tuple:
    """What is in a PNG file; the command line leaves the length of prompts to its default, Python says it."""
    import io

    with Image.open(io.BytesIO(file)) as image:
        record = json.loads(image.info["segue"])
        return image.tobytes(), image.info["parameters"], record | {"max_sequence_length": None}


def test_what_is_only_said_in_python_is_drawn_again_too(segue, tmp_path):
    """A shorter text, names in code, a further network by another name."""
    engine = Engine.from_pretrained("pipeline")
    (file,) = engine.generate("leaf a b c", guidance=CFG(3.0), steps=2, seeds=1, max_sequence_length=5).save(tmp_path / "a.png")
    assert json.loads(segue("sample", "--from", file, "--out", tmp_path / "b.png", "--json"))["identical"]
    engine = Engine.from_pretrained("tiny.safetensors", models={"older": "smaller.safetensors"})
    (file,) = engine.sample([2], AutoGuidance(1.5, model="older"), steps=2, seeds=1).save(tmp_path / "c.png")
    assert json.loads(segue("sample", "--from", file, "--out", tmp_path / "d.png", "--json"))["identical"]


def test_a_network_that_was_made_in_python_is_named_when_it_is_drawn_again(segue, tmp_path):
    from segue.models.weights import load_network

    engine = Engine(load_network("tiny.safetensors")[0])
    (file,) = engine.sample([2], RULE, steps=2, seeds=1).save(tmp_path / "a.png")
    assert "made in Python: say by --model where" in segue("sample", "--from", file, code=2)
    how = ["--model", "tiny.safetensors", "--out", tmp_path / "b.png", "--json"]
    assert json.loads(segue("sample", "--from", file, *how))["identical"]


def test_files_that_are_there_stay(folder, tmp_path):
    engine = Engine.from_pretrained(folder / "tiny.safetensors")
    runs = [engine.sample([1], None, steps=steps, seeds=4) for steps in (1, 2)]
    first = [run.save(tmp_path)[0] for run in (*runs, runs[0])]
    assert first[0] == first[2] != first[1] and first[1].stem == f"{first[0].stem}-2"
    before = first[0].read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        runs[1].save(first[0])
    assert first[0].read_bytes() == before
    assert runs[1].save(first[0], force=True) == [first[0]] and first[0].read_bytes() == first[1].read_bytes()


def stopping(info):
    return False


REFUSED = [
    ({"noise": torch.ones(2, 3, 8, 12)}, "began with noise of the caller"),
    ({"latents": torch.ones(2, 3, 8, 12), "schedule": [0.7, 0.3, 0.0]}, "began with latents of the caller"),
    ({"callback": stopping}, "stopped after call 1 of 2"),
    ({"solver": euler_maruyama(lambda sigma: sigma)}, "solver 'euler-maruyama' is none that has a name"),
    ({"guidance": CFG(lambda sigma: 2.0)}, "the weight of uncond is a function of sigma"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_what_no_record_holds_is_refused_before_anything_is_written(folder, tmp_path, options, message):
    engine = Engine.from_pretrained(folder / "tiny.safetensors")
    settings = {"guidance": None, "seeds": 4} | ({} if "schedule" in options else {"steps": 2}) | options
    run = engine.sample([0, 1], **settings)
    with pytest.raises(ValueError, match=message):
        run.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [] and len(run.images) == 2


def test_runs_by_embeddings_numerics_and_objects_are_refused(folder, tmp_path):
    engine = Engine.from_pretrained(folder / "pipeline")
    embeddings, options = engine.encode("leaf", "dull"), {"steps": 1, "seeds": 1}
    picture = Image.open(folder / "start.png")
    for run, message in (
        (engine.generate(embeddings, **options), "prompts came encoded"),
        (engine.sample(embeddings, **options), "prompts came encoded"),
        (engine.generate("leaf", image=picture, **options), "a picture that is no file"),
        (engine.generate("leaf", numerics="diffusers", **options), "numerics are those of diffusers"),
        (engine.generate("leaf", noise=torch.ones(1, 4, 8, 8), **options), "noise of the caller"),
    ):
        with pytest.raises(ValueError, match=message):
            run.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="made no pictures, only latents"):
        engine.generate("leaf", output="latent", **options).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="2 pictures need a folder"):
        engine.generate("leaf", num_images=2, **options).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"written as PNG, which carries their record, got .*a\.jpg"):
        engine.generate("leaf", **options).save(tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_through_pickle_without_its_engine(folder, tmp_path):
    for engine, drawn in (
        (Engine.from_pretrained(folder / "pipeline"), lambda engine: engine.generate("leaf", steps=1, seeds=1)),
        (Engine(tiny_sit(channels=3), device="cpu"), lambda engine: engine.sample([1], steps=1, seeds=1)),
    ):
        run = drawn(engine)
        copy = pickle.loads(pickle.dumps(run))
        assert torch.equal(copy.latents, run.latents) and copy.engine is None and run.engine is engine


def test_a_run_in_a_notebook_shows_pictures_captions_and_the_plan(folder):
    engine = Engine.from_pretrained(folder / "tiny.safetensors")
    run = engine.sample([0, 3], SGG(CFG(3.0), SkipLayer(1.5, (1,)), 0.5), steps=4, seeds=9)
    page = run._repr_html_()
    assert page.count("data:image/png;base64,") == 2 and run.plan._repr_html_() in page
    assert all(f"{engine.spec.class_names[label]}, seed {seed}" in page for label, seed in ((0, 9), (3, 10)))
    latents = Engine(tiny_sit(), device="cpu").sample([0, 3], steps=1, seeds=9)._repr_html_()
    assert "data:image" not in latents and "class 3, seed 10" in latents


def test_the_bytes_of_a_picture_are_those_of_its_file(segue, folder, tmp_path):
    run = Engine.from_pretrained("tiny.safetensors").sample([0, 1, 2], RULE, seeds=[5, 6, 7], steps=3, max_batch=2)
    files = run.save(tmp_path / "out")
    assert [run.png(index) for index in range(3)] == [file.read_bytes() for file in files]
