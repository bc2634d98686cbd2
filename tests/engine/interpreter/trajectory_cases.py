"""Runs of 28 calls on Triton kernels against fp64; see tests/engine/test_trajectories.py."""

import pytest
import torch
from trajectories import ARCHITECTURES, CALLS, by_engine, check, start

from segue.kernels.triton_runtime import interpreting, observe_launches

DEVICE = "cpu" if interpreting() else "cuda"
# interpreted, a run takes half a minute
DTYPES = (torch.float32, torch.float16) if interpreting() else (torch.float32, torch.float16, torch.bfloat16)
SAMPLES = 2 if interpreting() else 16


def run(architecture: str, dtype: torch.dtype, calls: int) -> None:
    with observe_launches() as launches:
        states = by_engine(architecture, start(SAMPLES), dtype, DEVICE, calls, kernels="triton")
    assert sum(launch.name == "readout_kernel" for launch in launches) == calls
    check(states, architecture, SAMPLES, dtype, DEVICE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_call(architecture):
    run(architecture, torch.float16, 1)


@pytest.mark.slow if interpreting() else lambda test: test
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_whole_run(architecture, dtype):
    run(architecture, dtype, CALLS)
