"""Runs of 28 calls at depth 4 and width 128 against fp64: each kernel set of the CPU, by error and by bias.

tests/engine/interpreter/trajectory_cases.py does the same with the Triton kernels, interpreted or on a GPU.
"""

from dataclasses import replace

import pytest
import torch
from trajectories import ARCHITECTURES, KERNELS, by_engine, check, drift, eager, errors, exact, start

from segue.engine import core
from segue.kernels import compiled, contracts
from segue.kernels.dispatch import Selection
from segue.kernels.record import REFERENCE
from tests.tolerances import TRAJECTORY

SAMPLES = 16
CPU = torch.device("cpu")
SLOW = {"compiled": pytest.mark.slow}
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_branch_at_a_time_on_differentiable_kernels(architecture, dtype):
    """What the others are compared with, itself bounded."""
    states, truth = eager(architecture, SAMPLES, dtype), exact(architecture, SAMPLES)
    assert errors(states, truth)[-1] <= TRAJECTORY * torch.finfo(dtype).eps
    assert drift(states, truth).passed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernels", [pytest.param(name, marks=SLOW.get(name, ())) for name in KERNELS])
def test_the_engine_on_each_kernel_set(kernels, architecture, dtype):
    if kernels == "compiled" and (reason := compiled.obstacle(CPU)):
        pytest.skip(reason)
    check(by_engine(architecture, start(SAMPLES), dtype, kernels=kernels), architecture, SAMPLES, dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engine_with_fp8_linears(architecture):
    """Both factors of a product err by at most the contract's step; a run averages the velocities of its calls."""
    states = by_engine(architecture, start(SAMPLES), torch.float32, linears="fp8")
    found, truth = errors(states, exact(architecture, SAMPLES)), exact(architecture, SAMPLES)
    bound = 2 * contracts.contract("quantize_rows").bound
    assert 1e-3 < found[-1] <= bound
    assert drift(states, truth).passed


def floored(step: float):
    """A readout whose state is rounded down to multiples of ``step``."""

    def readout_update(x, *rest):
        REFERENCE.readout_update(x, *rest)
        x.copy_((x / step).floor() * step)

    return readout_update


@pytest.mark.parametrize("step, caught", [(2.0**-10.5, "bias 0."), (2.0**-6, "error")])
def test_kernels_that_round_to_one_side_are_caught(step, caught, monkeypatch):
    """The small step errs by less than the bound on the error in a run of bf16, all of it in one direction."""
    kernels = replace(REFERENCE, readout_update=floored(step))
    monkeypatch.setattr(core, "select_kernels", lambda *_, **__: Selection(kernels))
    states = by_engine("sit", start(SAMPLES), torch.bfloat16)
    with pytest.raises(AssertionError, match=f"^{caught}"):
        check(states, "sit", SAMPLES, torch.bfloat16)
