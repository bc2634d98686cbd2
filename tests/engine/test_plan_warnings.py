"""What is odd about a plan is a Python warning of the line that asked for the run, once; the command line says it itself."""

import warnings

import pytest
from tiny_checkpoint import save_tiny
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue import CFG, Engine, PlanWarning, SkipLayer, Window
from segue.__main__ import app

ODD = CFG(3.0, window=Window.steps(1, 2)) + SkipLayer(2.0, (1,), window=Window.steps(3, 4))  # a recipe for four steps


@pytest.fixture(scope="module")
def by_label():
    return lambda engine=Engine(tiny_sit(), device="cpu"), steps=6: engine.sample([0, 1], ODD, steps=steps)  # noqa: B008


@pytest.fixture(scope="module")
def by_prompt():
    engine = Engine.from_pipe(tiny_pipeline(num_layers=2, dual_attention_layers=(0,)))
    return lambda steps=6: engine.generate("leaf", "dull", ODD, steps=steps, output="latent")


@pytest.mark.parametrize("how", ["by_label", "by_prompt"])
def test_a_recipe_for_fewer_steps_is_warned_of_once_where_it_is_run(how, request):
    draw = request.getfixturevalue(how)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            run = draw()
    told = [item for item in caught if item.category is PlanWarning]
    assert tuple(str(item.message) for item in told) == run.plan.warnings
    assert run.plan.warnings == ("steps 5 to 6 come after the last window and are unguided",)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(steps=4)  # nothing odd, nothing said


def test_a_warning_may_be_made_an_error_before_any_network_call(by_label, monkeypatch):
    monkeypatch.setattr("segue.engine.core.run_program", lambda *_: pytest.fail("the network was called"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        with pytest.raises(PlanWarning, match="steps 5 to 6"):
            by_label()


def test_a_plan_alone_is_silent_and_the_command_line_says_it_once(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Engine(tiny_sit(), device="cpu").plan(ODD, steps=6).warnings
    model = save_tiny(tmp_path / "tiny.safetensors")
    options = ["--steps", "4", "--classes", "0", "-g", "cfg:scale=2,window=steps:1-2", "--out", str(tmp_path / "a.png")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = CliRunner().invoke(app, ["sample", "--model", str(model), *options])
    assert result.stderr.count("steps 3 to 4 come after the last window") == 1
    assert [item for item in caught if item.category is PlanWarning] == []


def test_a_denoiser_tells_what_is_odd_when_it_is_made():
    """The levels that it is made for, and usual numbers in its rule."""
    engine = Engine(tiny_sit(), device="cpu")
    with pytest.warns(PlanWarning, match="steps 5 to 6 come after the last window"):
        engine.denoiser(ODD, [0], schedule=[1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0])
    with pytest.warns(PlanWarning, match="no tuned numbers of cfg for tiny, using scale=1.5"):
        engine.denoiser("cfg", [0])
