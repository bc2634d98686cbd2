"""``segue bench`` from outside: bad input is one sentence and exit code 2, before any work and any file."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from segue.__main__ import app
from segue.bench.rows import append_rows, make_row, read_rows
from segue.bench.suites import UNFINISHED
from segue.bench.timing import Statistic


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture
def row(environment):
    statistic = Statistic(2.0, 1.9, 2.1, 7)
    return make_row(environment, "cost", "model", "cfg", "time of a run", "s", statistic, "float32")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cost", "--model", "nope"), "unknown model 'nope'"),
        (("cost", "--model", "sit-b/2@100"), "width must be a multiple of 4 and of the head dimension 64, got 100"),
        (("cost", "--model", "sit-b/2:100"), "the image side must be a positive multiple of 16 pixels, got 100"),
        (("cost", "--model", "sit-b/2", "--rule", "magic"), "unknown guidance rule 'magic'"),
        (("cost", "--model", "sit-b/2", "--rule", "slg:weight=1,layers=40"), "layer 40 does not exist"),
        (("cost", "--steps", "5"), "steps must be even and at least 2"),
        (("cost", "--dtype", "int4"), "unknown dtype 'int4'"),
        (("cost", "--device", "tpu"), "unknown device 'tpu'"),
        (("cost", "--batch", "0"), "batch must be at least 1, got 0"),
        (("cost", "--threads", "0"), "threads must be at least 1, got 0"),
        (("cost", "--limit-minutes", "-1"), "limit-minutes must be positive"),
        (("cold", "--rule", "slg"), "cold starts are measured under none, cfg, sgg, got 'slg'"),
        (("e2e", "--model", "sit-s/2", "--peer", "nobody"), "unknown peer 'nobody'"),
        (("kernels", "--model", "sit-s/2", "--peer", "eager"), "no setting of kernels: peers, got eager"),
        (("kernels", "--batch", "2"), "no setting of kernels: batches, got 2"),
        (("scaling", "--rule", "cfg"), "no setting of scaling: rules, got cfg"),
        (("step", "--rule", "cfg", "--rule", "sgg"), "step measures one rule, got cfg, sgg"),
        (("cost", "--out", "rows.csv"), "the result file must end in .jsonl (a .csv file goes beside it), got rows.csv"),
        (("run", "--suites", "cost,nothing"), "unknown suite 'nothing'"),
        (("compare", "missing.jsonl", "HEAD"), "neither a result file nor a git revision"),
        (("report", "missing.jsonl"), "there is no result file missing.jsonl"),
        (("gpu", "--out", "visit", "--parts", "lunch"), "unknown part 'lunch'"),
        (("gpu", "--out", "visit", "--limit-minutes", "0"), "limit-minutes must be positive"),
        (("cost", "--unknown", "1"), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert said in last
    assert last.startswith("segue: ")
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_damaged_result_file_is_refused_before_measuring(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("not json\n")
    result = invoke("cost", "--model", "sit-s/2@64:16", "--out", str(path))
    assert result.exit_code == 2
    assert "line 1 is not a result row" in result.stderr
    assert path.read_text() == "not json\n"


def test_a_run_writes_rows_that_repeat_its_command(tmp_path, monkeypatch):
    """The one test that uses the real timer: it looks at what is written, never at how long it took."""
    path = tmp_path / "rows.jsonl"
    arguments = ["bench", "cost", "--model", "sit-s/2@64:16", "--rule", "cfg", "--repetitions", "1", "--out", str(path)]
    monkeypatch.setattr("sys.argv", ["segue", *arguments])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = read_rows(path)
    assert {row.variant for row in rows} == {"none", "none (again)", "cfg"}
    assert all(row.command == " ".join(["segue", *arguments]) and row.n == 1 for row in rows)
    again = CliRunner().invoke(app, arguments)
    assert "skipped" in again.output
    assert read_rows(path) == rows


def test_what_is_left_out_for_want_of_time_has_an_exit_code_of_its_own(tmp_path):
    """A limit that is over before the first case: nothing failed, and nothing is done."""
    path = tmp_path / "rows.jsonl"
    result = invoke("cost", "--model", "sit-s/2@64:16", "--limit-minutes", "1e-9", "--out", str(path))
    assert result.exit_code == UNFINISHED
    assert "1 cases left for another run" in result.output
    assert not path.exists()


def test_the_table_is_printed():
    result = invoke("table")
    assert result.exit_code == 0
    assert "| sd3.5-medium | 11.250 | 38 % | 0.509 | 1.755x | 2.426x | 1.38 |" in result.output


def test_compare_flags_a_slowed_row_and_can_fail(tmp_path, row):
    before, after = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    steady = replace(row, variant="steady")
    append_rows(before, [row, steady])
    append_rows(after, [replace(row, value=3.0, p20=2.9, p80=3.1), steady])
    result = invoke("compare", str(before), str(after))
    assert result.exit_code == 0
    assert "worse   +50.0%" in result.output
    assert "1 worse, 0 better, 1 same" in result.output
    assert "steady" not in result.output
    assert "steady" in invoke("compare", "--all", str(before), str(after)).output
    assert invoke("compare", "--strict", str(before), str(after)).exit_code == 1
    machine = [json.loads(line) for line in invoke("compare", "--json", str(before), str(after)).output.splitlines()]
    assert [one["verdict"] for one in machine] == ["worse", "same"]
