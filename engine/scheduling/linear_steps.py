"""The steps of runs whose rules are sums: of all of them at once, part of the same graph as their forward.

A linear rule weighs the outputs of its branches by numbers that are known beforehand, and a solver's row is numbers too; so a
tick brings the numbers of every run in one copy, and one gather, one sum and one update make the steps of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import Kernels

from ..planning.plan import Plan
from ..planning.solver_rows import IDLE, SOLVER_COLUMNS

EARLIER = 2  # states that a solver's rows weigh beside the previous one, at most
STATES = 2 + EARLIER  # in memory for each run: its own, and what its solver left behind
BRANCHES = (1, 2, 4, 8)  # of a run: sizes that they are padded to
COLUMNS = len(SOLVER_COLUMNS) - 1 + EARLIER  # of a solver's row without the scale of the network's input


def is_linear(plan: Plan) -> bool:
    """Whether the steps of a run are sums with numbers that are known beforehand, on the outputs of one network."""
    branches = tuple(range(len(plan.branches)))
    if plan.kept or plan.adaptive or plan.silent.any() or plan.models(branches) != ("main",):
        return False
    if plan.earlier > EARLIER or len(branches) > BRANCHES[-1]:
        return False
    return not any(plan.keeps_apart(live) for live in plan.live_sets)


@dataclass(frozen=True)
class StepShape:
    """What steps are captured for: how many runs of how many branches, whether any draws noise or looks further back."""

    runs: int
    branches: int
    stochastic: bool
    earlier: bool


@dataclass(frozen=True, eq=False)
class LinearStep:
    """The coming step of one run: the place of its state, its numbers, and where each of its live branches was read.

    row [6 + earlier], weights [branches, C'].
    """

    place: int
    call: int
    seed: int
    row: np.ndarray
    weights: np.ndarray
    outputs: Mapping[int, int]  # by branch
    stochastic: bool


class LinearSteps:
    """Memory and numbers of up to ``places`` linear runs, on states [places + 1, C, H, W]; the last one is nobody's."""

    def __init__(self, states: Tensor, most: int, kernels: Kernels):
        """``most`` runs in one tick, with the padding."""
        self.kernels, self.spare = kernels, len(states) - 1
        self.history = torch.zeros_like(states)
        self.earlier = states.new_zeros(len(states), EARLIER, *states.shape[1:])
        channels, device = states.shape[1], states.device
        self.whole = torch.zeros(3 + BRANCHES[-1], most, dtype=torch.int64, device=device)  # place, seed, call, outputs
        self.numbers = torch.zeros(most, COLUMNS + BRANCHES[-1] * channels, dtype=torch.float32, device=device)
        self.channels = channels

    def begin(self, place: int) -> None:
        """A run takes a place: nothing is behind it."""
        self.history[place].zero_()
        self.earlier[place].zero_()

    def put(self, steps: Sequence[LinearStep], padded: int) -> StepShape:
        """Bring the numbers of a tick's steps to the device, ``padded`` runs of them."""
        width = next(size for size in BRANCHES if size >= max(len(step.weights) for step in steps))
        whole = np.zeros((3 + width, padded), dtype=np.int64)
        whole[0] = self.spare
        numbers = np.zeros((padded, COLUMNS + width * self.channels))
        numbers[:, : len(IDLE) - 1] = IDLE[1:]
        for i, step in enumerate(steps):
            whole[:3, i] = step.place, np.array([step.seed], dtype=np.uint64).view(np.int64)[0], step.call
            numbers[i, : len(step.row)] = step.row
            weights = numbers[i, COLUMNS:].reshape(width, self.channels)
            for branch, output in step.outputs.items():
                whole[3 + branch, i] = output
                weights[branch] = step.weights[branch]
        self.whole[: 3 + width, :padded].copy_(torch.from_numpy(whole))
        self.numbers[:padded, : numbers.shape[1]].copy_(torch.from_numpy(numbers).float())
        further = any(len(step.row) > COLUMNS - EARLIER for step in steps)
        return StepShape(padded, width, any(step.stochastic for step in steps), further)

    def apply(self, states: Tensor, outputs: Tensor, shape: StepShape) -> None:
        """Make the steps that :meth:`put` described, of the network's ``outputs`` [O, C, H, W] fp32."""
        n, gather = shape.runs, self.kernels.gather_rows
        place, seed, call = self.whole[:3, :n].contiguous().unbind()
        numbers = self.numbers[:n]
        x, history = (gather(tensor.flatten(1), place).view(n, *states.shape[1:]) for tensor in (states, self.history))
        total = torch.zeros_like(x)
        for branch in range(shape.branches):
            weights = numbers[:, COLUMNS + branch * self.channels :][:, : self.channels, None, None]
            own = gather(outputs.flatten(1), self.whole[3 + branch, :n]).view_as(x)
            total.addcmul_(weights, own.masked_fill(weights == 0, 0.0))  # 0 * nan is nan, and the row may be another run's
        noise = self.kernels.normal_noise(seed, call, x[0].numel()).view_as(x) if shape.stochastic else None
        earlier, columns = None, COLUMNS - EARLIER
        if shape.earlier:
            earlier, columns = gather(self.earlier.flatten(1), place).view(n, *self.earlier.shape[1:]), COLUMNS
        self.kernels.solver_update(x, total, history, noise, numbers[:, :columns], None, earlier)
        states.index_copy_(0, place, x)
        self.history.index_copy_(0, place, history)
        if earlier is not None:
            self.earlier.index_copy_(0, place, earlier)
