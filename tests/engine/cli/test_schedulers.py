"""The command line draws by the scheduler in the pipeline's folder, says so, records it, and draws the picture again by it."""

import json

import diffusers
import pytest
from PIL import Image, ImageChops
from sweeps import first_fast
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue import CFG, Engine
from segue.__main__ import app

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "sde": ("DPMSolverMultistepScheduler", FLOW | {"algorithm_type": "sde-dpmsolver++", "use_dynamic_shifting": True}),
    "stochastic": ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0, "stochastic_sampling": True}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}),
    "ddpm": ("DDPMScheduler", {}),
    "inverted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "invert_sigmas": True}),
}
DRAW = ["--prompt", "a leaf", "--prompt", "two", "-g", "cfg:scale=3", "--steps", "4", "--count", "2", "--max-batch", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd3"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def segue(folder, tmp_path, monkeypatch):
    """Runs a command on the pipeline with a scheduler of one's choice."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments, code=0):
        kind, settings = SCHEDULERS[name]
        getattr(diffusers, kind)(**settings).save_pretrained(folder / "scheduler")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))
        given = [] if "--from" in arguments else ["--model", str(folder)]
        result = CliRunner().invoke(app, [*arguments, *given])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


def identical(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getbbox() is None


@pytest.mark.parametrize("name", first_fast(["sde", "stochastic", "inverted"]))
def test_pictures_are_those_of_generate_and_are_drawn_again(segue, folder, tmp_path, name):
    """By the scheduler of then, whatever the pipeline has by now."""
    summary = json.loads(segue(name, "sample", *DRAW, "--json").stdout)
    run = Engine.from_pretrained(folder, device="cpu").generate(
        ["a leaf", "two"], guidance=CFG(3.0), steps=4, seeds=0, num_images=2, max_batch=3
    )
    files = sorted((tmp_path / "out").glob("0*.png"))
    assert all(identical(Image.open(file), image) for file, image in zip(files, run.images, strict=True))
    planned = json.loads(segue(name, "plan", "-g", "cfg:scale=3", "--steps", "4", "--json").stdout)
    assert [planned[key] for key in ("solver", "sigmas")] == [summary["plan"][key] for key in ("solver", "sigmas")]
    sampler = {"inverted": "euler", "stochastic": "lcm"}.get(name, SCHEDULERS[name][0])
    assert f"Sampler: {sampler}, " in Image.open(files[0]).info["parameters"]
    file = "grid.png" if name == "sde" else "001-two-seed3.png"
    again = json.loads(segue("heun", "sample", "--from", f"out/{file}", "--out", "again", "--json").stdout)
    assert again["identical"] is True
    assert Image.open(tmp_path / "out" / file).info["segue"] == Image.open(tmp_path / "again" / file).info["segue"]


def test_image_to_image_is_drawn_again(segue):
    Image.effect_noise((16, 16), 80).convert("RGB").save("start.png")
    flags = ["--prompt", "a leaf", "-g", "cfg:scale=3", "--steps", "5", "--image", "start.png", "--strength", "0.5"]
    segue("sde", "sample", *flags, "--out", "a.png")
    record = json.loads(Image.open("a.png").info["segue"])
    assert record["plan"]["scheduler"]["first"] == 2 and record["plan"]["steps"] == 3
    assert json.loads(segue("unipc", "sample", "--from", "a.png", "--out", "b.png", "--json").stdout)["identical"] is True


def test_a_solver_of_ours_is_what_the_record_says(segue, tmp_path):
    for name, flags in {"ours": ["--solver", "euler"], "own": []}.items():
        segue("unipc", "sample", "--prompt", "a leaf", "-g", "cfg:scale=3", "--steps", "4", "--out", f"{name}.png", *flags)
    plans = [json.loads(Image.open(tmp_path / f"{name}.png").info["segue"])["plan"] for name in ("ours", "own")]
    assert [plan["solver"] for plan in plans] == ["euler", "UniPCMultistepScheduler"]
    assert plans[0]["scheduler"] is None and plans[1]["scheduler"]["config"]["_class_name"] == "UniPCMultistepScheduler"
    assert not identical(*(Image.open(tmp_path / f"{name}.png") for name in ("ours", "own")))


def test_the_index_of_a_pipeline_says_which_scheduler_it_has(segue, folder):
    """As where diffusers loads it: the class in the scheduler's own file is not looked at."""
    segue("unipc", "plan", "-g", "none")
    diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0).save_pretrained(folder / "scheduler")
    loaded = type(Engine.from_pretrained(folder, device="cpu").pipe.scheduler).__name__
    planned = CliRunner().invoke(app, ["plan", "-g", "none", "--model", str(folder)])
    refused = CliRunner().invoke(app, ["sample", "--prompt", "a", "-g", "none", "--model", str(folder)])
    assert loaded == "UniPCMultistepScheduler"
    assert "UniPCMultistepScheduler calls the network at time" in planned.stderr  # its own file lacks use_flow_sigmas
    assert refused.exit_code == 2 and refused.stderr == planned.stderr


def test_a_record_of_before_and_a_broken_one(segue, tmp_path):
    from segue.engine.images import save_png

    segue("heun", "sample", "--prompt", "a leaf", "-g", "none", "--steps", "2", "--out", "a.png")
    picture, record = Image.open(tmp_path / "a.png"), json.loads(Image.open(tmp_path / "a.png").info["segue"])
    del record["plan"]["scheduler"]
    save_png(picture, tmp_path / "old.png", "", record)
    assert json.loads(segue("heun", "sample", "--from", "old.png", "--out", "b.png", "--json").stdout)["identical"] is True
    for scheduler, message in (
        ({"config": {}}, "holds no record that can be redrawn: it lacks 'set_timesteps'"),
        ({"config": {"_class_name": "Engine"}, "set_timesteps": {}, "first": 0}, "names the scheduler 'Engine'"),
    ):
        record["plan"]["scheduler"] = scheduler
        save_png(picture, tmp_path / "broken.png", "", record)
        assert message in segue("heun", "sample", "--from", "broken.png", "--out", "c.png", code=2).stderr


def test_a_saved_scheduler_without_levels_is_refused_before_weights_are_read(segue, folder, monkeypatch):
    monkeypatch.setattr("segue.engine.prompts.engine.PromptEngine.from_folder", lambda *_, **__: pytest.fail("was loaded"))
    for command in (["sample", "--prompt", "a leaf"], ["compare", "--prompt", "a leaf"], ["plan"]):
        answer = segue("ddpm", *command, code=2).stderr
        assert answer == (
            f"segue: {folder}/model_index.json names the scheduler DDPMScheduler, which has no noise levels; "
            "a flow-matching one is needed\n"
        )
