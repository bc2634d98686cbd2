"""The command line draws what the engine draws, and its pictures can be drawn again from themselves."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo
from tiny_checkpoint import NAMES, save_tiny
from typer.testing import CliRunner

from segue import CFG, Engine, parse_rule
from segue.__main__ import app
from segue.engine.planning.plan_text import plan_dict
from segue.models.weights import load_network, save_model


def default(rule: str):
    """A rule with the numbers of the model, as which the tiny one goes."""
    return parse_rule(rule, "herbarium")


COMMANDS = ("sample", "compare", "plan", "doctor")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def segue(model, tmp_path, monkeypatch):
    """Runs a command in an empty folder; ``--model`` is the tiny one unless the arguments name another."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        given = "--model" in arguments or "--from" in arguments or arguments[0] not in ("sample", "compare", "plan")
        result = CliRunner().invoke(app, [*arguments, *([] if given else ["--model", str(model)])])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


def pixels_equal(first, second) -> bool:
    return first.size == second.size and ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getbbox() is None


# --- sample ----------------------------------------------------------------------------------------------------------


def test_sample_writes_what_the_engine_draws(segue, model, tmp_path):
    summary = json.loads(segue("sample", "--steps", "4", "--seeds", "7", "--json").stdout)
    expected = Engine.from_pretrained(model).sample(range(5), default("sgg").guidance, steps=4, seeds=7, schedule="native")
    files = sorted((tmp_path / "out").glob("0*.png"))
    assert [file.name for file in files][:2] == ["000-acerites-alba-seed7.png", "001-acerites-crispa-seed8.png"]
    for file, image in zip(files, expected.images, strict=True):
        assert pixels_equal(Image.open(file), image)
    assert {*map(str, files)} < {str(tmp_path / file) for file in summary["files"]}
    assert (summary["labels"], summary["seeds"]) == ([0, 1, 2, 3, 4], [7, 8, 9, 10, 11])
    assert summary["plan"]["cost"]["evaluations"] == expected.plan.cost.evaluations


def test_a_picture_carries_its_parameters_for_other_tools(segue, tmp_path):
    segue("sample", "--steps", "3", "--classes", "3", "--out", "one.png")
    described, pairs = Image.open(tmp_path / "one.png").info["parameters"].split("\n")
    assert described == NAMES[3]
    assert pairs.startswith("Steps: 3, Sampler: euler, Schedule type: linear, ")
    assert f'Guidance: "{default("sgg").text}", Seed: 0, Size: 12x8, Model hash: ' in pairs


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["-g", "none"], None),
        (["-g", "cfg", "--scale", "4", "--window", "sigma:0.2,0.8"], "cfg:scale=4,window=sigma:0.2,0.8"),
        (["-g", "slg", "--layers", "1,2", "--weight", "0.5", "--delta", "0.1"], "slg:weight=0.5,layers=1,2,delta=0.1"),
        (["-g", "exit", "--exit-layer", "4", "--weight", "1"], "exit:weight=1,layer=4"),
        (["-g", "sgg:scale=2,weight=1", "--switch", "0.6"], "sgg:scale=2,weight=1,layers=7,8,switch=0.6"),
        (["-g", "cfg:scale=2 + exit:weight=1,layer=4"], "cfg:scale=2+exit:weight=1,layer=4"),
    ],
)
def test_flags_say_the_same_as_the_rule_text(segue, model, tmp_path, flags, rule):
    segue("sample", "--classes", "1", "--steps", "4", "--out", "one.png", *flags)
    guidance = parse_rule(rule).guidance if rule else None
    expected = Engine.from_pretrained(model).sample([1], guidance, steps=4, seeds=[0])
    assert pixels_equal(Image.open(tmp_path / "one.png"), expected.images[0])


