"""Every live set of every architecture: a step on Triton kernels does what a step on reference functions does."""

import pytest
import torch
import torch.nn.functional as F
from interpreted import first_is_fast, slow_interpreted
from live_sets import ARCHITECTURES, SOLVER_KINDS, engine_of, every_branch, live_sets, load, many_branches

from segue import CFG, SGG, AutoGuidance, SkipLayer
from segue.kernels.triton_runtime import interpreting, observe_launches

DEVICE = "cpu" if interpreting() else "cuda"
# fp32, one call of a network of four blocks: each rounds to 6e-8, sums run in another order, guidance gains up to 10
RELATIVE_ERROR = 2e-5
REFERENCES = ("layer_norm", "scaled_dot_product_attention", "gelu")  # what reference functions are made of
THOROUGH = ("sit", "sd3.5-medium")  # the steps of the others differ from these in one place each
WITH_STATE = ("ddpm", "dpm++3m-sde", "unipc(order=3)")  # noise by a learned variance, noise and history, history alone
ALIKE = ("sd3.5-large", "repa")  # whose steps have nothing that those of the others have not


class Pair:
    """The same run in an engine on Triton kernels and in one on reference functions."""

    def __init__(self, architecture: str, rule=None, **options):
        self.architecture = architecture
        settings = {"device": DEVICE, "dtype": torch.float32, "graphs": False}
        engines = [engine_of(architecture, kernels=backend, **settings) for backend in ("triton", "reference")]
        self.plan = engines[0].plan(rule or every_branch(engines[0].spec), **options)
        self.programs = [load(engine, self.plan) for engine in engines]
        self.start = [tensor.clone() for tensor in self.programs[0].state()]

    def rewind(self) -> None:
        """Both programs before their first call."""
        for program in self.programs:
            for tensor, value in zip(program.state(), self.start, strict=True):
                tensor.copy_(value)

    def step(self, live, monkeypatch) -> None:
        """One call in both, which must agree; only the second may, and must, run reference functions."""
        ours, theirs = self.programs
        called, launches = self._watched_step(ours, live, monkeypatch)
        assert not called, f"{called} ran in an engine on Triton kernels"
        names = {launch.name for launch in launches}
        assert names >= {"gather_kernel", "adaln_kernel", "attention_kernel", "linear_kernel", "readout_kernel"}
        assert sum(launch.name == "solver_kernel" or launch.arguments.get("UPDATE", False) for launch in launches) == 1
        called, launches = self._watched_step(theirs, live, monkeypatch)
        assert called == set(REFERENCES) and not launches
        for mine, other in zip(ours.state(), theirs.state(), strict=True):
            largest = float(other.abs().max()) if other.numel() else 0.0
            torch.testing.assert_close(mine, other, rtol=0, atol=RELATIVE_ERROR * largest)

    def _watched_step(self, program, live, monkeypatch) -> tuple[set, list]:
        """The functions of REFERENCES that a step calls, and its launches."""
        called = set()

        def watch(name):
            function = getattr(F, name)

            def watched(*arguments, **options):
                # the norm of queries and keys over a head is the network's own, not that of a reference function
                if name != "layer_norm" or arguments[1][-1] == self.plan.spec.dim:
                    called.add(name)
                return function(*arguments, **options)

            return watched

        with monkeypatch.context() as context, observe_launches() as launches:
            for name in REFERENCES:
                context.setattr(F, name, watch(name))
            program.step(live)
        return called, launches


@pytest.fixture(scope="module", params=[slow_interpreted(a) if a in ALIKE else a for a in ARCHITECTURES])
def pair(request):
    return Pair(request.param, steps=2)


def test_each_branch_alone_and_all_together(pair, monkeypatch):
    for live in live_sets(pair.plan, most=int(pair.architecture in THOROUGH)):
        pair.rewind()
        pair.step(live, monkeypatch)


@pytest.mark.slow
def test_every_live_set(pair, monkeypatch):
    for live in live_sets(pair.plan, most=None if pair.architecture in THOROUGH else 2):
        pair.rewind()
        pair.step(live, monkeypatch)


@pytest.mark.parametrize("architecture", first_is_fast(["dit", "sd3.5-medium"]))
def test_a_rule_that_guides_some_channels(architecture, monkeypatch):
    """Live sets with the restricted branch combine after the projection, those without it before."""
    rule = CFG(3.0, channels=2) + SkipLayer(2.0, (1,)) + AutoGuidance(1.0)
    pair = Pair(architecture, rule, steps=2)
    for live in live_sets(pair.plan):
        pair.rewind()
        pair.step(live, monkeypatch)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [("sit", None), slow_interpreted("sd3", 2), pytest.param("sit", 2, marks=SLOW), pytest.param("sd3", None, marks=SLOW)],
)
def test_more_branches_than_one_kernel_combines(architecture, channels, monkeypatch):
    pair = Pair(architecture, many_branches(engine_of(architecture, device="cpu").spec, channels), steps=1)
    pair.step(tuple(range(len(pair.plan.branches))), monkeypatch)


@pytest.mark.parametrize("solver", [s if s in WITH_STATE else slow_interpreted(s) for s in SOLVER_KINDS])
def test_a_run_of_every_kind_of_solver(solver, monkeypatch):
    """To the end: history and noise pass from call to call."""
    pair = Pair("dit" if solver == "ddpm" else "repa", SGG(CFG(3.0), SkipLayer(2.0, (1,)), 0.5), steps=3, solver=solver)
    for live in pair.plan.live:
        pair.step(live, monkeypatch)


@pytest.mark.parametrize("architecture", ["sit", pytest.param("sd3.5-large", marks=SLOW)])
def test_directions_that_are_reused(architecture, monkeypatch):
    rule = (CFG(3.0) + SkipLayer(2.0, (1,)) + AutoGuidance(1.0)).reused(2)
    pair = Pair(architecture, rule, steps=4)
    assert len(set(pair.plan.live)) == 2
    for live in pair.plan.live:
        pair.step(live, monkeypatch)
