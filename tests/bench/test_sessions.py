"""A session's limits, its memory of what is done, and its refusal to time what is wrong."""

from dataclasses import replace

import pytest
import torch

from segue.bench.cases import BenchModel, Workload
from segue.bench.correctness import FP32_BOUND, Gate, gate, relative_error
from segue.bench.published import StagedSampler
from segue.bench.rows import read_rows
from segue.bench.session import Session, Settings
from segue.bench.stages import REUSE
from segue.bench.suites import cost, run_suite, scaling, step
from segue.bench.timing import Statistic
from segue.bench.workloads import gate_plan
from segue.engine.core import resolve_plan

TINY = "sit-s/2@64:128"  # 12 layers of width 64 on 64 tokens
SOME = Statistic(1.0, 0.9, 1.1, 3)


def case_row(session, case: str):
    return session.row("cost", case, "cfg", "time of a run", "s", SOME)


def test_a_case_is_stored_as_a_whole_and_then_skipped(tmp_path, make_session):
    path = tmp_path / "rows.jsonl"
    first = make_session(lambda f: 1.0, path)
    assert first.wants("cost", "a")
    first.commit([case_row(first, "a"), case_row(first, "a")])
    assert len(read_rows(path)) == 2
    assert path.with_suffix(".csv").exists()
    second = make_session(lambda f: 1.0, path)
    assert not second.wants("cost", "a")
    assert "already in rows.jsonl" in second.lines[-1]
    assert second.wants("cost", "b")
    assert second.wants("step", "a")
    assert make_session(lambda f: 1.0, path, dtype="bfloat16").wants("cost", "a")
    assert not second.wants("cost", "a", variants=["cfg"])
    assert second.wants("cost", "a", variants=["cfg", "slg"])


@pytest.mark.parametrize("changes", [{"threads": 64}, {"commit": "def"}, {"versions": {"torch": "1"}}])
def test_a_case_measured_otherwise_is_measured_again(tmp_path, make_session, environment, changes):
    path = tmp_path / "rows.jsonl"
    first = make_session(lambda f: 1.0, path)
    first.commit([case_row(first, "a")])
    settings = Settings(device="cpu")
    assert not Session(settings, environment, lambda f: 1.0, path, echo=[].append).wants("cost", "a")
    assert Session(settings, replace(environment, **changes), lambda f: 1.0, path, echo=[].append).wants("cost", "a")


def test_a_case_that_fails_is_said_and_the_next_one_runs(monkeypatch, make_session, flop_timer):
    """Out of memory in one model must not lose the others."""
    load = cost.load_workload

    def failing(session, model, batch):
        if model.text == TINY:
            raise torch.OutOfMemoryError("tried to allocate\n4 GiB")
        return load(session, model, batch)

    monkeypatch.setattr(cost, "load_workload", failing)
    session = make_session(flop_timer, models=(TINY, "sit-s/2@64:64"), rules=("cfg",), repetitions=1)
    run_suite("cost", session)
    assert session.failures == 1
    assert session.lines[0].endswith("FAILED, OutOfMemoryError: tried to allocate 4 GiB")
    assert {row.case for row in session.rows} == {"sit-s/2@64:64 batch 1, 2 calls"}


def test_suites_share_the_time(make_session):
    """Thirty minutes for three suites: what the first does not use is left to the others."""
    clock = [0.0]
    session = make_session(lambda f: 1.0, now=lambda: clock[0], limit_minutes=30.0)
    session.allot(1 / 3)
    assert session.minutes_left == 10
    clock[0] = 4 * 60
    session.allot(1 / 2)
    assert session.minutes_left == 13
    clock[0] = 25 * 60
    assert session.minutes_left < 0
    session.allot(1)
    assert session.minutes_left == 5


def test_a_gate_runs_every_branch_that_is_timed():
    """Four of 28 calls would never meet the windows of the published recipe in steps."""
    rule = "cfg:scale=3,window=steps:1-14 + slg:weight=1,layers=3,window=steps:15-28"
    model = BenchModel.parse("sit-s/2@64:32")
    workload = Workload.make(model, 1, torch.device("cpu"), torch.float32)
    timed = workload.plan(model.rule(rule), 28)
    assert set(gate_plan(workload, model.rule(rule), 28).live_sets) == set(timed.live_sets)
    assert gate_plan(workload, model.rule("sgg"), 28).calls == 4


