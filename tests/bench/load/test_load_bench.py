"""``segue bench serve``: the gate, rows by server that an interrupted run goes on from, tables, and who is said to win."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from segue.__main__ import app
from segue.bench.load import load_bench
from segue.bench.load.arrivals import Mix
from segue.bench.load.drawings import Drawings
from segue.bench.load.load_bench import LoadBench
from segue.bench.load.overhead import measure_overhead
from segue.bench.load.servers import ONE, REQUEST, SERVERS, STEP
from segue.bench.load.settings import LoadSettings
from segue.bench.load.tables import (
    AGAINST,
    ALONE,
    JOINING,
    LATENCY,
    NAME,
    OUTSIDE,
    SATURATION,
    SLOWDOWN,
    TAIL,
    THROUGHPUT,
    TICK,
    USED,
    load_tables,
    verdicts,
)
from segue.bench.report import report_text
from segue.bench.rows import make_row, read_rows
from segue.bench.suites import UNFINISHED
from segue.bench.timing import host_timer, once

SMALL = Mix((("none", 0.5), ("cfg", 0.5)), (1, 2))
LOAD = LoadSettings(requests=5, rate=0.9, slots=3)


@pytest.fixture
def bench(make_session, drawings, tmp_path):
    """Makes load benches whose rows go into one file."""

    def make(load: LoadSettings = LOAD) -> LoadBench:
        session = make_session(host_timer, tmp_path / "rows.jsonl", repetitions=1, limit_minutes=60.0)
        return LoadBench(session, drawings, SMALL, load)

    return make


def test_all_servers_have_all_figures_of_the_same_load(bench):
    one = bench()
    one.run()
    rows = read_rows(one.session.path)
    assert {row.variant for row in rows if row.metric == ALONE} == {str(kind) for kind in SMALL.kinds}
    under_load = [row for row in rows if row.case == LOAD.open_loop("sit-s/2@64:32", 0)]
    figures = {f"{metric}, {which}" for metric in (LATENCY, SLOWDOWN) for which in ("mean", "p50", "p95", "p99")}
    for name in SERVERS:
        assert {row.metric for row in under_load if row.variant == name} > figures | {THROUGHPUT, USED}
    found = {(row.variant, row.metric): row.value for row in rows if row.suite == NAME}
    (rate,) = {row.expected for row in under_load if row.metric == THROUGHPUT and row.variant in SERVERS}
    assert rate == pytest.approx(LOAD.rate * found[REQUEST, SATURATION])
    assert found[AGAINST[STEP], TAIL] == pytest.approx(found[STEP, TAIL] / found[REQUEST, TAIL])
    assert (one.session.failures, one.session.unfinished) == (0, 0)


def test_an_interrupted_run_goes_on_at_the_rate_that_it_began_with(bench, monkeypatch):
    serve = load_bench.serve

    def interrupted(server, arrivals, *rest):
        if server.stats().slots == 1 and arrivals[-1].due > 0:
            raise KeyboardInterrupt
        return serve(server, arrivals, *rest)

    monkeypatch.setattr(load_bench, "serve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench().run()
    monkeypatch.undo()
    before = read_rows(bench().session.path)
    bench().run()
    after = read_rows(bench().session.path)
    case = LOAD.open_loop("sit-s/2@64:32", 0)
    assert after[: len(before)] == before
    assert {row.variant for row in before if row.case == case} == {STEP, REQUEST}
    assert {row.variant for row in after[len(before) :]} == {ONE, *AGAINST.values()}
    assert len({row.expected for row in after if row.metric == THROUGHPUT and row.variant in SERVERS}) == 1
    again = bench()
    again.run()
    assert again.session.rows == [] and again.session.lines == []


def test_a_server_that_draws_something_else_is_not_timed(bench, monkeypatch):
    alone = Drawings.alone
    monkeypatch.setattr(Drawings, "alone", lambda *given: alone(*given) * 1.01)
    one = bench()
    one.run()
    assert one.session.failures == len(SERVERS) and one.session.rows == []
    assert sum("NOT TIMED" in line for line in one.session.lines) == len(SERVERS)


def test_a_server_that_fails_costs_the_others_nothing(bench, monkeypatch):
    serve = load_bench.serve

    def failing(server, arrivals, *rest):
        if server.stats().slots == 1:
            raise RuntimeError("out of memory")
        return serve(server, arrivals, *rest)

    monkeypatch.setattr(load_bench, "serve", failing)
    one = bench()
    one.run()
    assert one.session.failures == 2  # at once, and under load
    assert {row.variant for row in one.session.rows if row.metric == TAIL} == {STEP, REQUEST}
    assert any("it waits for slowdown, p95 of no batching" in line for line in one.session.lines)


def test_every_round_begins_with_another_server(bench):
    pieces = list(bench(replace(LOAD, rounds=3, seed=5)).pieces())
    first = [next(p.variants for p in pieces if p.case == LOAD.open_loop("sit-s/2@64:32", seed)) for seed in (5, 6, 7)]
    assert sorted(first) == sorted([(name,) for name in SERVERS])
    at_once = [next(p.variants for p in pieces if p.case == LOAD.at_once("sit-s/2@64:32", seed)) for seed in (5, 6, 7)]
    assert at_once == [(REQUEST,)] * 3  # says how fast requests come


def test_the_share_outside_the_networks_is_what_their_calls_leave(make_session, drawings):
    """Ticks of 20 seconds, and calls of the networks of one each: a forward, and a look ahead for each request."""
    moments = iter(range(10**6))

    def tick(function):
        function()
        return 20.0

    session = make_session(tick, now=lambda: float(next(moments)), repetitions=2, limit_minutes=1e9)
    measure_overhead(session, drawings)
    assert session.failures == 0
    found = {(row.case[-1], row.metric): row.value for row in session.rows}
    assert found["1", TICK] == found["8", TICK] == 20.0
    assert found["1", OUTSIDE] == pytest.approx(18 / 20) and found["8", OUTSIDE] == pytest.approx(11 / 20)
    assert found["1", JOINING] == found["8", JOINING] == 0.0
    assert "| sit-s/2@64:32, requests under way: 8 | 20 (20-20) | 55.00% | 0 | 2 |" in load_tables(session.rows)


def rows_of(environment, tails: dict[str, float], saturations: dict[str, float], seed: int = 0):
    """What the verdict reads: a p95 of slowdown and a saturation for each server."""

    def row(case, variant, metric, value):
        return make_row(environment, NAME, f"model, {case}, seed {seed}", variant, metric, "x", once(value), "float32")

    made = [row("at once", name, SATURATION, value) for name, value in saturations.items()]
    made += [row("at once", name, USED, 1.0) for name in saturations]
    made += [row("70% of saturation", name, TAIL, value) for name, value in tails.items()]
    for name, variant in AGAINST.items():
        made.append(row("70% of saturation", variant, TAIL, tails[name] / tails[REQUEST]))
        made.append(row("70% of saturation", variant, THROUGHPUT, 1.02))
    return made


def test_the_verdict_names_who_wins_also_where_it_is_no_batching(environment):
    rows = rows_of(environment, {STEP: 3.0, REQUEST: 10.0, ONE: 2.0}, {STEP: 4.0, REQUEST: 3.5, ONE: 3.0})
    (said,) = verdicts(rows)
    assert said == (
        "model, 70% of saturation: step-level batching has 0.30 of the p95 of slowdown that request-level batching has (asked "
        "for: at most 0.6), at 1.02 of its throughput. The lowest p95 of slowdown here is that of no batching, 2; the highest "
        "saturation that of step-level, 4 images/s."
    )
    more = rows_of(environment, {STEP: 5.0, REQUEST: 10.0, ONE: 8.0}, {STEP: 4.0, REQUEST: 3.5, ONE: 9.0}, seed=1)
    third = rows_of(environment, {STEP: 4.0, REQUEST: 10.0, ONE: 8.0}, {STEP: 4.0, REQUEST: 3.5, ONE: 9.0}, seed=2)
    (said,) = verdicts([*rows, *more, *third])  # of rounds the medians
    assert "has 0.40 of" in said and "that of step-level, 4; the highest saturation that of no batching, 9" in said
    assert verdicts([row for row in rows if row.variant != ONE]) == []


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["bench", "serve", *arguments])


def test_the_command_ends_with_tables_and_a_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(Mix, "of", classmethod(lambda cls, rules: SMALL))
    path = tmp_path / "rows.jsonl"
    arguments = ("--model", "sit-s/2@64:32", "--requests", "4", "--repetitions", "1", "--out", str(path))
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "of the p95 of slowdown that request-level batching has" in result.output
    assert "| case | server | latency mean, s | p50 | p95 | p99 | slowdown mean |" in result.output
    rows = read_rows(path)
    text = report_text(rows)
    assert "### Under load" in text and "| sit-s/2@64:32, 8 slots, 4 requests, 70% of saturation, seed 0 | step-level |" in text
    assert all(row.command and row.date and row.commit for row in rows)
    again = invoke(*arguments)
    assert again.exit_code == 0 and read_rows(path) == rows
    assert "of the p95 of slowdown that request-level batching has" in again.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "1.5"), "rate must be a share of saturation between 0 and 1, got 1.5"),
        (("--slots", "0"), "slots must be at least 1, got 0"),
        (("--model", "nope"), "unknown model 'nope'"),
        (("--limit-minutes", "-1"), "limit-minutes must be positive"),
        (("--out", "rows.csv"), "the result file must end in .jsonl"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_limit_that_is_over_leaves_all_for_another_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    result = invoke("--model", "sit-s/2@64:32", "--requests", "2", "--limit-minutes", "1e-9", "--out", str(path))
    assert result.exit_code == UNFINISHED and not path.exists()
    assert "cases left for another run" in result.output
