"""The settings of an objective: published numbers, what is refused, and writing them down."""

import json
import math

import pytest

from segue.training.objectives.objective import Objective

PUBLISHED = {"none": 0.0, "uncond": 0.5, "layer-skip": 0.3, "branch": 0.3, "separate": 0.3, "segmented": 0.6}


@pytest.mark.parametrize("weak", PUBLISHED)
def test_published_weights(weak):
    objective = Objective.published(weak)
    assert (objective.weight, objective.tau, objective.high, objective.power) == (PUBLISHED[weak], 0.2, 1.0, 0.0)
    assert objective.effective_scale == pytest.approx(1 / (1 - PUBLISHED[weak]))
    assert Objective.published(weak, weight=0.0).weight == 0


def test_the_weight_grows_with_a_power_of_the_progress():
    objective = Objective("uncond", 0.5, power=2.0)
    assert [objective.weight_at(progress) for progress in (0.0, 0.5, 1.0)] == [0.0, 0.125, 0.5]
    assert Objective("uncond", 0.5).weight_at(0.0) == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weak": "cfg"}, "weak must be one of none, uncond, layer-skip, branch, separate, segmented, got 'cfg'"),
        ({"mode": "code"}, "mode must be one of paper, released, got 'code'"),
        ({"target": "raw"}, "target must be one of extrapolated, inverse, got 'raw'"),
        ({"path": "vp"}, "path must be one of linear, cosine, got 'vp'"),
        ({"time": "cubic"}, "time must be one of uniform, log-normal, got 'cubic'"),
        ({"weak": "uncond", "weight": 1.0}, r"less than 1: the effective scale is 1 / \(1 - weight\), got 1.0"),
        ({"weak": "uncond", "weight": -0.1}, "at least 0 and less than 1.*got -0.1"),
        ({"weak": "uncond", "weight": math.nan}, "got nan"),
        ({"weight": 0.5}, "weight 0.5 needs a weak signal, one of uncond"),
        ({"power": -1}, "power must be finite and at least 0, got -1.0"),
        ({"tau": 1.5}, r"tau must be a noise level in \[0, 1\], got 1.5"),
        ({"high": -0.5}, r"high must be a noise level in \[0, 1\], got -0.5"),
        ({"time_mean": math.inf}, "time_mean must be finite, got inf"),
        ({"time_std": 0}, "time_std must be finite and positive, got 0.0"),
        ({"companion_width": 0}, r"companion_width must be in \(0, 1\], got 0.0"),
        ({"weak": "layer-skip", "layers": (-1,)}, "layers must be block numbers from 0"),
        ({"weak": "branch", "layers": (1,)}, r"layers \(1,\) belongs to layer-skip, not to branch"),
        ({"weak": "branch", "layer": 0}, "layer must be at least 1"),
        ({"weak": "uncond", "layer": 2}, "layer 2 belongs to branch and segmented, not to uncond"),
    ],
)
def test_bad_settings_are_refused_with_the_value_and_what_is_accepted(changes, message):
    with pytest.raises(ValueError, match=message):
        Objective(**changes)


@pytest.mark.parametrize("changes", ({"weight": "0.5"}, {"tau": True}, {"weak": "layer-skip", "layers": 3}, {"layer": 1.5}))
def test_what_is_no_number_is_refused(changes):
    with pytest.raises(TypeError, match="must be"):
        Objective(**changes)


def test_an_objective_survives_being_written_down():
    objective = Objective("layer-skip", 0.25, power=0.5, layers=(4, 2, 4), path="cosine", time="uniform")
    assert objective.layers == (2, 4)
    assert Objective.from_dict(json.loads(json.dumps(objective.to_dict()))) == objective
    assert Objective.from_dict({"weak": "segmented"}) == Objective.published("segmented")
    assert Objective.from_dict({}) == Objective()
    with pytest.raises(ValueError, match="no setting 'scale' of an objective"):
        Objective.from_dict({"scale": 2.0})