def test_half_precision_stages_are_judged_against_single(make_session, flop_timer):
    session = make_session(flop_timer, models=("sit-s/2@64:64",), repetitions=1, dtype="bfloat16", steps=4)
    run_suite("step", session)
    assert session.failures == 0
    assert len([row for row in session.rows if row.metric == "speed-up over the published algorithm"]) >= 7


def test_a_rule_that_the_published_algorithm_does_not_have_is_refused(make_session):
    for rule in ("cfg:scale=2+zero-star:zero_steps=1", "sgg:scale=3,weight=1,layers=3,switch=fraction:0.5,refresh=2"):
        with pytest.raises(ValueError, match="has no corrections and no reuse"):
            run_suite("cost", make_session(None, models=(TINY,), rules=(rule,), steps=8))


def test_a_stage_that_draws_something_else_is_not_timed(monkeypatch, make_session, flop_timer):
    class Wrong(StagedSampler):
        def run(self, conditions, state):
            drawn = super().run(conditions, state)
            return drawn * 1.01 if self.stages.fork and not self.stages.table else drawn

    monkeypatch.setattr(step, "StagedSampler", Wrong)
    session = make_session(flop_timer, models=("sit-s/2@64:64",), repetitions=1)
    run_suite("step", session)
    timed = {row.variant for row in session.rows if row.metric == "time of a run"}
    assert "+ prefix fork" not in timed and "+ modulation table" in timed
    assert sum("+ prefix fork: NOT TIMED" in line for line in session.lines) == 1


def test_no_case_starts_that_might_end_after_the_limit(make_session):
    """Ten minutes; a case that took four leaves room for one more, not for two."""
    clock = [0.0]
    session = make_session(lambda f: 1.0, now=lambda: clock[0], limit_minutes=10.0)
    for case, wanted in (("a", True), ("b", True), ("c", False)):
        assert session.wants("cost", case) == wanted
        clock[0] += 4 * 60
        if wanted:
            session.commit([case_row(session, case)])
    assert "2.0 of 10 minutes left" in session.lines[-1]


def test_the_cost_suite_counts_the_work_that_the_plan_promises(make_session, flop_timer):
    """Time is the FLOPs that PyTorch executed: every ratio must be the plan's, but for modulation, under 2 % here."""
    session = make_session(flop_timer, models=(TINY,))
    run_suite("cost", session)
    ratios = {row.variant: row for row in session.rows if row.metric == "cost relative to unguided"}
    assert set(ratios) == {"cfg", "slg", "sgg", "sgg-exit", "none (again)", "sgg as published"}
    for row in ratios.values():
        assert row.value == pytest.approx(row.expected, rel=0.02)
        assert row.p20 == row.value == row.p80
    (gain,) = [row for row in session.rows if row.metric.startswith("speed-up")]
    assert gain.value == pytest.approx(gain.expected, rel=0.02)
    assert gain.value > 1.3


def test_the_step_suite_shows_each_stage_saving_work(make_session, flop_timer):
    session = make_session(flop_timer, models=(TINY,))
    run_suite("step", session)
    gains = [row for row in session.rows if row.metric == "speed-up over the published algorithm"]
    assert [row.variant for row in gains][:2] == ["as published", "+ live branches only"]
    values = [row.value for row in gains]
    assert values == sorted(values)
    for row in gains:
        assert row.expected is None or row.value == pytest.approx(row.expected, rel=0.02)
    calls = {row.variant: row for row in session.rows if row.metric == "cost relative to an unguided call"}
    assert set(calls) == {"cond + uncond", "cond + cond skip 7,8,9"}
    for row in calls.values():
        assert row.value == pytest.approx(row.expected, rel=1e-3)
    for stage in ("fused kernels", "graph", "fp8", "reuse"):
        assert sum(stage in line and "not run" in line for line in session.lines) == 1


