"""Requests that share steps on Triton kernels draw what they draw on reference functions."""

import pytest
import torch
from interpreted import slow_interpreted
from live_sets import engine_of
from lone_requests import alone, drawing_of

from segue import CFG, SGG, SkipLayer
from segue.engine.scheduling.scheduler import StepScheduler
from segue.kernels.triton_runtime import interpreting

DEVICE = "cpu" if interpreting() else "cuda"
RELATIVE_ERROR = 2e-5  # as that of runs alone on these kernels
RULES = [None, CFG(3.0), SGG(CFG(2.0), SkipLayer(1.0, (1,)), 0.5)]


@pytest.mark.parametrize("architecture", ["sit", slow_interpreted("sd3.5-medium")])
def test_three_requests_share_their_steps(architecture):
    engine = engine_of(architecture, device=DEVICE, dtype=torch.float32, kernels="triton")
    reference = engine_of(architecture, device=DEVICE, dtype=torch.float32, kernels="reference", graphs=False)
    drawings = [drawing_of(engine, engine.plan(rule, steps=2), i) for i, rule in enumerate(RULES)]
    scheduler = StepScheduler(engine, lambda drawing, guidance: drawing, start=False)
    requests = [scheduler.submit(drawing) for drawing in drawings]
    while scheduler.tick():
        pass
    for request, drawing in zip(requests, drawings, strict=True):
        expected = alone(reference, drawing)
        assert float((request.result(timeout=60) - expected).abs().max() / expected.abs().max()) < RELATIVE_ERROR
    assert scheduler.stats().ticks == 2
    scheduler.close()
