"""Each example runs as it is, and what it says is true."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_pages import ROOT
from PIL import Image

import segue

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that examples run in: one for all, so that the tiny pipelines are written once."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs an example as ``python examples/NAME.py`` does; gives its variables and what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run_example(name: str) -> tuple[dict, str]:
        found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return found, capsys.readouterr().out

    return run_example


def drawn(name: str) -> np.ndarray:
    return np.asarray(Image.open(Path("out/examples") / name))


def test_each_script_is_in_the_table_and_in_these_tests():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"^\| \[(\w+)\.py\]", table, re.MULTILINE)) == scripts
    tested = set(re.findall(r'run\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert tested == scripts


def test_first_picture(run):
    found, said = run("first_picture")
    rule = segue.parse_rule("sgg", found["engine"].spec).guidance
    alone = found["engine"].sample([9], rule, steps=16, seeds=[1])
    assert [line.split(": ")[0] for line in said.splitlines()] == ["none", "cfg", "sgg"]
    assert f"{alone.plan.cost.relative:.2f} times" in said.splitlines()[2]
    name = Path(found["files"][1]).name
    assert (drawn(f"sgg/{name}") == np.asarray(alone.images[0])).all()
    assert (drawn(f"none/{name}") != np.asarray(alone.images[0])).any()


def test_own_rule(run):
    found, said = run("own_rule")
    assert "made of its parts it draws the same: True" in said
    assert "cond | parent (w 1 to 0.6)" in said
    unguided = found["engine"].sample([3], steps=10, seeds=[7]).images[0]
    assert (drawn("own-rule.png") != np.asarray(unguided)).any()


def test_sweep(run):
    found, said = run("sweep")
    alone = found["engine"].sample([9], segue.CFG(4.0), steps=10, seeds=[2]).images[0]
    sheet, size = drawn("sweep.png")[::3, ::3], alone.height
    assert (sheet[2 * size :, 2 * size : 3 * size] == np.asarray(alone)).all()
    assert [line.split(":")[0] for line in said.splitlines()] == ["scale 1", "scale 1.5", "scale 4"]


def test_weak_network(run):
    found, said = run("weak_network")
    engine = found["engine"]
    weak = engine.sample([3], found["small_unconditional"], steps=10, seeds=[0])
    assert (drawn("small-unconditional.png") == np.asarray(weak.images[0])).all()
    assert "network weak" in said and 1 < weak.plan.cost.relative < 1.5


def test_other_sampler(run):
    found, _ = run("other_sampler")
    torch.testing.assert_close(found["latents"], found["own"].latents, rtol=0, atol=1e-4)  # two loops of 12 steps in fp32


def test_tiny_pipelines(run):
    _, said = run("tiny_pipelines")
    specs = [segue.Engine.from_pretrained(folder, device="cpu").spec for folder in said.split()]
    assert [spec.depth for spec in specs] == [12, 12]


def test_attach_to_diffusers(run):
    found, said = run("attach_to_diffusers")
    assert "the pipeline draws as before: True" in said
    assert "total: 8 calls, 16 evaluations" in said
    assert (drawn("attached.png") != np.asarray(found["before"])).any()


def test_dit_with_vae(run):
    found, said = run("dit_with_vae")
    assert (drawn("dit-class360.png") == np.asarray(found["engine"].decode(found["run"].latents)[1])).all()
    assert "cond | uncond (w 3)" in said
