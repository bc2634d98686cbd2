"""A session's limits, its memory of what is done, and its refusal to time what is wrong."""

from dataclasses import replace

import pytest
import torch

from segue.bench import stages
from segue.bench.cases import BenchModel, Workload
from segue.bench.correctness import FP32_BOUND, Gate, gate, relative_error
from segue.bench.published import StagedSampler
from segue.bench.rows import read_rows
from segue.bench.session import Session, Settings
from segue.bench.stages import REUSE, REUSE_ALONE
from segue.bench.suites import cost, run_suite, scaling, step
from segue.bench.timing import Statistic
from segue.bench.workloads import chosen_cases, gate_plan, gate_rules
from segue.engine.core import resolve_plan
from segue.kernels import onednn

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
        if model.text == "sit-s/2@64:64":
            raise torch.OutOfMemoryError("tried to allocate\n4 GiB")
        return load(session, model, batch)

    monkeypatch.setattr(cost, "load_workload", failing)
    session = make_session(flop_timer, models=(TINY, "sit-s/2@64:64"), rules=("cfg",), repetitions=1)
    run_suite("cost", session)
    assert session.failures == 1
    assert session.lines[0].endswith("FAILED, OutOfMemoryError: tried to allocate 4 GiB")
    assert {row.case for row in session.rows} == {f"{TINY} batch 1, 2 calls"}


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


@pytest.mark.slow
def test_half_precision_stages_are_judged_against_single(make_session, flop_timer):
    session = make_session(flop_timer, models=("sit-s/2@64:64",), repetitions=1, dtype="bfloat16", steps=4)
    run_suite("step", session)
    assert session.failures == 0
    assert len([row for row in session.rows if row.metric == "speed-up over the published algorithm"]) >= 7


def test_a_rule_that_the_published_algorithm_does_not_have_is_refused_where_it_is_the_gate(make_session):
    for rule in ("cfg:scale=2+zero-star:zero_steps=1", "sgg:scale=3,weight=1,layers=3,switch=fraction:0.5,refresh=2"):
        with pytest.raises(ValueError, match="has no corrections and no reuse"):
            run_suite("step", make_session(None, models=(TINY,), rules=(rule,), steps=8))
    with pytest.raises(ValueError, match="has no NAG, got 'nag:scale=5'"):
        run_suite("step", make_session(None, models=("sd3.5-medium@64:64",), rules=("nag:scale=5",), steps=2))
    for suite in ("cost", "step"):
        for rule in ("icg:scale=2", "s2:weight=1,share=0.3"):
            with pytest.raises(ValueError, match=f"the gate of all rules draws nothing at a call, got '{rule}'"):
                run_suite(suite, make_session(None, models=(TINY,), rules=(rule,), steps=8))


def test_the_cost_suite_gates_other_rules_by_the_engine_on_reference_functions(make_session, flop_timer):
    rules = "cfg:scale=2+rescale:phi=0.7", "cfg:scale=2,order=1,calls=1,3"
    session = make_session(flop_timer, models=("sit-s/2@64:64",), rules=rules, steps=4, repetitions=1)
    run_suite("cost", session)
    ratios = {row.variant: row for row in session.rows if row.metric == "cost relative to unguided"}
    assert set(ratios) == {*rules, "none (again)"}
    for row in ratios.values():
        assert row.value == pytest.approx(row.expected, rel=0.02)


def test_a_rule_that_was_not_published_is_gated_by_reference_functions():
    """Two texts a row: the engine on its kernels draws what it draws on reference functions."""
    model = BenchModel.parse("sd3.5-medium@64:64")
    workload = Workload.make(model, 1, torch.device("cpu"), torch.float32)
    (found,) = gate_rules(workload, {"nag": model.rule("nag:scale=5")}, 2).values()
    assert found.passed
    assert found.what == "nag against the engine on reference functions"


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


