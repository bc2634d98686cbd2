"""Training costs: rows of every weak signal, ratios of one round, and what is counted."""

from dataclasses import replace

import pytest

from segue.bench.rows import Environment
from segue.bench.training_cost import PUBLISHED_COST, counted_cost, measure_training, training_steps, training_task
from segue.training.objectives.objective import PUBLISHED_WEIGHTS
from segue.training.objectives.velocity_task import VelocityTask

NOWHERE = Environment("a machine", 1, {}, "none", "pytest")


def test_every_weak_signal_is_measured_against_none(monkeypatch):
    monkeypatch.setattr("segue.bench.training_cost.training_steps", lambda task, settings: lambda: task.objective.weak)
    cost = {weak: 4.0 + number for number, weak in enumerate(PUBLISHED_WEIGHTS)}
    rows = measure_training(NOWHERE, lambda steps: cost[steps()], batch=5, rounds=3)
    relative = {row.variant: row for row in rows if row.metric == "relative"}
    each = {row.variant: row for row in rows if row.metric == "step"}
    assert relative.keys() == each.keys() == PUBLISHED_WEIGHTS.keys()
    for weak, seconds in cost.items():
        assert relative[weak].value == pytest.approx(seconds / cost["none"])
        assert each[weak].value == pytest.approx(seconds / 4)  # a function makes four steps
        assert (weak in PUBLISHED_COST) == bool(relative[weak].note)


def test_counted_costs_follow_from_the_forwards():
    counted = {weak: counted_cost(training_task(weak, 64, "cpu", "float32")[0], 64) for weak in PUBLISHED_WEIGHTS}
    assert counted["none"] == 1
    # a forward is a third of a step; a tenth of the labels are null, and 8.3 % of logit-normal times lie below 0.2
    assert counted["uncond"] == pytest.approx(1 + 0.9 / 3, abs=0.01)
    assert counted["segmented"] == pytest.approx(1 + 0.9 * (1 - 0.083) / 3, abs=0.015)
    assert 1 < counted["branch"] < 1.01
    # layers 5 and 6 of 12 are skipped: the forward runs the five after them
    assert counted["layer-skip"] == pytest.approx(1 + 5 / 12 / 3, abs=0.002)
    assert 1 < counted["separate"] < 1.1


def test_steps_train_the_smaller_network_in_one_of_four(monkeypatch):
    task, settings = training_task("separate", 2, "cpu", "float32")
    task = replace(task, spec=replace(task.spec, dim=32, heads=1, depth=2, patch=8))
    steps, trained, plain = training_steps(task, settings), [], VelocityTask.companion_losses
    monkeypatch.setattr(VelocityTask, "companion_losses", lambda *given: trained.append(1) or plain(*given))
    steps()
    assert len(trained) == 1
