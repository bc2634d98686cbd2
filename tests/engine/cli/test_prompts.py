"""The command line for prompts draws what the engine generates, plans SD3 without its weights, and refuses in one sentence."""

import json

import numpy as np
import pytest
from PIL import Image, ImageChops
from tiny_checkpoint import save_tiny
from tiny_sd3 import tiny_pipeline, tiny_transformer
from typer.testing import CliRunner

from segue import CFG, Engine, SkipLayer, Window, parse_rule
from segue.__main__ import app
from segue.engine.planning.plan_text import plan_dict
from segue.engine.prompts.engine import PromptEngine

PROMPTS = ["a red leaf", "two leaves"]
RULE = "sgg:scale=4,weight=2,layers=2,3,switch=fraction:0.5"
GUIDANCE = CFG(4.0, window=Window.fraction(0, 0.5)) + SkipLayer(2.0, (2, 3), window=Window.fraction(0.5, 1))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A saved pipeline of tiny random networks."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd3"
    tiny_pipeline("sd3.5-medium").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(pipeline):
    return Engine.from_pretrained(pipeline, device="cpu")


@pytest.fixture
def segue(pipeline, tmp_path, monkeypatch):
    """Runs a command in an empty folder; ``--model`` is the tiny pipeline unless the arguments name another."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        given = "--model" in arguments or "--from" in arguments
        result = CliRunner().invoke(app, [*arguments, *([] if given else ["--model", str(pipeline)])])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


def identical(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getbbox() is None


def prompt_flags(*prompts: str) -> list[str]:
    return [word for prompt in prompts for word in ("--prompt", prompt)]


# --- sample ----------------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_generate(segue, engine, tmp_path):
    options = ["-g", RULE, "--negative-prompt", "grey", "--num-images", "2", "--seeds", "7", "--steps", "4"]
    summary = json.loads(segue("sample", *prompt_flags(*PROMPTS), *options, "--height", "20", "--width", "12", "--json").stdout)
    run = engine.generate(PROMPTS, "grey", GUIDANCE, steps=4, seeds=7, num_images=2, height=20, width=12)
    files = sorted((tmp_path / "out").glob("0*.png"))
    names = ["000-a-red-leaf-seed7", "000-a-red-leaf-seed8", "001-two-leaves-seed10", "001-two-leaves-seed9"]
    assert [file.stem for file in files] == names
    for file, image in zip(files, [run.images[i] for i in (0, 1, 3, 2)], strict=True):
        assert Image.open(file).size == (12, 20)
        assert identical(Image.open(file), image)
    assert (summary["labels"], summary["seeds"], summary["pixels"]) == ([0, 0, 1, 1], [7, 8, 9, 10], [12, 20])
    assert summary["plan"] == json.loads(json.dumps(plan_dict(run.plan)))
    assert summary["origin"]["model"] == "tiny-sd3"
    assert (tmp_path / "out/grid.png").exists()


def test_loading_draws_no_bars_and_those_of_downloads_stay(segue):
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    result = segue("sample", "--prompt", "leaf", "-g", "cfg:scale=2", "--steps", "1")
    assert "it/s" not in result.stderr and "Loading" not in result.stderr
    assert result.stdout.startswith("Classifier-free guidance (cfg:scale=2): 2 evaluations per picture")
    assert are_progress_bars_disabled() == before


def test_a_picture_carries_its_prompts_for_other_tools(segue, tmp_path):
    segue("sample", "--prompt", "a leaf, red", "--negative-prompt", "grey", "-g", "cfg:scale=3", "--steps", "2", "-o", "a.png")
    prompt, negative, pairs = Image.open(tmp_path / "a.png").info["parameters"].split("\n")
    assert (prompt, negative) == ("a leaf, red", "Negative prompt: grey")
    assert pairs.startswith("Steps: 2, Sampler: euler, Schedule type: FlowMatchEulerDiscreteScheduler, ")
    assert 'Guidance: "cfg:scale=3", Seed: 0, Size: 16x16, Model hash: ' in pairs
    record = json.loads(Image.open(tmp_path / "a.png").info["segue"])
    assert (record["prompts"], record["negative_prompts"], record["seeds"]) == (["a leaf, red"], ["grey"], [0])


def test_every_picture_is_drawn_again_identically_from_itself(segue, tmp_path):
    options = ["-g", RULE, "--negative-prompt", "grey", "--negative-prompt", "dull", "--count", "2", "--max-batch", "3"]
    segue("sample", *prompt_flags(*PROMPTS), *options, "--steps", "3", "--height", "20")
    for name in ("001-two-leaves-seed2.png", "001-two-leaves-seed3.png", "grid.png"):
        again = json.loads(segue("sample", "--from", f"out/{name}", "--out", "again", "--json").stdout)
        assert again["identical"] is True
        first, second = Image.open(tmp_path / "out" / name), Image.open(tmp_path / "again" / name)
        assert first.info["parameters"] == second.info["parameters"]
        assert first.info["segue"] == second.info["segue"]


def test_image_to_image_equals_the_engine_and_is_drawn_again_from_the_same_start_only(segue, engine, tmp_path):
    start = Image.effect_noise((24, 18), 80).convert("RGB")
    start.save(tmp_path / "start.png")
    flags = ["--prompt", "a leaf", "-g", "cfg:scale=3", "--steps", "5", "--seeds", "4", "--out", "a.png"]
    segue("sample", *flags, "--image", "start.png", "--strength", "0.4")
    run = engine.generate("a leaf", "", CFG(3.0), steps=5, seeds=[4], image=start, strength=0.4)
    assert run.calls == 2
    drawn = Image.open(tmp_path / "a.png")
    assert identical(drawn, run.images[0])
    assert "Denoising strength: 0.4" in drawn.info["parameters"]
    (tmp_path / "start.png").rename(tmp_path / "moved.png")
    assert "start.png" in segue("sample", "--from", "a.png", "--out", "b.png", code=2).stderr
    again = segue("sample", "--from", "a.png", "--out", "b.png", "--image", "moved.png", "--json")
    assert json.loads(again.stdout)["identical"] is True
    refused = segue("sample", "--from", "a.png", "--out", "c.png", "--image", "b.png", code=2)
    assert "b.png is not the picture that the recorded run started from" in refused.stderr


def test_a_negative_prompt_that_nothing_reads_is_a_warning(segue):
    result = segue("sample", "--prompt", "a", "--negative-prompt", "b", "-g", "slg:weight=1,layers=2", "--steps", "1")
    assert "slg:weight=1,layers=2 has no unconditional branch: the negative prompt changes nothing" in result.stderr


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_draws_every_rule_from_the_same_noise(segue, engine, tmp_path):
    rules = ["none", "cfg:scale=3", RULE]
    flags = [word for rule in rules for word in ("-r", rule)]
    flags += ["--negative-prompt", "grey", "--steps", "3", "--zoom", "1", "--out", "s/a.png"]
    printed = json.loads(segue("compare", *prompt_flags(*PROMPTS), *flags, "--seeds", "5", "--json").stdout)
    assert printed["prompts"] == PROMPTS
    sheet = Image.open(tmp_path / "s/a.png").convert("RGB")
    tops = []
    for text, entry in zip(rules, printed["rules"], strict=True):
        run = engine.generate(PROMPTS, "grey", parse_rule(text).guidance, steps=3, seeds=5)
        assert entry["plan"]["cost"] == json.loads(json.dumps(plan_dict(run.plan)["cost"]))
        tops.append({row_of(sheet, image) for image in run.images})
    assert [len(top) for top in tops] == [1, 1, 1]  # the pictures of a rule stand in one row
    assert [top for row in tops for top in row] == sorted(top for row in tops for top in row)


def row_of(sheet: Image.Image, part: Image.Image) -> int:
    """The top edge of ``part`` in ``sheet``."""
    width, height = part.size
    for y, x in np.argwhere((np.asarray(sheet) == part.convert("RGB").getpixel((0, 0))).all(-1)).tolist():
        if identical(sheet.crop((x, y, x + width, y + height)), part):
            return y
    raise AssertionError("the picture is not in the sheet")


# --- plan ------------------------------------------------------------------------------------------------------------


def planned(segue, *arguments) -> dict:
    return json.loads(segue("plan", *arguments, "--json").stdout)


def live_names(plan: dict) -> list[tuple[str, ...]]:
    return [tuple(plan["branches"][i] for i in live) for live in plan["live"]]


@pytest.mark.parametrize("size", ["sd3-medium", "SD3.5-medium"])
def test_the_presets_of_the_medium_sizes_need_no_weights(segue, size):
    published = planned(segue, "--model", size)
    assert live_names(published) == [("cond", "uncond")] * 14 + [("cond", "cond skip 7,8,9")] * 14
    assert published["weights"] == [[3.5, 0.0]] * 14 + [[0.0, 3.0]] * 14
    assert published["cost"]["evaluations"] == 56
    twenty = planned(segue, "--model", size, "--steps", "20")
    assert live_names(twenty) == [("cond", "uncond")] * 10 + [("cond", "cond skip 7,8,9")] * 10
    stability = planned(segue, "--model", size, "-g", "slg")
    assert [len(live) for live in stability["live"]] == [2] + [3] * 5 + [2] * 22
    assert planned(segue, "--model", size, "-g", "slg", "--scale", "6")["weights"][0] == [5.0, 0.0]


def test_relative_costs_are_those_of_the_arithmetic(segue):
    """14 + 14 steps with the prefix shared, at 1024 x 1024: 1.791, 1.755 and, for these layers, 1.868 times unguided."""
    costs = {"sd3-medium": 1.791, "sd3.5-medium": 1.755, "sd3.5-large": 1.868}
    for size, relative in costs.items():
        assert planned(segue, "--model", size, "--layers", "7-9")["cost"]["relative"] == pytest.approx(relative, abs=5e-4)
    wide = planned(segue, "--model", "sd3.5-medium", "--height", "768", "--width", "1344")
    assert (wide["height"], wide["width"]) == (96, 168)


def test_the_plan_of_a_folder_is_the_engines_and_needs_no_weights(segue, pipeline, engine, tmp_path):
    flags = ["-g", RULE, "--steps", "6", "--height", "20"]
    expected = json.loads(json.dumps(plan_dict(engine.plan(GUIDANCE, 6, height=10)))) | {"rule": RULE, "notes": []}
    assert planned(segue, *flags) == expected
    for part in ("transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json", "model_index.json"):
        target = tmp_path / "tiny-sd3" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((pipeline / part).read_bytes())
    assert planned(segue, "--model", "tiny-sd3", *flags) == expected
    listed = json.loads(segue("guidance", "--model", "tiny-sd3", "--steps", "6", "--json").stdout)["rules"]
    costs = {rule["name"]: rule["cost"] for rule in listed}
    for rule in ("cfg", "cfgpp:scale=0.6", "nag"):  # by the levels of the folder's scheduler, as there
        plan = planned(segue, "--model", "tiny-sd3", "--steps", "6", "-g", rule)
        assert (plan["schedule"], plan["cost"]["relative"]) == (expected["schedule"], costs[rule.split(":")[0]])
    alone = planned(segue, "--model", "tiny-sd3/transformer", "-g", RULE, "--schedule", "shift=3")
    assert (alone["schedule"], alone["cost"]["evaluations"]) == ("shift 3", 56)


def test_a_size_is_told_by_the_network_not_by_its_path(segue, tmp_path):
    tiny_transformer("sd3").save_pretrained(tmp_path / "sd3.5-medium")
    said = segue("plan", "--model", "sd3.5-medium").output
    assert "no tuned numbers of sgg for sd3.5-medium, 6 blocks of width 16, using scale=4.5" in " ".join(said.split())


# --- bad input -------------------------------------------------------------------------------------------------------

TRANSFORMER = "a transformer without text encoders and VAE; drawing needs the pipeline's folder"
LARGE = "sgg needs layers: model 'sd3.5-large' has no default for it, because the blocks 7, 8 and 9"
START = ["--prompt", "a", "-g", "none"]
REFUSED = [
    (["sample"], "tiny-sd3 draws from prompts: give at least one --prompt"),
    (["sample", "--prompt", "a", "--classes", "3"], "draws from prompts and has no classes, got '3'"),
    (["compare", "--classes", "3"], "draws from prompts and has no classes, got '3'"),
    (["sample", "--prompt", "a", "-g", "slg:weight=1,layers=6"], "layer 6 does not exist: tiny-sd3 has layers 0 to 5"),
    (["sample", *START, "--height", "18"], "height must be a positive multiple of 4, got 18"),
    (["sample", *START, "--width", "0"], "width must be a positive multiple of 4, got 0"),
    (["sample", *START, "--width", "400"], "latent size must be at most 24"),
    (["plan", "-g", "none", "--width", "18"], "width must be a positive multiple of 4, got 18"),
    (["sample", *START, "--negative-prompt", "b", "--negative-prompt", "c"], "2 negative prompts do not fit 1 prompts"),
    (["sample", *START, "--prompt", "b", "--seeds", "1,2,3"], "3 seeds do not fit 2 pictures"),
    (["sample", *START, "--count", "0"], "count must be at least 1, got 0"),
    (["sample", *START, "--max-batch", "0"], "max-batch must be at least 1, got 0"),
    (["sample", *START, "--steps", "0"], "steps must be at least 1, got 0"),
    (["sample", *START, "--strength", "0.5"], "--strength 0.5 needs a picture to start from: give --image"),
    (["sample", *START, "--image", "start.png", "--strength", "1.5"], "strength must lie in (0, 1], got 1.5"),
    (["sample", *START, "--image", "nowhere.png"], "nowhere.png"),
    (["sample", *START, "--image", "text.png"], "text.png"),
    (["sample", *START, "--family", "dit"], "--family dit does not apply"),
    (["sample", *START, "--device", "abacus"], "unknown device 'abacus'"),
    (["sample", *START, "--dtype", "float3"], "'float3'"),
    (["sample", *START, "--model", "transformer"], TRANSFORMER),
    (["sample", *START, "--model", "sd3.5-medium"], "sd3.5-medium is a size, which segue plan takes"),
    (["calibrate", "--cost", "1.2", "--out", "c.json"], "tiny-sd3 draws from prompts; calibrations are searched on models of"),
    (["sample", "--count", "4", "--out", "c.npz"], "tiny-sd3 draws from prompts; an .npz file holds samples of classes"),
    (["plan", "--model", "sd3.5-large"], LARGE),
    (["plan", "--model", "sd3.5-large", "-g", "slg"], "needs layers: model 'sd3.5-large' has no default for it, because"),
    (["plan", "--model", "sd3.5-large", "--family", "sit"], "--family sit does not apply"),
    (["sample", "--model", "labels.safetensors", "--prompt", "a"], "is a class-label model and takes no prompt, got 'a'"),
    (["compare", "--model", "labels.safetensors", "--prompt", "a"], "is a class-label model and takes no prompt, got 'a'"),
    (["sample", "--model", "labels.safetensors", "--width", "64"], "is a class-label model and takes no width, got 64"),
    (["plan", "--model", "labels.safetensors", "--height", "64"], "is a class-label model and takes no height, got 64"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_bad_input_is_one_sentence_before_any_weights_are_read(segue, tmp_path, monkeypatch, arguments, sentence):
    def load(*_, **__):
        raise AssertionError("the pipeline was loaded")

    Image.new("RGB", (4, 4)).save(tmp_path / "start.png")
    (tmp_path / "text.png").write_text("no picture")
    tiny_transformer().save_pretrained(tmp_path / "transformer")
    save_tiny(tmp_path / "labels.safetensors")
    monkeypatch.setattr(PromptEngine, "from_folder", load)
    before = sorted(tmp_path.rglob("*"))
    result = segue(*arguments, code=2)
    assert sentence in result.stderr
    assert result.stderr.startswith("segue: ")
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_record_of_prompts_is_not_redrawn_by_another_kind_of_model(segue, tmp_path):
    segue("sample", "--prompt", "a", "-g", "none", "--steps", "1", "--out", "a.png")
    labels = save_tiny(tmp_path / "labels.safetensors")
    refused = segue("sample", "--from", "a.png", "--out", "b.png", "--model", str(labels), code=2)
    assert "was drawn from a prompt, and" in refused.stderr
    taken = segue("sample", "--from", "a.png", "--out", "b.png", "--prompt", "b", code=2)
    assert "--from takes --prompt from the picture" in taken.stderr
    without = segue("sample", "--from", "a.png", "--out", "b.png", "--image", "a.png", code=2)
    assert "tells of no picture to start from; leave --image a.png out" in without.stderr
