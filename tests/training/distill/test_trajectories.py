"""The states and targets of a distillation: trajectories are the engine's, targets the textbook combination of branches."""

import copy

import pytest
import torch
from tiny_models import tiny_sit

from segue.engine.engine import Engine
from segue.engine.planning.solvers import get_solver
from segue.training.distill.class_student import class_teacher
from segue.training.distill.trajectories import Integration, draw_pairs, solver_rows

LABELS = [0, 4, 5]
# One trajectory by two orders of the same fp32 sums, over at most 7 steps
SAME_TRAJECTORY = 1e-5


def teacher_of(seed, rule, steps=5, solver="euler", **changes):
    engine = Engine(tiny_sit(seed, **changes), device="cpu")
    return engine, class_teacher(engine, engine.plan(rule, steps, solver=solver))


def noise(engine, plan, seeds):
    return engine.draw_noise(plan, seeds)


@pytest.mark.parametrize("solver", ["euler", "ab2", "ddim", "dpm++2m", "dpm++3m", "res_2m"])
def test_a_trajectory_of_the_teacher_is_the_run_of_the_engine(seed, solver):
    engine, teacher = teacher_of(seed, "cfg:scale=3", 7, solver)
    run = engine.sample(LABELS, "cfg:scale=3", steps=7, solver=solver, seeds=seed)
    guided = teacher.velocity(LABELS)
    start = teacher.start(noise(engine, run.plan, run.seeds))
    pairs = draw_pairs(teacher.rows, start, 0, range(7), guided, guided, None)
    steps = Integration(teacher.rows, start)
    for call in range(7):
        assert torch.equal(pairs.states[call], steps.state)
        steps.step(call, pairs.targets[call])
    assert (steps.state - run.latents).abs().max() < SAME_TRAJECTORY * run.latents.abs().max()


def test_the_student_leads_the_first_and_the_teacher_is_asked_at_its_states(seed):
    engine, teacher = teacher_of(seed, "cfg:scale=3 + slg:weight=1,layers=2", 5)
    network = engine.models["main"]

    def student(state, call):
        return network(state, torch.full((len(state),), float(teacher.plan.sigmas[call])), torch.tensor(LABELS[:2]))

    guided, plain = teacher.velocity(LABELS), engine.sample(LABELS, "none", steps=5, seeds=seed)
    start = teacher.start(noise(engine, plain.plan, plain.seeds))
    pairs = draw_pairs(teacher.rows, start, 2, range(5), guided, teacher.velocity(LABELS[2:]), student)
    rows = solver_rows(get_solver("euler"), teacher.plan.schedule.sigmas)
    last = pairs.states[-1, :2] + rows[-1].b * student(pairs.states[-1, :2], 4)
    assert (last - plain.latents[:2]).abs().max() < SAME_TRAJECTORY * plain.latents.abs().max()
    led = engine.sample(LABELS, teacher.plan.guidance, steps=5, seeds=seed).latents[2]
    ended = pairs.states[-1, 2] + rows[-1].b * pairs.targets[-1, 2]
    assert (ended - led).abs().max() < SAME_TRAJECTORY * led.abs().max()
    labels, null = torch.tensor(LABELS), torch.full((3,), engine.spec.null_label)
    for call in range(5):
        state, time = pairs.states[call], torch.full((3,), float(teacher.plan.sigmas[call]))
        c, u = network(state, time, labels), network(state, time, null)
        expected = c + 2 * (c - u) + 1 * (c - without_block(network, 2)(state, time, labels))
        assert (pairs.targets[call] - expected).abs().max() < 2e-5 * expected.abs().max()


def without_block(network, layer):
    """The network whose block ``layer`` is the identity."""
    skipped = copy.deepcopy(network)
    skipped.blocks[layer].forward = lambda h, *_: h
    return skipped


def test_a_scale_moves_the_target_from_unguided_to_beyond_the_rule(seed):
    engine, teacher = teacher_of(seed, "cfg:scale=3", 5)
    network, state = engine.models["main"], torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(seed))
    found = teacher.velocity(LABELS, torch.tensor([0.0, 1.0, 1.5]))(state, 1)
    time = torch.full((3,), float(teacher.plan.sigmas[1]))
    c, u = network(state, time, torch.tensor(LABELS)), network(state, time, torch.full((3,), engine.spec.null_label))
    for row, scale in enumerate((1.0, 3.0, 4.0)):
        expected = u[row] + scale * (c[row] - u[row])
        assert (found[row] - expected).abs().max() < 2e-5 * expected.abs().max()


def test_the_convention_of_a_dit_gives_its_velocity(seed):
    engine, teacher = teacher_of(seed, "cfg:scale=2", 5, prediction="epsilon", time="discrete", out_channels=8)
    network, state = engine.models["main"], torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(seed))
    time, scale, m, n = teacher.convention[2].tolist()
    output = network(scale * state, torch.full((3,), time), torch.tensor(LABELS))[:, :4]
    plain = engine.denoiser("none", LABELS, schedule=teacher.plan.schedule).velocity
    expected = plain(state, torch.full((3,), teacher.plan.sigmas[2], dtype=torch.float64))
    assert (m * state + n * output - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "solver, words", [("heun", "one call a step, and 'heun' makes 9 calls in 5 steps"), ("lcm", "without noise")]
)
def test_solvers_without_one_call_a_step_are_refused(seed, solver, words):
    with pytest.raises(ValueError, match=words):
        teacher_of(seed, "cfg:scale=2", 5, solver)


@pytest.mark.parametrize(
    "rule, words",
    [
        ("none", "nothing to distill"),
        ("cfg:scale=2,3", "one rule"),
        ("cfg:scale=2,refresh=2", "remembers earlier calls"),
        ("cfg:scale=4 + apg:momentum=-0.5,radius=2,eta=0", "remembers earlier calls"),
    ],
)
def test_rules_that_no_state_decides_alone_are_refused(seed, rule, words):
    with pytest.raises(ValueError, match=words):
        teacher_of(seed, rule)
