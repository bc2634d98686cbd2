"""Windows, schedules, warnings and costs."""

import math

import numpy as np
import pytest
import torch
from onednn_flops import COUNTED
from tiny_models import tiny_sit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segue import (
    CFG,
    SGG,
    AutoGuidance,
    CFGZeroStar,
    EarlyExit,
    Engine,
    Rescale,
    SkipLayer,
    Window,
    compile_plan,
    flow_shift,
    from_sigmas,
    linear,
    resolution_shift,
)
from segue.engine.planning.plan_text import plan_dict
from segue.engine.planning.solvers import SOLVERS
from segue.models.sit import SiT
from segue.models.spec import SiTSpec


def steps_of(plan, branch: int) -> list[int]:
    return [int(step) + 1 for step in np.unique(plan.steps[plan.weights[:, branch] != 0])]


def spec(**changes):
    return tiny_sit(**changes).spec


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window.steps(1, 14), range(1, 15)),
        (Window.steps(15, 28), range(15, 29)),
        (Window.fraction(0.0, 0.5), range(1, 15)),
        (Window.fraction(0.5, 1.0), range(15, 29)),
        (Window.sigma(0.5, 1.0), range(1, 15)),  # 1 - 14 / 28 is 0.5 exactly, and the window is open below
        (Window.sigma(0.0, 0.5), range(15, 29)),
    ],
)
def test_windows_select_the_steps_they_name(window, expected):
    plan = compile_plan(CFG(2.0, window=window), linear(28), "euler", spec())
    assert steps_of(plan, 0) == list(expected)


def test_both_stages_of_a_heun_step_follow_one_rule():
    plan = compile_plan(CFG(2.0, window=Window.sigma(0.5, 1.0)), linear(28), "heun", spec())
    assert plan.calls == 2 * 28 - 1
    assert [bool(w) for w in plan.weights[:, 0]] == [step < 14 for step in plan.steps]


def test_linear_weights_run_from_plus_delta_to_minus_delta():
    plan = compile_plan(SkipLayer(3.0, (1,), delta=0.5, window=Window.steps(3, 7)), linear(10), "euler", spec())
    assert plan.weights[2:7, 0].tolist() == pytest.approx([3.5, 3.25, 3.0, 2.75, 2.5])


def test_warnings_name_empty_windows_holes_overlaps_and_windows_past_the_end():
    def warnings(rule, steps=10):
        return " ".join(compile_plan(rule, linear(steps), "euler", spec()).warnings)

    assert "selects none of 10 steps" in warnings(CFG(2.0, window=Window.steps(11, 12)))
    assert "steps 4 to 6 lie between two windows" in warnings(
        CFG(2.0, window=Window.steps(1, 3)) + SkipLayer(1.0, (1,), window=Window.steps(7, 10))
    )
    assert "overlap in 2 steps" in warnings(
        CFG(2.0, window=Window.steps(1, 5)) + SkipLayer(1.0, (1,), window=Window.steps(4, 10))
    )
    assert "reaches past the last step" in warnings(CFG(2.0, window=Window.steps(5, 28)))
    assert "steps 29 to 50 come after the last window" in warnings(CFG(2.0, window=Window.steps(1, 28)), steps=50)
    assert "after the last" not in warnings(CFG(2.0, window=Window.sigma(0.5, 1.0)))
    assert "changes nothing" in warnings(SkipLayer(1.0, ()))
    assert warnings(SGG(CFG(2.0), SkipLayer(1.0, (1,)), 0.5)) == ""


def test_warnings_name_corrections_without_effect_or_without_a_step_left():
    def warnings(rule):
        return " ".join(compile_plan(rule, linear(5), "heun", spec()).warnings)

    for rule in (Rescale(0.7), SkipLayer(1.0, ()) + Rescale(0.7)):
        assert "RescaledDeviation (phi 0.7) corrects what terms add, and the rule has none that add" in warnings(rule)
    for steps in (5, 10**30):
        assert "leaves none of 5 steps a velocity: nothing is evaluated" in warnings(CFG(3.0) + CFGZeroStar(steps))
    assert warnings(CFG(3.0) + CFGZeroStar(4)) == warnings(CFG(3.0) + Rescale(0.7)) == ""


