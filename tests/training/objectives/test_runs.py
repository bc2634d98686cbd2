"""Whole runs with a weak signal: resumed exactly, with the smaller network beside, under the settings they were begun with."""

import json
from dataclasses import replace

import pytest
import torch
from training_fixtures import TINY_SPEC, tiny_settings

from segue.models.weights import load_network
from segue.training.loop import Trainer
from segue.training.objectives.objective import Objective
from segue.training.settings import TrainSettings

OBJECTIVES = {
    "segmented": Objective("segmented", 0.5, power=1.0, layer=1, tau=0.4),
    "separate": Objective("separate", 0.3, companion_depth=0.4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_with_a_weak_signal_equals_one_that_never_stopped(name, tmp_path):
    settings = tiny_settings(steps=6, objective=OBJECTIVES[name])
    whole = Trainer(TINY_SPEC, settings, tmp_path / "whole")
    assert whole.run()
    Trainer(TINY_SPEC, settings, tmp_path / "parts").run(lambda trainer, losses: trainer.step < 4)
    record = json.loads((tmp_path / "parts" / "run.json").read_text())
    restored = TrainSettings.from_dict(record["settings"])
    assert restored.objective == OBJECTIVES[name]
    resumed = Trainer(TINY_SPEC, restored, tmp_path / "parts", "resume")
    assert resumed.run()
    for network in whole.trained:
        ours, theirs = (trainer.trained[network].network.state_dict() for trainer in (whole, resumed))
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    if name == "separate":
        assert load_network(tmp_path / "whole" / "companion.safetensors")[0].spec.name == "tiny-herbarium-weak"


def test_a_run_is_not_resumed_with_another_objective(tmp_path):
    settings = tiny_settings(steps=2, objective=OBJECTIVES["segmented"])
    Trainer(TINY_SPEC, settings, tmp_path).run(lambda trainer, losses: False)
    other = replace(settings, objective=replace(settings.objective, weight=0.4))
    with pytest.raises(ValueError, match="another objective"):
        Trainer(TINY_SPEC, other, tmp_path, "resume")
