"""The bench reports what fp8 changes, and names it where it cannot run."""

import pytest
import torch
from tiny_models import tiny_sit

from segue.bench.cases import BenchModel, Workload
from segue.bench.stages import FP8, fp8_engine
from segue.bench.suites import run_suite
from segue.engine.core import EngineCore
from segue.kernels.contracts import FP8_STEP


@pytest.mark.slow
def test_the_step_suite_reports_the_error(make_session, flop_timer):
    session = make_session(flop_timer, models=("sit-s/2@64:64",))
    run_suite("step", session)
    errors = {row.metric: row.value for row in session.rows if row.variant == FP8}
    assert errors.keys() == {"error of a network evaluation", "error of a run"}
    # both factors of a product are off by at most FP8_STEP; guidance by 4.5 extrapolates from a difference of two outputs
    assert 0 < errors["error of a network evaluation"] < 2 * FP8_STEP
    assert 0 < errors["error of a run"] < 9 * FP8_STEP


def test_networks_that_fp8_cannot_take_are_named():
    lines = []
    engine = EngineCore(tiny_sit(dim=24, heads=3), device="cpu")
    workload = Workload(BenchModel("tiny", "tiny", engine.spec), engine, 1)
    assert fp8_engine(workload, lines.append) is None
    assert lines == ["fp8: not run, tiny has no block linear that fp8 can take: their sizes must be multiples of 16"]


def test_the_fp8_engine_stands_beside_the_workload():
    engine = EngineCore(tiny_sit(), {"weak": tiny_sit(1, depth=2, exits=())}, device="cpu")
    workload = Workload(BenchModel("tiny", "tiny", engine.spec), engine, 1)
    fp8 = fp8_engine(workload, print)
    assert fp8.linears == "fp8" and engine.linears == "native" and set(fp8.models) == {"main", "weak"}
    assert fp8.models["main"].final_layer.linear.weight is engine.models["main"].final_layer.linear.weight
    assert isinstance(engine.models["main"].blocks[0].attn.qkv, torch.nn.Linear)