def test_a_number_or_a_rule_for_each_picture(segue, model, tmp_path):
    """A picture is what its own number draws, and says so; a list for another number of pictures is refused at once."""
    engine = Engine.from_pretrained(model)
    for options in (
        ["-g", "cfg:scale=1,2.5,4"],
        ["-g", "cfg", "--scale", "1,2.5,4"],
        ["-g", "none | cfg:scale=2.5 | cfg:scale=4"],
    ):
        record = json.loads(
            segue("sample", "--classes", "0-2", "--steps", "3", "--out", "new", "--force", "--json", *options).stdout
        )
        for i, scale in enumerate((1.0, 2.5, 4.0)):
            alone = engine.sample([0, 1, 2], CFG(scale), steps=3, seeds=0).images[i]
            assert ImageChops.difference(Image.open(record["files"][i]).convert("RGB"), alone).getextrema() <= ((0, 1),) * 3
    assert record["rule"] == "none | cfg:scale=2.5 | cfg:scale=4"
    for command in ("sample", "compare"):
        rule = ["-g" if command == "sample" else "-r", "cfg:scale=2,3"]
        told = segue(command, "--classes", "0-2", *rule, "--out", "none.png", code=2).stderr
        assert told.strip() == "segue: the rule has numbers for 2 samples, and there are 3"
    told = segue("sample", "-g", "cfg | none", "--scale", "2", code=2).stderr
    assert told.strip() == "segue: scale 2 belongs to one rule, but 'cfg | none' is one for each sample; write it inside"
    assert "uncond (w 1 to 3 by sample)" in " ".join(segue("plan", "-g", "cfg:scale=2,4").stdout.split()).replace("│ ", "")


def test_classes_by_name_and_genus_and_one_class_for_many_seeds(segue):
    chosen = json.loads(segue("sample", "--steps", "1", "--classes", "betulina,Cordatia alba,0", "--json").stdout)
    assert chosen["labels"] == [2, 3, 4, 0]
    many = json.loads(segue("sample", "--steps", "1", "--classes", "2", "--seeds", "3,1-2", "--json").stdout)
    assert (many["labels"], many["seeds"]) == ([2, 2, 2], [3, 1, 2])
    counted = json.loads(segue("sample", "--steps", "1", "--classes", "0,4", "--count", "2", "--seeds", "5", "--json").stdout)
    assert (counted["labels"], counted["seeds"]) == ([0, 0, 4, 4], [5, 6, 7, 8])


def test_a_window_that_selects_nothing_is_a_warning(segue):
    result = segue("sample", "-g", "cfg:window=steps:5,9", "--steps", "2")
    assert (
        f"warning: {default('cfg').text},window=steps:5,9: the window steps 5-9 of uncond selects none of 2 steps"
        in result.stderr
    )


# --- the way back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--max-batch", "2"],
        ["-g", "cfg:scale=2,delta=0.3,window=fraction:0,0.7 + exit:weight=1,layer=4", "--schedule", "shift=2"],
        ["--solver", "euler-maruyama", "--dtype", "bfloat16"],
        ["--solver", "dpm++2m"],
        ["-g", "cfg:scale=1,2,1,4,3 + rescale:phi=0,0.1,0.2,0.3,0.4", "--max-batch", "2"],
        ["-g", "cfg:scale=1,2,1,4,3", "--max-batch", "1"],
        ["-g", "none | exit:weight=1,layer=4 | sgg:scale=2 | cfg:scale=2 | none", "--max-batch", "3"],
        ["--solver", "unipc(order=3, kind=bh1)", "--schedule", "karras"],
        ["--solver", "dpm++3m-sde(eta=0.5)", "--schedule", "beta"],
    ],
)
def test_every_picture_is_drawn_again_identically_from_itself(segue, tmp_path, options):
    segue("sample", "--steps", "5", "--seeds", "11", *options)
    for source in ("004-cordatia-alba-seed15.png", "grid.png"):
        result = json.loads(segue("sample", "--from", f"out/{source}", "--out", "again", "--json").stdout)
        assert result["identical"] is True
        first, second = Image.open(tmp_path / "out" / source), Image.open(tmp_path / "again" / source)
        assert pixels_equal(first, second)
        assert first.info["segue"] == second.info["segue"]