def test_the_step_suite_shows_what_reused_directions_save_and_their_error(make_session, flop_timer):
    session = make_session(flop_timer, models=(TINY,), steps=4)
    run_suite("step", session)
    gains = {row.variant: row.value for row in session.rows if row.metric == "speed-up over the published algorithm"}
    model = BenchModel.parse(TINY)
    exact, reused = (resolve_plan({"main": model.spec}, model.rule("sgg").reused(n), 4).cost for n in (1, 2))
    assert gains[REUSE] / gains["engine, plain kernels"] == pytest.approx(exact.flops / reused.flops, rel=0.02)
    (error,) = [row.value for row in session.rows if row.variant == REUSE and row.metric == "error of a run"]
    assert 0 < error < 1


def test_the_scaling_suite_finds_the_exponents_of_the_work(monkeypatch, make_session, flop_timer):
    """FLOPs grow with batch and calls to the power 1, and with tokens slightly more than that."""
    monkeypatch.setattr(scaling, "BATCHES", (1, 3))
    monkeypatch.setattr(scaling, "FACTORS", (1, 2))
    monkeypatch.setattr(scaling, "SWITCHES", (0.0, 0.25, 1.0))
    session = make_session(flop_timer, models=("sit-s/2@64:96",), repetitions=1)
    run_suite("scaling", session)
    fits = {(row.variant, row.metric.split()[-1]): row for row in session.rows if row.metric.startswith("exponent")}
    assert {axis for _, axis in fits} == {"calls", "batch", "tokens", "depth"}
    for (_, axis), row in fits.items():
        # modulation does not grow with the tokens, and PyTorch does not count attention on the CPU
        assert row.value == pytest.approx(row.expected, abs=0.1 if axis in ("tokens", "depth") else 1e-2), axis
    switches = [row.expected for row in session.rows if ", switch " in row.variant and row.expected]
    assert switches == sorted(switches)
    assert len(switches) == 3


@pytest.mark.parametrize("suite", ["cost", "step", "e2e"])
def test_a_failing_gate_leaves_no_row_and_says_so(monkeypatch, make_session, suite):
    """The engine's result is made wrong; the timer must never be asked."""

    def untimed(_function):
        raise AssertionError("timed although the gate failed")

    def spoiled(value, plain, exact, what):
        return Gate(relative_error(value + 1.0, plain), FP32_BOUND, what)

    monkeypatch.setattr("segue.bench.workloads.gate", spoiled)
    session = make_session(untimed, models=("sit-s/2@64:64",), peers=("published on our modules",))
    run_suite(suite, session)
    assert not session.rows
    assert any("NOT TIMED, the correctness gate failed" in line for line in session.lines)


def test_one_wrong_rule_does_not_stop_the_others(monkeypatch, make_session, scripted_timer):
    def spoiled(value, plain, exact, what):
        return gate(value + 1.0 if what.startswith("cfg") else value, plain, exact, what)

    monkeypatch.setattr("segue.bench.workloads.gate", spoiled)
    session = make_session(scripted_timer([1.0]), models=("sit-s/2@64:64",), rules=("cfg", "slg"))
    run_suite("cost", session)
    assert {row.variant for row in session.rows} == {"none", "none (again)", "slg"}


def test_a_gate_in_half_precision_allows_twice_what_plain_modules_err_by():
    exact = torch.linspace(-1, 1, 101)
    assert gate(exact + 0.019, exact + 0.01, exact, "case").passed
    assert not gate(exact + 0.021, exact + 0.01, exact, "case").passed
    assert not gate(exact * float("nan"), exact + 0.01, exact, "case").passed
    assert gate(exact + 1e-4, exact, None, "case").passed
    assert not gate(exact + 2e-4, exact, None, "case").passed


def test_results_of_different_shapes_are_not_compared():
    with pytest.raises(ValueError, match="cannot be compared"):
        relative_error(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "even and at least 2"),
        ({"steps": 0}, "even and at least 2"),
        ({"batches": (2, 0)}, "batch must be at least 1, got 0"),
        ({"size": -8}, "size must be at least 1, got -8"),
        ({"repetitions": 0}, "repetitions must be at least 1"),
        ({"limit_minutes": 0.0}, "limit-minutes must be positive"),
        ({"limit_minutes": float("nan")}, "limit-minutes must be positive"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"dtype": "float64"}, "float64 is not measured"),
        ({"device": "gpu"}, "unknown device"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)
