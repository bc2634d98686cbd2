"""What leaving out one evaluation does to finished samples, and what that tells of leaving out any set of them.

A finished sample moves, to first order, by the sum over calls of what the error of each direction does to it.  The error of an
extrapolated direction is a combination of the changes from call to call, ``d_(m-1) - d_m``; what such a change does to the
finished sample is measured where call m alone is left out and the direction before it held, and carried to a later call by
the ratio of what errors there do.  So one run for each call predicts every placement and order; the placements that look best
are then drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from segue.engine.engine import Engine
from segue.engine.planning.reuse import extrapolations
from segue.engine.running.program import Program

from ..quality.draw import Draw
from .finished import distances, run_of
from .placement import Placement, Placements


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Measured on S samples, in fp64.

    ``products`` [S, M, M]: of what the M changes of ``placements`` do to a sample, each per unit of the gain of its call.
    ``gains`` [S, N, K]: how much further a finished sample is for an error of one in a direction.  ``scale`` [S]: the norm of
    the exact samples; ``unguided`` [S]: relative distances of the unguided ones.
    """

    placements: Placements
    products: np.ndarray
    gains: np.ndarray
    scale: np.ndarray
    unguided: Tensor

    def predicted(self, placement: Placement) -> float:
        """The error of a placement, as :func:`.finished.error` measures it."""
        zipped = enumerate(zip(placement.calls, placement.orders, strict=True))
        moved = np.sum([self._moved(k, calls, order) for k, (calls, order) in zipped], axis=0)
        square = ((moved[:, None] @ self.products)[:, 0] * moved).sum(axis=1)
        return float(np.median(np.sqrt(square.clip(0)) / self.scale) / self.unguided.median())

    def _moved(self, branch: int, calls: tuple[int, ...], order: int) -> np.ndarray:
        """How much of each change the errors of one branch hold, [S, M]."""
        key = branch, calls, order
        if key not in self._known:
            plan, changes = self.placements.exact, self.placements.changes
            moved = np.zeros((len(self.scale), len(changes)))
            places = {call: place for place, (k, call) in enumerate(changes) if k == branch}
            evaluated = np.isin(np.arange(plan.calls), calls)
            found = extrapolations(plan.weights[:, branch], evaluated, plan.sigmas, order)
            for call, (nodes, factors) in found.items():
                for change in range(nodes[0] + 1, call + 1):
                    moved[:, places[change]] += self.gains[:, call, branch] * factors[np.array(nodes) < change].sum()
            self._known[key] = moved
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[int, tuple[int, ...], int], np.ndarray]:
        return {}


def measure_left_out(engine: Engine, placements: Placements, draw: Draw, advance: Callable[[], None] = lambda: None) -> LeftOut:
    """Leave out every call that may be, alone; ``advance`` is called after each.

    Each run begins with the state of the exact one at the call that is left out.
    """
    drawn = draw.parts(engine.spec.num_classes)
    parts = [_measured(engine, placements, labels, seeds, advance) for labels, seeds in drawn]
    products, gains, scale, unguided = zip(*parts, strict=True)
    whole = np.concatenate(products), np.concatenate(gains), np.concatenate(scale)
    return LeftOut(placements, *whole, torch.cat(unguided))


def _measured(engine, placements, labels, seeds, advance):
    """The fields of a :class:`LeftOut` for one batch."""
    plan = engine_plan(engine, placements, placements.all_calls())
    noise = engine.draw_noise(plan, seeds)
    program = engine.load(plan, labels, seeds, noise)
    states, directions = [], []
    for live in plan.live:
        states.append([tensor.clone() for tensor in program.state()])
        program.advance(live)
        directions.append(program.combination.reused.directions[:, 0].flatten(2).double().cpu())
    exact = _flat(program)
    engine.release(program)
    moved, gains = [], np.zeros((len(labels), plan.calls, len(placements.weighed)))
    for k, call in placements.changes:
        own = engine_plan(engine, placements, placements.all_calls().without(k, call))
        program = engine.load(own, labels, seeds, noise)
        for tensor, value in zip(program.state(), states[call], strict=True):
            tensor.copy_(value)
        for live in own.live[call:]:
            program.advance(live)
        difference = _flat(program) - exact
        engine.release(program)
        gain = difference.norm(dim=1) / (directions[call - 1][k] - directions[call][k]).norm(dim=1).clamp_min(1e-30)
        gains[:, call, k] = gain
        moved.append(difference / gain.clamp_min(1e-30)[:, None])
        advance()
    unit = torch.stack(moved, dim=1)  # [B, M, F]
    plain = engine.sample(labels, None, seeds=seeds, noise=noise, **run_of(plan)).latents.double().cpu().flatten(1)
    return (unit @ unit.mT).numpy(), gains, exact.norm(dim=1).numpy(), distances(plain, exact)


def engine_plan(engine: Engine, placements: Placements, placement: Placement):
    """The plan of a placement, on the run of the exact one."""
    return engine.plan(placements.rule(placement), **run_of(placements.exact))


def _flat(program: Program) -> Tensor:
    return program.x.double().cpu().flatten(1)
