"""The regression of a distillation: its gradient is that of its formula, its draws depend on the generator alone, it learns."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import tiny_sit
from torch import nn

from segue.engine.engine import Engine
from segue.engine.planning.solvers import EULER
from segue.models.adapted import AdaptedSiT, AdapterSpec
from segue.models.low_rank import LowRankSpec
from segue.training.distill.class_student import ClassStudent, class_teacher
from segue.training.distill.effects import measured_effects
from segue.training.distill.spec import DistillSpec, TrajectorySpec
from segue.training.distill.task import DistillTask
from segue.training.distill.trajectories import solver_rows
from segue.training.streams import stream_generator

SIGMAS = (1.0, 0.7, 0.45, 0.2, 0.0)


class LinearTeacher:
    """A field that is linear in the state, in the place of a network: ``v = s y M`` for a sample of scale s."""

    def __init__(self, matrix):
        self.matrix, self.rows = matrix, solver_rows(EULER, SIGMAS)
        self.calls = len(self.rows)
        self.convention = np.array([(sigma, 1.0, 0.0, 1.0) for sigma in SIGMAS[:-1]])

    def start(self, noise):
        return noise

    def velocity(self, labels, scale=None):
        return lambda state, call: (state.flatten(1) @ self.matrix.T).view_as(state)


class LinearStudent(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear = nn.Linear(size, size, bias=False)

    def network(self):
        return self

    def conditions(self, labels, scale):
        return (labels,)

    def forward(self, x, time, labels):
        return self.linear(x.flatten(1)).view_as(x)


def spec_of(**changes):
    trajectories = TrajectorySpec(**{"steps": 4, "levels": 2, "weights": "uniform"} | changes)
    return DistillSpec("tiny", "tiny", "", "cfg:scale=2", 2, 2, trajectories=trajectories)


def drawn_by(task, seed, batch=4, size=(1, 2, 2), dtype=torch.float64):
    generator = stream_generator(seed, 0)
    noise = torch.randn(batch, *size, generator=generator, dtype=dtype)
    return task.draw(noise, torch.randint(6, (batch,), generator=generator), generator)


def test_a_student_that_can_be_the_teacher_becomes_it(seed):
    torch.manual_seed(seed)
    teacher, student = LinearTeacher(torch.randn(4, 4) / 2), LinearStudent(4)
    task = DistillTask(spec_of(), teacher, student)
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=20, line_search_fn="strong_wolfe")
    losses = []
    for step in range(2):
        drawn = drawn_by(task, seed + step, batch=16, dtype=torch.float32)

        def closure(drawn=drawn):
            optimizer.zero_grad()
            loss = task.losses(student, drawn)["loss"]
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)
    assert losses[-1] < 1e-8 < 1e-2 < losses[0]
    assert (student.linear.weight - teacher.matrix).abs().max() < 1e-3


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
def test_the_gradient_is_that_of_the_formula_with_states_held(seed, own):
    torch.manual_seed(seed)
    teacher, student = LinearTeacher(torch.randn(4, 4, dtype=torch.float64) / 2), LinearStudent(4).double()
    task = DistillTask(spec_of(own=own, weights="steps"), teacher, student)
    drawn = drawn_by(task, seed)
    task.losses(student, drawn)["loss"].backward()
    noise, _, calls, leads, _ = drawn
    assert leads.sum() == 4 * own
    weight = student.linear.weight.detach().clone().requires_grad_()
    steps = np.diff(SIGMAS) ** 2
    total = 0
    for sample, led in zip(noise, leads, strict=True):  # a sample at a time, with the matrix that leads it
        state, states = sample.flatten(), []
        for call in range(4):
            states.append(state)
            matrix = weight.detach() if led else teacher.matrix
            state = state + (SIGMAS[call + 1] - SIGMAS[call]) * (matrix @ state)
        for call in calls[0].tolist():
            error = weight @ states[call] - teacher.matrix @ states[call]
            total = total + steps[call] / steps.mean() * error.square().mean() / (len(noise) * calls.shape[1])
    total.backward()
    assert torch.allclose(student.linear.weight.grad, weight.grad, rtol=1e-6, atol=1e-12)


def test_draws_depend_on_their_generator_and_cover_all_calls(seed):
    task = DistillTask(spec_of(levels=2, own=0.3), LinearTeacher(torch.eye(4)), LinearStudent(4))
    first, again = (drawn_by(task, seed, batch=5) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    calls, led = set(), 0
    for index in range(200):
        drawn = drawn_by(task, index, batch=5)
        chosen = drawn[2]
        assert (chosen == chosen[0]).all() and chosen[0, 0] < 2 <= chosen[0, 1]
        calls |= set(chosen[0].tolist())
        led += int(drawn[3].sum())
    assert calls == {0, 1, 2, 3}
    assert led / 1000 == pytest.approx(0.3, abs=0.02)  # 200 draws of a fraction .5 of a sample: a deviation of .007


def test_a_network_of_the_engine_learns_from_its_own_guidance(seed):
    network = tiny_sit(seed)
    engine = Engine(network, device="cpu")
    plan = engine.plan("cfg:scale=1.5", 4)
    low_rank = LowRankSpec(4, targets=("qkv", "proj", "fc1", "fc2", "adaLN", "final"))
    spec = DistillSpec(
        "tiny", "tiny", "", "cfg:scale=1.5", 6, 10, "", AdapterSpec(low_rank), TrajectorySpec(4, levels=2, weights="uniform")
    )
    task = DistillTask(spec, class_teacher(engine, plan), ClassStudent(network, spec, plan))
    torch.manual_seed(seed)
    student = task.network()
    frozen = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW([value for value in student.parameters() if value.requires_grad], lr=1e-2)
    drawn, losses = drawn_by(task, seed, 6, (4, 6, 10), torch.float32), []
    for _ in range(12):
        loss = task.losses(student, drawn)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert isinstance(student, AdaptedSiT)
    assert all(torch.equal(value, frozen[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: TrajectorySpec(own=1.5), r"own must lie in \[0, 1\], got 1.5"),
        (lambda: TrajectorySpec(steps=3, levels=4), "levels must be at most the 3 steps"),
        (lambda: TrajectorySpec(weights="none"), "level weights must be uniform or steps or effect, got 'none'"),
    ],
)
def test_trajectories_that_cannot_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_measured_effect_is_that_of_a_linear_field(seed):
    """Errors of a linear field go on by the product of its steps; where the rule does nothing, along the velocity."""
    torch.manual_seed(seed)
    teacher = LinearTeacher(torch.randn(4, 4, dtype=torch.float64) / 2)
    plain = torch.randn(4, 4, dtype=torch.float64)
    teacher.unguided = lambda labels: (
        lambda state, call: teacher.velocity(labels)(state, call) if call == 2 else (state.flatten(1) @ plain.T).view_as(state)
    )
    noise = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    found = measured_effects(teacher, noise, [0] * 5)
    steps = np.diff(SIGMAS)
    propagated, state, states = torch.eye(4, dtype=torch.float64), noise.flatten(1), []
    for step in steps:
        states.append(state)
        state = state + step * state @ teacher.matrix.T
    for call in reversed(range(4)):
        wrong = states[call] @ ((0.01 * teacher.matrix) if call == 2 else (plain - teacher.matrix)).T
        moved = (steps[call] * wrong @ propagated.T).norm(dim=1) / wrong.norm(dim=1)
        assert found[call] == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-9)
        propagated = propagated @ (torch.eye(4, dtype=torch.float64) + steps[call] * teacher.matrix)
    task = DistillTask(spec_of(weights="effect"), teacher, LinearStudent(4), found)
    assert np.allclose(task.weights.numpy(), np.square(found) / np.square(found).mean(), rtol=1e-6)
    with pytest.raises(ValueError, match="need the effect of each of 4 calls, got 0"):
        DistillTask(spec_of(weights="effect"), teacher, LinearStudent(4))
