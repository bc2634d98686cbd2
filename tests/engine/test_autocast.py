"""A run inside autocast on the CPU, with the kernels that an engine takes by itself."""

import pytest
import torch
from live_sets import engine_of, load

from segue import CFG

STEPS = 3


def drawn(architecture: str, kernels: str) -> torch.Tensor:
    engine = engine_of(architecture, device="cpu", kernels=kernels)
    program = load(engine, engine.plan(CFG(3.0), steps=STEPS), batch=2)
    for live in program.plan.live:
        program.step(live)
    return program.x.clone()


@pytest.mark.parametrize("architecture", ["sit", "sd3.5-medium"])
def test_a_run_inside_autocast_is_one_in_bf16(architecture):
    """As far from the run in fp32 as the reference functions inside autocast are, which is far more than fp32 errs."""
    exact = drawn(architecture, "reference")
    with torch.autocast("cpu", torch.bfloat16):
        found, eager = (drawn(architecture, kernels) - exact for kernels in ("auto", "reference"))
    assert 2.0**-14 * exact.abs().max() < found.abs().max() <= 2 * eager.abs().max()