def test_no_case_starts_that_would_end_after_the_limit(make_session):
    """Ten minutes, and time grows with the arithmetic: after a case of one minute one of eight fits, and one of two no more."""
    clock = [0.0]
    session = make_session(lambda f: 1.0, now=lambda: clock[0], limit_minutes=10.0)

    def measure(case, minutes, flops):
        if not session.wants("cost", case, flops=flops):
            return False
        session.attempt("cost", case, lambda: clock.__setitem__(0, clock[0] + 60 * minutes), flops)
        return True

    assert measure("a", 1, 1e12)
    assert not measure("b", 12, 10e12)
    assert measure("c", 8, 8e12)
    assert not measure("d", 2, 2e12)
    assert session.lines == [
        "cost b: not run, 540 s left, about 600 s needed",
        "cost d: not run, 60 s left, about 120 s needed",
    ]
    assert (session.unfinished, session.failures) == (2, 0)


class Described(Exception):
    """As Triton's OutOfResources, PTXASError and CompilationError: none is a RuntimeError or a ValueError."""


@pytest.mark.parametrize("error", [TypeError("no such argument"), Described("needs 300 KiB\nof shared memory"), KeyError("a")])
def test_whatever_a_case_raises_costs_only_that_case(make_session, monkeypatch, error):
    def fail():
        raise error

    session = make_session(lambda f: 1.0)
    monkeypatch.delenv("SEGUE_TRACEBACK", raising=False)
    session.attempt("cost", "a", fail)
    (line,) = session.lines
    assert line == f"cost a: FAILED, {type(error).__name__}: {' '.join(str(error).split())}"
    assert session.failures == 1
    monkeypatch.setenv("SEGUE_TRACEBACK", "1")
    session.attempt("cost", "a", fail)
    assert "in fail" in session.lines[-1]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_it(make_session, ending):
    def leave():
        raise ending

    with pytest.raises(ending):
        make_session(lambda f: 1.0).attempt("cost", "a", leave)


def test_small_models_come_first(make_session):
    session = make_session(None, models=("sit-xl/2", "sit-s/2@64:64", "sit-b/2"))
    assert [model.text for model, _ in chosen_cases(session)] == ["sit-s/2@64:64", "sit-b/2", "sit-xl/2"]
    session = make_session(None, models=("sit-b/2", "sit-s/2"), batches=(16, 1))
    assert [(model.text, batch) for model, batch in chosen_cases(session)] == [
        ("sit-s/2", 1),
        ("sit-b/2", 1),
        ("sit-s/2", 16),
        ("sit-b/2", 16),
    ]


def test_a_killed_step_suite_keeps_the_live_sets_and_goes_on_after_them(tmp_path, monkeypatch, make_session, flop_timer):
    """The child is killed in the waterfall: the rows before it are in the file, and the next run does not make them again."""

    class Killed(BaseException):
        pass

    def kill(_study):
        raise Killed

    path = tmp_path / "rows.jsonl"
    options = {"models": ("sit-s/2@64:64",), "repetitions": 1}
    with monkeypatch.context() as context:
        context.setattr(step, "waterfall_rows", kill)
        with pytest.raises(Killed):
            run_suite("step", make_session(flop_timer, path, **options))
    kept = read_rows(path)
    assert {row.metric for row in kept} == {"time of a call", "cost relative to an unguided call"}
    run_suite("step", make_session(flop_timer, path, **options))
    rows = read_rows(path)
    assert [row for row in rows if row.metric == "time of a call"] == [row for row in kept if row.metric == "time of a call"]
    assert {"as published", "engine, exact"} <= {row.variant for row in rows}
    session = make_session(flop_timer, path, **options)
    run_suite("step", session)
    assert session.lines == ["step sit-s/2@64:64 batch 1, 2 calls, sgg: already in rows.jsonl, skipped"]


def test_a_stage_that_does_not_compile_costs_only_itself(monkeypatch, make_session, flop_timer):
    class Failing(StagedSampler):
        def run(self, conditions, state):
            if self.stages.batch and not self.stages.fork:
                raise Described("out of resource: shared memory")
            return super().run(conditions, state)

    monkeypatch.setattr(step, "StagedSampler", Failing)
    session = make_session(flop_timer, models=("sit-s/2@64:64",), repetitions=1)
    run_suite("step", session)
    timed = {row.variant for row in session.rows if row.metric == "time of a run"}
    assert "+ branches as rows" not in timed and {"as published", "+ prefix fork", "engine, exact"} <= timed
    assert session.failures == 1