def test_redrawing_tells_when_the_pixels_are_not_those_of_the_file(segue, tmp_path):
    segue("sample", "--steps", "2", "--classes", "0", "--out", "one.png")
    original = Image.open(tmp_path / "one.png")
    touched = original.copy()
    touched.putpixel((0, 0), tuple(255 - value for value in original.getpixel((0, 0))))
    info = PngInfo()
    info.add_text("segue", original.info["segue"])
    touched.save(tmp_path / "touched.png", pnginfo=info)
    result = segue("sample", "--from", "touched.png", "--out", "again.png")
    assert "again.png: differs from touched.png" in result.stdout
    assert pixels_equal(Image.open(tmp_path / "again.png"), original)


def test_a_record_of_another_machine_may_differ_in_the_last_digits_of_its_plan(segue, tmp_path):
    segue("sample", "--steps", "3", "--classes", "0", "--out", "one.png")
    picture = Image.open(tmp_path / "one.png")
    for scale, code in ((1 + 1e-15, 0), (1 + 1e-6, 2)):
        record = json.loads(picture.info["segue"])
        for table in ("sigmas", "weights", "solver_rows"):
            record["plan"][table] = (torch.tensor(record["plan"][table], dtype=torch.float64) * scale).tolist()
        info = PngInfo()
        info.add_text("segue", json.dumps(record))
        picture.save(tmp_path / "elsewhere.png", pnginfo=info)
        segue("sample", "--from", "elsewhere.png", "--out", "again.png", code=code)


def test_a_record_finds_the_same_weights_elsewhere_and_refuses_others(segue, model, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(model.read_bytes())
    segue("sample", "--steps", "2", "--classes", "0", "--out", "one.png", "--model", str(moved))
    moved.rename(tmp_path / "again.safetensors")
    segue("sample", "--from", "one.png", "--out", "two.png", code=2)
    segue("sample", "--from", "one.png", "--out", "two.png", "--model", "again.safetensors")
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    result = segue("sample", "--from", "one.png", "--out", "three.png", "--model", str(other), code=2)
    assert "was drawn by weights" in result.stderr
    assert not (tmp_path / "three.png").exists()


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_draws_every_rule_from_the_same_noise(segue, model, tmp_path):
    rules = ["none", "sgg-exit", "cfg:scale=2+slg:weight=1,layers=7"]
    flags = [word for rule in rules for word in ("-r", rule)]
    printed = json.loads(segue("compare", *flags, "--steps", "3", "--zoom", "2", "--out", "sheets/a.png", "--json").stdout)
    stored = json.loads((tmp_path / "sheets/a.json").read_text())
    assert {name: printed[name] for name in stored} == stored
    assert stored["labels"] == [0, 1, 2, 3, 4]
    engine = Engine.from_pretrained(model)
    sheet = Image.open(tmp_path / "sheets/a.png")
    for text, entry in zip(rules, stored["rules"], strict=True):
        guidance = parse_rule(text, "herbarium").guidance
        run = engine.sample(range(5), guidance, steps=3, seeds=0)
        assert entry["plan"]["cost"]["evaluations"] == run.plan.cost.evaluations
        assert entry["seconds"] > 0
        for image in run.images:
            assert contains(sheet, image.resize((24, 16), Image.Resampling.NEAREST))


def contains(sheet: Image.Image, part: Image.Image) -> bool:
    """Whether ``part`` lies somewhere in ``sheet``."""
    whole = torch.frombuffer(bytearray(sheet.convert("RGB").tobytes()), dtype=torch.uint8).view(sheet.height, sheet.width, 3)
    piece = torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8).view(part.height, part.width, 3)
    corners = (whole == piece[0, 0]).all(-1).nonzero().tolist()
    return any(torch.equal(whole[y : y + part.height, x : x + part.width], piece) for y, x in corners)


def test_compare_prints_cost_and_seconds_of_each_rule(segue):
    result = segue("compare", "--steps", "4", "--classes", "0")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["none", *(default(rule).text for rule in ("cfg", "slg", "sgg"))]
    assert "1 picture by 4 rules in" in lines[-1]


# --- plan and doctor -------------------------------------------------------------------------------------------------


