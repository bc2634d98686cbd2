"""Runs of distillation: a resumed one equals one that was not, bit for bit; what does not fit is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_sit
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.engine import Engine
from segue.models.adapted import AdapterSpec
from segue.models.adapter_file import read_adapter
from segue.models.low_rank import LowRankSpec
from segue.models.weights import save_model
from segue.training.distill.assembly import DEFAULT_SETTINGS, Teaching, make_trainer, resumed_teaching
from segue.training.distill.spec import TrajectorySpec

SETTINGS = replace(DEFAULT_SETTINGS, steps=5, batch_size=3, learning_rate=1e-2, warmup=1, checkpoint_every=2, ema=0.5)


@pytest.fixture
def model(tmp_path, seed):
    """A tiny network in a file."""
    path = tmp_path / "tiny.safetensors"
    save_model(tiny_sit(seed), path)
    return path


def teaching_of(model, **changes):
    adapter = AdapterSpec(LowRankSpec(2, targets=("fc1", "adaLN")), (0.0, 2.0))
    values = {"rule": "cfg:scale=2", "adapter": adapter, "trajectories": TrajectorySpec(4, own=0.5, levels=2, weights="effect")}
    return Teaching(str(model), **values | changes)


def test_a_resumed_distillation_equals_one_that_was_not(tmp_path, model):
    teaching, steps = teaching_of(model), []

    def until(last):
        return lambda trainer, losses: steps.append(trainer.step) or trainer.step < last

    whole = make_trainer(teaching, SETTINGS, tmp_path / "whole", "new")
    assert whole.run()
    stopped = make_trainer(teaching, SETTINGS, tmp_path / "parts", "new")
    assert not stopped.run(until(3))
    again, values = resumed_teaching(tmp_path / "parts")
    assert again == teaching
    resumed = make_trainer(again, SETTINGS.from_dict(values), tmp_path / "parts", "resume")
    assert resumed.step == 3 and resumed.run()
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["networks"]["main"] for name in ("parts", "whole")]
    for part in ("weights", "average"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    assert not any(name.startswith("blocks") and "parametrizations" not in name for name in states[0]["weights"])


def test_the_adapter_of_a_run_is_one_of_the_engine(tmp_path, model):
    trainer = make_trainer(teaching_of(model), SETTINGS, tmp_path / "run", "new")
    trainer.run()
    facts = read_adapter(tmp_path / "run" / "model.safetensors").facts
    assert (facts.rule, facts.steps, facts.solver) == ("cfg:scale=2", 4, "euler")
    engine = Engine.from_pretrained(model, adapter=tmp_path / "run", adapter_scale=1.5, device="cpu")
    with trainer.average.in_place():
        x, labels = engine.draw_noise(engine.plan("none", 4), [1, 2]), torch.tensor([0, 3])
        expected = trainer.model(x, torch.full((2,), 0.7), labels, torch.full((2,), 1.5))
    found = engine.models["main"](x, torch.full((2,), 0.7), labels)
    # the adapter is kept in half precision: a relative rounding of 5e-4 of what it adds, which is less than the output
    assert (found - expected).abs().max() < 5e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompts": "prompts.txt"}, "is a class-label model and takes no prompts"),
        ({"height": 64}, "takes no height"),
        ({"rule": "none"}, "nothing to distill"),
        ({"rule": "cfg:scale=2 | cfg:scale=3"}, "takes one rule"),
        ({"adapter": AdapterSpec(LowRankSpec(40))}, "rank must be at most 32"),
        ({"trajectories": TrajectorySpec(4, solver="heun", levels=2)}, "one call a step"),
        ({"reading": {"exit_layer": 3}}, "states its own spec"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_anything_is_written(tmp_path, model, changes, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(teaching_of(model, **changes), SETTINGS, tmp_path / "run", "new")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_options_alone(tmp_path, model):
    out = tmp_path / "run"
    small = ["--sampling-steps", "4", "--levels", "2", "--batch-size", "2", "--rank", "2", "--device", "cpu"]
    runner = CliRunner()
    begun = runner.invoke(
        app, ["distill", str(model), "-g", "cfg:scale=2", "--out", str(out), "--steps", "2", *small, "--json"]
    )
    assert begun.exit_code == 0, begun.output
    summary = json.loads(begun.stdout)
    assert (summary["step"], summary["finished"], summary["spec"]["rule"]) == (2, True, "cfg:scale=2")
    again = runner.invoke(app, ["distill", str(model), "--out", str(out), "--steps", "2", *small])
    assert again.exit_code == 2 and "already holds a run" in again.output
    changed = runner.invoke(app, ["distill", "--out", str(out), "--resume", "--rank", "4"])
    assert "leave 4 (rank) out" in changed.output
    other = runner.invoke(app, ["distill", "--out", str(out), "--resume", "--batch-size", "4", "--device", "cpu"])
    assert "another batch_size" in other.output
    further = runner.invoke(app, ["distill", "--out", str(out), "--resume", "--steps", "3", "--device", "cpu"])
    assert further.exit_code == 0, further.output
    assert [json.loads(row)["step"] for row in (out / "log.jsonl").read_text().splitlines()] == [2, 3]
    with pytest.raises(ValueError, match="there is no run in"):
        resumed_teaching(tmp_path / "none")


def test_weights_that_changed_under_a_run_are_refused(tmp_path, model, seed):
    teaching = teaching_of(model)
    make_trainer(teaching, SETTINGS, tmp_path / "run", "new").save()
    save_model(tiny_sit(seed + 1), model)
    with pytest.raises(ValueError, match="holds a run with another weights"):
        make_trainer(teaching, SETTINGS, tmp_path / "run", "resume")