def test_without_the_published_algorithm_no_exact_stage_is_timed_and_approximations_are(monkeypatch, make_session, flop_timer):
    """Nothing is left to judge a stage by, and no gain can be told; what comes after the waterfall is measured all the same."""

    class Failing(StagedSampler):
        def run(self, conditions, state):
            raise Described("out of resource: shared memory")

    monkeypatch.setattr(step, "StagedSampler", Failing)
    session = make_session(flop_timer, models=("sit-s/2@64:64",), repetitions=1, steps=4)
    run_suite("step", session)
    assert {row.variant for row in session.rows if row.metric == "time of a run"} == {REUSE, REUSE_ALONE, "engine, exact"}
    assert not [row for row in session.rows if row.metric == "speed-up over the published algorithm"]
    assert [line for line in session.lines if "FAILED, Key" in line] == []
    assert sum("no exact stage is timed, 'as published' drew nothing" in line for line in session.lines) == 1


def test_a_piece_that_does_not_fit_is_left_for_another_run(make_session, flop_timer, monkeypatch):
    session = make_session(flop_timer, models=("sit-s/2@64:64",), repetitions=1)
    monkeypatch.setattr(session._pace, "estimate", lambda flops: 1e9 if flops > whole else 0.0)
    whole = 4 * BenchModel.parse("sit-s/2@64:64").plan("sgg", 2).cost.flops
    run_suite("step", session)
    assert {row.metric for row in session.rows} >= {"time of a call", "time of a run"}
    assert "as published" not in {row.variant for row in session.rows}
    assert session.unfinished == 1


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
    session = make_session(flop_timer, models=(TINY,), repetitions=1)
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
    fused = "+ fused kernels" in [row.variant for row in gains]
    for stage in ("graph", "fp8", "reuse", *([] if fused else ["fused kernels"])):
        assert sum(f"stage {stage}" in line and "not run" in line for line in session.lines) == 1


@pytest.mark.parametrize("fused", [True, False])
def test_the_kernels_of_the_engine_are_a_stage_on_the_cpu_too(monkeypatch, fused):
    """Reuse, which comes last, then changes the plan alone: its gain is not that of the kernels as well."""
    if fused and onednn.obstacle(torch.device("cpu"), torch.float32):
        pytest.skip("this PyTorch cannot fuse linear layers on the CPU")
    monkeypatch.setattr(onednn, "measured_faster", lambda: fused)
    monkeypatch.setattr(stages, "program_draw", lambda workload, plan, kernels, graphs, engine=None: (kernels, plan.cost))
    model, lines = BenchModel.parse("sit-s/2@64:64"), []
    workload = Workload.make(model, 1, torch.device("cpu"), torch.float32)
    made = stages.engine_stages(workload, workload.plan(model.rule("sgg"), 4), None, lines.append)
    (_, before), (last, after) = list(made.items())[-2:]
    assert last == REUSE and after[0] == before[0] and after[1].flops < before[1].flops
    assert ("+ fused kernels" in made) is fused
    assert any(line.startswith("stage fused kernels: not run, ") for line in lines) is not fused


@pytest.mark.slow
def test_the_step_suite_shows_what_reused_directions_save_and_their_error(make_session, flop_timer):
    """Time is arithmetic: after the other stages and alone beside the exact engine, reuse gains what its plan saves."""
    session = make_session(flop_timer, models=("sit-s/2@64:64",), steps=4, repetitions=1)
    run_suite("step", session)
    model = BenchModel.parse("sit-s/2@64:64")
    exact, reused = (resolve_plan({"main": model.spec}, model.rule("sgg").reused(n), 4).cost for n in (1, 2))
    saved = pytest.approx(exact.flops / reused.flops, rel=0.02)
    gains = {row.variant: row.value for row in session.rows if row.metric == "speed-up over the published algorithm"}
    assert gains[REUSE] / gains["engine, plain kernels"] == saved
    alone = {row.metric: row.value for row in session.rows if row.variant == REUSE_ALONE}
    assert alone["speed-up over the exact engine"] == saved
    assert alone["time of a run"] > 0
    errors = {row.variant: row.value for row in session.rows if row.metric == "error of a run"}
    assert 0 < errors[REUSE] < 1
    assert 0 < errors[REUSE_ALONE] < 1


@pytest.mark.slow
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
