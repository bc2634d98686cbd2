"""What is odd about a plan is a Python warning of the line that asked for the run, once; the command line says it itself."""

import re
import warnings

import pytest
import torch
from naive_draws import waving_classifier
from tiny_checkpoint import save_tiny
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue import CFG, GFCG, Engine, FreSca, HiGS, PlanWarning, SkipLayer, SpectralRefine, Window
from segue.__main__ import app
from segue.engine.planning.plan_warnings import already_told

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


RIVAL = GFCG(2.0, classifier=waving_classifier())
IDLE = {  # a rule that acts at no call, what is said of it, and one that acts
    "interval": (
        GFCG(2.0, classifier=waving_classifier(), interval="steps:90,99"),
        "steps 90-99 of the rival label selects none",
        RIVAL,
    ),
    "lag": (RIVAL.within(Window.steps(1, 1)), "chosen at the call before .* none comes before one", RIVAL),
    "higs": (HiGS(2.0, low=0.98, high=0.99), r"no call after the first step has a noise level in \(0.98, 0.99\]", HiGS(2.0)),
    "refine": (SpectralRefine(2.0, high=0.05), "no call has a noise level of at most 0.05", SpectralRefine(2.0)),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_acts_at_no_call_is_told(name):
    """By the noise levels of the run; of a rule that acts nothing is said."""
    idle, told, acting = IDLE[name]
    engine = Engine(tiny_sit(), device="cpu")
    with already_told():
        found, plain = (engine.sample([1], rule, steps=4, seeds=[0]) for rule in (idle, None))
    assert torch.equal(found.latents, plain.latents)
    assert [text for text in found.plan.warnings if re.search(told, text)] and not engine.plan(acting, steps=4).warnings


def test_a_correction_that_another_samples_term_lets_through_is_told():
    rules = [CFG(2.0) + FreSca(1.0, 2.0), SkipLayer(0.5, (1,)) + FreSca(1.0, 2.0)]
    (warning,) = Engine(tiny_sit(), device="cpu").plan(rules, steps=4).warnings
    assert "corrects a term with another condition, and the rule has none: it changes nothing (sample 1)" in warning


def test_latents_that_pure_noise_hides_are_told():
    engine, start = Engine(tiny_sit(), device="cpu"), torch.rand(1, 4, 6, 10)
    with pytest.warns(PlanWarning, match="begins at level 1, pure noise, where what it starts from does not count"):
        engine.sample([0], steps=2, seeds=[0], latents=start)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.sample([0], schedule=[0.9, 0.0], seeds=[0], latents=start)


def test_a_denoiser_tells_what_is_odd_when_it_is_made():
    """The levels that it is made for, and usual numbers in its rule."""
    engine = Engine(tiny_sit(), device="cpu")
    with pytest.warns(PlanWarning, match="steps 5 to 6 come after the last window"):
        engine.denoiser(ODD, [0], schedule=[1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0])
    with pytest.warns(PlanWarning, match="no tuned numbers of cfg for tiny, using scale=1.5"):
        engine.denoiser("cfg", [0])
