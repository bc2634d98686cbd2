"""fp8 from the command line, and in a pipeline of diffusers."""

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny
from typer.testing import CliRunner

from segue import CFG, Engine
from segue.__main__ import app
from segue.engine.images import read_png, save_png
from segue.engine.linears import LINEARS
from segue.kernels.contracts import FP8_STEP

# Both factors of every product are off by at most FP8_STEP; guidance extrapolates from the difference of two outputs.
RUN_ERROR = 4 * FP8_STEP


@pytest.fixture
def segue(tmp_path, monkeypatch):
    """Runs a command in an empty folder that holds a tiny model."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny.safetensors")

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


def latents(engine, **options):
    return engine.generate("a leaf", "", CFG(3.0), steps=3, seeds=0, **options).latents


def test_a_picture_records_fp8_and_is_drawn_again_identically(segue):
    drawn = json.loads(
        segue("sample", "--model", "tiny.safetensors", "--linears", "fp8", "--classes", "1", "--steps", "3", "--json").stdout
    )
    assert drawn["origin"]["linears"] == "fp8"
    again = json.loads(segue("sample", "--from", drawn["files"][0], "--out", "again.png", "--json").stdout)
    assert again["identical"] is True and again["origin"]["linears"] == "fp8"
    native = json.loads(segue("sample", "--model", "tiny.safetensors", "--classes", "1", "--steps", "3", "--json").stdout)
    assert native["origin"]["linears"] == "native" and native["origin"]["weights"] != drawn["origin"]["weights"]


def test_a_record_from_before_the_option_is_native(segue):
    """Pictures drawn by earlier versions say nothing of linears."""

    drawn = json.loads(segue("sample", "--model", "tiny.safetensors", "--classes", "1", "--steps", "2", "--json").stdout)[
        "files"
    ][0]
    image, record = read_png(Path(drawn))
    del record["origin"]["linears"]
    save_png(image, Path(drawn), "", record)
    assert json.loads(segue("sample", "--from", drawn, "--out", "again.png", "--json").stdout)["identical"] is True


def test_refusals_are_one_sentence(segue):
    refused = segue("sample", "--model", "tiny.safetensors", "--linears", "int8", code=2)
    assert refused.stderr.strip().endswith("unknown linears 'int8'; known: native, fp8")
    segue("sample", "--model", "tiny.safetensors", "--classes", "1", "--steps", "1", "--out", "one.png")
    refused = segue("sample", "--from", "one.png", "--linears", "fp8", code=2)
    assert "--from takes --linears from the picture; leave 'fp8' out" in refused.stderr


def test_doctor_reports_the_error(segue):
    errors = json.loads(segue("doctor", "--json").stdout)["fp8"]["herbarium"]
    assert 0 < errors["error of a network evaluation"] < 2 * FP8_STEP
    assert 0 < errors["error of a run"] < RUN_ERROR


def test_a_live_pipeline_keeps_its_weights(seed):
    pytest.importorskip("diffusers")
    from tiny_sd3 import tiny_pipeline

    pipe = tiny_pipeline("sd3.5-medium", seed)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    native, fp8 = (Engine.from_pipe(pipe, linears=linears) for linears in LINEARS)
    expected, found = latents(native), latents(fp8)
    assert 0 < (found - expected).norm() < RUN_ERROR * expected.norm()
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
    # 6 blocks of 4 layers for the image, 5 of 4 and a last QKV for the text, 3 second attentions of 2
    assert "linears of main: 51 in fp8" in fp8.explain()
    assert "MB where a pipeline or caller holds the originals" in fp8.explain()


def test_a_saved_pipeline_holds_no_second_copy(tmp_path):
    pytest.importorskip("diffusers")
    from tiny_sd3 import tiny_pipeline

    tiny_pipeline("sd3.5-medium").save_pretrained(tmp_path / "pipeline")
    native, fp8 = (Engine.from_pretrained(tmp_path / "pipeline", device="cpu", linears=linears) for linears in LINEARS)
    assert all(parameter.is_meta for parameter in fp8.pipe.transformer.parameters())
    expected, found = latents(native), latents(fp8)
    assert 0 < (found - expected).norm() < RUN_ERROR * expected.norm()