def test_schedules_follow_their_formulas():
    t = np.linspace(1, 0, 29)
    assert flow_shift(28, 3.0).sigmas == pytest.approx(3 * t / (1 + 2 * t))
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    inner = t[1:-1]
    assert resolution_shift(28, 1024).sigmas[1:-1] == pytest.approx(math.exp(mu) / (math.exp(mu) + (1 / inner - 1)))
    assert from_sigmas([1, 0.5, 0.1]).sigmas == (1.0, 0.5, 0.1)
    assert linear(4).truncate(0.5).sigmas == (0.5, 0.25, 0.0)


@pytest.mark.parametrize(
    "rule",
    [None, CFG(2.0), SGG(CFG(2.0), SkipLayer(1.0, (1, 3)), 0.5), CFG(2.0) + EarlyExit(1.0, 2), CFG(2.0, channels=2)],
    ids=["none", "cfg", "sgg", "exit", "channels"],
)
def test_planned_flops_equal_counted_flops(rule):
    """PyTorch's own counter sees the products that a run performs; the plan must have foreseen each of them."""
    engine = Engine(tiny_sit(), device="cpu")
    plan = engine.plan(rule, steps=4)
    program = engine.load(plan, [1, 2, 3], [0, 1, 2], torch.randn(3, 4, 6, 10))
    # the counter knows the two products of attention only when they are spelled out
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        for live in plan.live:
            program.step(live)
    assert counter.get_total_flops() == 3 * plan.cost.flops


def test_unguided_costs_one_and_the_ratio_follows_the_blocks():
    unguided = compile_plan(CFG(1.0), linear(28), "euler", spec())
    assert unguided.cost.relative == 1.0
    assert unguided.cost.evaluations == 28
    cfg = compile_plan(CFG(2.0), linear(28), "euler", spec())
    assert cfg.cost.evaluations == 56
    assert 1.9 < cfg.cost.relative < 2.0  # the two branches share the embedding and the last projection


@pytest.mark.parametrize(
    ("tokens_side", "total", "suffix"), [(32, 0.2372, 0.643), (64, 1.0491, 0.643)], ids=["DiT-XL/2 256", "DiT-XL/2 512"]
)
def test_the_cost_model_gives_the_published_figures_of_dit_xl(tokens_side, total, suffix):
    xl = SiTSpec("XL/2", 4, tokens_side, tokens_side, 2, 1152, 28, 16, "velocity", "sigma")
    assert xl.forward_flops(tokens_side, tokens_side) / 1e12 == pytest.approx(total, rel=2e-3)
    plan = compile_plan(SkipLayer(1.0, (7, 8, 9)), linear(1), "euler", xl)
    assert plan.cost.relative - 1 == pytest.approx(suffix, abs=2e-3)
    half = CFG(4.5, window=Window.steps(1, 14)) + SkipLayer(3.0, (7, 8, 9), window=Window.steps(15, 28))
    assert compile_plan(half, linear(28), "euler", xl).cost.relative == pytest.approx(1.821, abs=2e-3)


@pytest.mark.parametrize(
    "changes", [{"channels": 3}, {"num_classes": 4, "parents": (0, 0, 1, 1)}, {"parents": ()}], ids=lambda c: "-".join(c)
)
def test_a_weak_network_of_another_kind_is_refused(changes):
    """Other classes too: the label of one network would be another class, or none, of the other."""
    with pytest.raises(ValueError, match="network 'weak' differs from the main one"):
        compile_plan(AutoGuidance(1.0), linear(4), "euler", {"main": spec(), "weak": spec(**changes)})


def test_text_and_dictionary_tell_the_same_cost():
    plan = compile_plan(SGG(CFG(2.0), SkipLayer(1.0, (1,)), 0.5), linear(28), "euler", spec())
    record = plan_dict(plan)
    assert f"{record['cost']['evaluations']} evaluations" in str(plan)
    assert len(record["weights"]) == len(record["solver_rows"]) == plan.calls
    assert SiT(plan.spec).spec == plan.spec


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if not SOLVERS[solver].stochastic])
def test_solver_rows_keep_a_point_mass(solver):
    """If the data is one point, the exact velocity brings every solver to that point, whatever the levels."""
    plan = compile_plan(CFG(1.0), flow_shift(9, 2.0), solver, spec())
    y, left = 1.7, [0.0] * 3  # data at 0: the velocity at (y, sigma) is y / sigma
    for sigma, (_, a, b, c, _, e, f, *earlier) in zip(plan.sigmas, plan.table, strict=True):
        v = y / sigma
        kept = sum(weight * before for weight, before in zip((c, *earlier), left, strict=False))
        y, left = a * y + b * v + kept, [e * y + f * v, *left[:2]]
    assert abs(y) < 1e-12
