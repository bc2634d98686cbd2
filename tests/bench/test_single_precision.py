"""Gates of fp32 compute in fp32: TF32 is off inside of them, and afterwards as it was."""

import pytest
import torch

from segue.bench import peers, workloads
from segue.bench.cases import BenchModel, Workload
from segue.bench.correctness import full_single
from segue.bench.kernel_timing import kernel_gate
from segue.bench.peers import Peer, make_peers
from segue.bench.suites import run_suite, step


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_every_test_runs_without_tf32():
    assert flags() == (False, False)


@pytest.fixture(params=[(False, True), (True, True), (True, False)])
def before(request):
    """PyTorch's default, and what a program may have set."""
    saved = flags()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = saved


def test_both_are_off_inside_and_return_even_after_an_error(before):
    with full_single():
        assert flags() == (False, False)
    assert flags() == before
    with pytest.raises(KeyError), full_single():
        raise KeyError
    assert flags() == before


def test_the_gate_of_a_kernel_is_in_fp32(before):
    seen = []

    def function(x):
        seen.append(flags())
        return 2 * x

    assert kernel_gate(function, function, (torch.ones(3),), "double").passed
    assert seen == [(False, False)] * 3
    assert flags() == before


def test_the_gates_of_rules_and_stages_are_in_fp32(before, make_session, flop_timer, monkeypatch):
    """Every draw by the published algorithm that a gate makes; timed draws keep what the program has set."""
    seen, timed = [], []
    run = step.StagedSampler.run

    def watched(self, conditions, state):
        (timed if inside else seen).append(flags())
        return run(self, conditions, state)

    inside = []

    def timer(function):
        inside.append(1)
        function()
        inside.pop()
        return 1.0

    monkeypatch.setattr(step.StagedSampler, "run", watched)
    run_suite("step", make_session(timer, models=("sit-s/2@64:64",), repetitions=1))
    assert set(seen) == {(False, False)} and set(timed) == {before}
    model = BenchModel.parse("sit-s/2@64:64")
    seen.clear()
    workload = Workload.make(model, 1, torch.device("cpu"), torch.float32)
    assert workloads.gate_rules(workload, {"cfg": model.rule("cfg")}, 2)["cfg"].passed
    assert seen == [(False, False)]
    assert flags() == before


def test_the_check_of_a_peer_is_in_fp32(before, monkeypatch):
    seen = []

    def check():
        seen.append(flags())
        return torch.ones(2), torch.ones(2)

    made = [Peer("other none", "none", "as it is", lambda: torch.ones(2), check)]
    monkeypatch.setattr(peers, "GROUPS", {"other": ((), lambda _workload, _calls: made)})
    assert make_peers("other", None, 2, print) == made
    assert seen == [(False, False)] and flags() == before
