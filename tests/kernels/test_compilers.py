"""The processes that compile for the tuner: what they leave out, and what becomes of those that end."""

import types
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from segue.kernels import candidates, compilers
from segue.kernels.launch import FlatLaunch
from segue.kernels.resources import Resources
from segue.kernels.triton_runtime import interpreting, triton

SERVED = "sm_90"
ATTENTION, PHILOX = ("attention", "k64 t4096"), ("philox", "any")


class OutOfResources(Exception):
    """As Triton's, which is not to be had without it."""


@pytest.mark.skipif(triton is None or interpreting(), reason="needs Triton's binder")
@pytest.mark.parametrize("stack, shared, launches", [(0, 0, True), (8, 0, True), (0, 10**6, False)])
def test_when_the_clock_decides_only_what_cannot_launch_is_left_out(stack, shared, launches, monkeypatch):
    def compiled(specialisation, launch, names):
        return Resources("k", specialisation.architecture, 4, 1, 64, shared, stack, 1, "", ())

    monkeypatch.setattr(compilers, "compile_specialisation", compiled)
    job = (PHILOX, candidates.candidates(PHILOX)[0], SERVED)
    assert (compilers.misfit(job) is None) == launches
    assert (compilers.misfit(job, spills=True) is None) == (launches and not stack)


def test_what_is_compiled_when_the_tuner_ends_is_the_last(monkeypatch):
    """Processes that have much left to do must not keep a machine that is lent by the second."""
    monkeypatch.setattr(compilers, "_stop", types.SimpleNamespace(is_set=lambda: True))
    assert compilers.misfit((PHILOX, FlatLaunch(128, 4), SERVED)) == "the tuner has ended"


@pytest.mark.skipif(triton is None or interpreting(), reason="needs Triton's binder")
def test_what_the_compiler_raises_is_a_reason(monkeypatch):
    def refused(*_):
        raise OutOfResources("two\nlines")

    monkeypatch.setattr(compilers, "compile_specialisation", refused)
    assert compilers.misfit((PHILOX, FlatLaunch(128, 4), SERVED)) == "OutOfResources: two lines"


def test_where_a_compiling_process_died_the_launch_compiles(capsys):
    job = (PHILOX, FlatLaunch(128, 4), SERVED)
    pool = compilers.Compilers(0, [])
    pool._found[job] = Future()
    pool._found[job].set_exception(BrokenProcessPool("killed"))
    assert pool.wait(PHILOX, 1.0) and pool.obstacle(job) is None
    assert "was not compiled ahead of time, BrokenProcessPool" in capsys.readouterr().out


def test_what_is_not_compiled_in_time_is_not_waited_for():
    pool = compilers.Compilers(0, [])
    pool._found[PHILOX, FlatLaunch(128, 4), SERVED] = Future()
    assert not pool.wait(PHILOX, 0.0) and pool.wait(ATTENTION, 0.0)


@pytest.mark.slow
@pytest.mark.skipif(triton is None or interpreting(), reason="needs Triton's binder")
def test_compilers_work_in_processes_of_their_own():
    """The candidates of an entry are waited for; what a process says is what this one would have said."""
    job = (PHILOX, FlatLaunch(128, 4), "sm_90")
    with compilers.Compilers(1, [job]) as pool:
        assert pool.wait(PHILOX, float("inf"))
        found = pool.obstacle(job)
    assert found == compilers.misfit(job)