def test_plan_is_the_engines_plan(segue, model):
    result = json.loads(segue("plan", "-g", "sgg-exit", "--steps", "9", "--solver", "heun", "--json").stdout)
    plan = Engine.from_pretrained(model).plan(default("sgg-exit").guidance, steps=9, solver="heun")
    assert result.pop("rule") == default("sgg-exit").text and result.pop("notes") == []
    assert result == json.loads(json.dumps(plan_dict(plan)))


def test_plan_of_a_published_size_needs_no_weights(segue):
    result = json.loads(segue("plan", "--model", "sit-xl/2-512", "-g", "cfg:scale=4", "--steps", "10", "--json").stdout)
    assert (result["model"], result["height"]) == ("SiT-XL/2-512", 64)
    assert result["cost"]["relative"] == pytest.approx(2, abs=0.01)


def test_a_size_may_end_with_a_slash_as_a_folder_does(segue):
    for name in ("sd3.5-medium", "DiT-XL/2"):
        assert segue("plan", "--model", f"{name}/").stdout == segue("plan", "--model", name).stdout
    told = segue("sample", "--model", "sd3.5-medium/", code=2).stderr
    assert told == "segue: sd3.5-medium/ is a size, which segue plan takes; drawing needs a checkpoint\n"


def test_a_plan_says_what_the_weight_of_a_scale_is(segue, model):
    legend = "w: the added weight of a branch, for cfg its scale less 1"
    for rule, count in (("cfg:scale=3", 1), ("slg:weight=1,layers=7", 0)):
        assert segue("plan", "-g", rule).stdout.count(legend) == count
        assert str(Engine.from_pretrained(model).plan(rule)).count(legend) == count


def test_plan_shows_every_run_the_cost_and_the_warnings(segue):
    shown = segue("plan", "-g", "cfg:scale=3,window=steps:1-2 + slg:weight=1,layers=7,window=steps:5-8", "--steps", "6").stdout
    assert "cond | uncond (w 2)" in shown
    assert "total: 6 calls, 10 evaluations" in shown
    assert "warning: steps 3 to 4 lie between two windows and are unguided" in shown
    assert "warning: the window steps 5-8 of cond skip 7 reaches past the last step, 6" in shown


def test_doctor_reports_versions_devices_and_choices(segue):
    found = json.loads(segue("doctor", "--json").stdout)
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert len([name for name in found["devices"] if name.startswith("cuda")]) == torch.cuda.device_count()
    assert "attention" in found["kernels"]
    assert "herbarium" in found["models"]
    assert torch.__version__.split("+")[0] in segue("doctor").stdout


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(segue, command):
    assert segue(command, "--help").stdout.count(f"segue {command}") > 1


def test_help_does_not_wait_for_torch():
    code = "import sys; from segue.__main__ import app; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_module_runs_as_a_program(model, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "segue", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    good = run("sample", "--model", str(model), "--steps", "4", "--classes", "1", "--out", "one.png")
    assert (good.returncode, good.stderr) == (0, "")
    assert Image.open(tmp_path / "one.png").size == (12, 8)
    bad = run("sample", "--model", str(model), "--steps", "0")
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "segue: steps must be at least 1, got 0\n")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("a fault"), 1)])
def test_an_interrupted_or_failed_run_writes_nothing(segue, tmp_path, monkeypatch, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Engine, "sample", fail)
    result = segue("sample", code=code)
    assert list(tmp_path.iterdir()) == []
    assert result.stderr == ("segue: interrupted\n" if code == 130 else "")
    assert code != 1 or result.exception is error


def test_a_result_that_is_not_finite_is_one_sentence(segue, tmp_path):
    model = save_tiny(tmp_path / "nan.safetensors")
    network, _ = load_network(model)
    network.blocks[7].mlp.fc2.bias.data.fill_(float("nan"))
    save_model(network, model)
    result = segue("sample", "--model", str(model), "--check-finite", "--classes", "0", code=1)
    assert result.stderr.startswith("segue: the latent is not finite after call 1 of 28 (sigma 1.0000): first in branch cond")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
