"""Rows go to a file and come back; compare flags what changed by more than its spread, and nothing else."""

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segue.bench.compare import Difference, compare, environment_changes, load_side
from segue.bench.rows import append_rows, check_writable, latest, make_row, read_rows, write_csv
from segue.bench.timing import Statistic


@pytest.fixture
def row(environment):
    statistic = Statistic(2.0, 1.9, 2.2, 7)
    return make_row(environment, "cost", "model batch 1", "cfg", "time of a run", "s", statistic, "float32", 1.8, "a note")


def shifted(row, factor: float):
    return replace(row, value=row.value * factor, p20=row.p20 * factor, p80=row.p80 * factor)


def test_rows_survive_the_file_and_the_csv_holds_the_same(tmp_path, row):
    path = tmp_path / "deep" / "rows.jsonl"
    other = replace(row, variant="sgg", expected=None, versions={"torch": "2", "numpy": "1,5"})
    append_rows(path, [row])
    append_rows(path, [other])
    assert read_rows(path) == [row, other]
    write_csv(tmp_path / "rows.csv", [row, other])
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["variant"] for line in table] == ["cfg", "sgg"]
    assert float(table[0]["value"]) == row.value
    assert json.loads(table[1]["versions"]) == other.versions


def test_every_row_says_where_when_and_how(row):
    for field in ("unit", "case", "device", "versions", "commit", "command", "date"):
        assert getattr(row, field)
    assert row.date.endswith("+00:00")


@pytest.mark.parametrize("line", ["{", "[1]", '{"suite": "cost"}', '{"suite": "cost", "surprise": 1}'])
def test_a_damaged_file_is_named_with_its_line(tmp_path, row, line):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not a result row"):
        read_rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no result file"):
        read_rows(tmp_path / "none.jsonl")


def test_the_last_row_of_a_key_counts(row):
    assert latest([row, replace(row, variant="sgg"), replace(row, value=5.0)])[0].value == 5.0


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (1.1, "same"), (1.4, "worse"), (0.93, "same"), (0.7, "better")])
def test_a_deliberately_slowed_case_is_flagged_and_noise_is_not(row, factor, verdict):
    """The spread of the row is -5 % to +10 % with 7 rounds: a median is known to 4 %."""
    (difference,), lone = compare([row], [shifted(row, factor)])
    assert difference.verdict == verdict
    assert difference.change == pytest.approx(factor - 1)
    assert not lone


@pytest.mark.parametrize(("n", "bound"), [(3, 0.04), (5, 0.015), (9, 0.004)])
def test_two_runs_of_the_same_thing_are_rarely_called_different(row, n, bound):
    generator = np.random.default_rng(n)

    def run():
        statistic = Statistic.of(generator.lognormal(0.0, 0.05, n))
        return replace(row, value=statistic.median, p20=statistic.p20, p80=statistic.p80, n=n)

    pairs = [Difference(run(), run()) for _ in range(2000)]
    assert sum(pair.verdict != "same" for pair in pairs) <= bound * len(pairs)


@pytest.mark.parametrize(("factor", "verdict"), [(1.08, "same"), (1.2, "worse")])
def test_a_value_measured_once_has_no_spread_and_needs_a_larger_change(row, factor, verdict):
    once = replace(row, p20=row.value, p80=row.value, n=1, metric="working memory", unit="GiB")
    assert compare([once], [shifted(once, factor)])[0][0].verdict == verdict


def test_what_the_sides_were_not_made_with_alike_is_said(row):
    other = replace(row, threads=64, versions=row.versions | {"torch": "3"}, commit="def")
    assert environment_changes([row], [row]) == []
    assert environment_changes([row], [other]) == ["threads: 1 before, 64 after", "torch: 0 before, 3 after"]


PROC = pytest.param("/proc/rows.jsonl", marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc"))


@pytest.mark.parametrize("name", ["rows.csv", "rows", "folder.jsonl", "file/rows.jsonl", PROC])
def test_a_result_file_that_cannot_be_one_is_refused(tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="the result file"):
        check_writable(tmp_path / name)


def test_a_table_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "rows.csv").write_text("of another")
    with pytest.raises(ValueError, match=r"rows\.csv is there, and is no table of .*rows\.jsonl"):
        check_writable(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("")
    check_writable(tmp_path / "rows.jsonl")


def test_more_of_a_rate_is_better(row):
    rate = replace(row, unit="images/s")
    assert compare([rate], [shifted(rate, 1.3)])[0][0].verdict == "better"
    assert compare([rate], [shifted(rate, 0.7)])[0][0].verdict == "worse"


def test_a_gain_that_shrinks_is_worse(row):
    """Speed-ups and costs are both ratios in x: which way is better is in the metric."""
    gain = replace(row, unit="x", metric="speed-up over the published algorithm")
    assert compare([gain], [shifted(gain, 0.7)])[0][0].verdict == "worse"
    cost = replace(row, unit="x", metric="cost relative to unguided")
    assert compare([cost], [shifted(cost, 0.7)])[0][0].verdict == "better"


def test_the_worst_comes_first_and_lone_rows_are_named(row):
    slow, fast = replace(row, variant="slow"), replace(row, variant="fast")
    differences, lone = compare([fast, slow, row], [shifted(fast, 0.5), shifted(slow, 2.0), replace(row, device="other")])
    assert [difference.verdict for difference in differences] == ["worse", "better"]
    assert [line.split(":")[0] for line in lone] == ["only before", "only after"]


def test_results_without_a_common_row_are_refused(row):
    with pytest.raises(ValueError, match="no row in common"):
        compare([row], [replace(row, device="other")])


def test_a_side_may_be_a_commit(tmp_path, row, monkeypatch):
    """The rows of a revision are the result files committed at it, whatever lies in the working tree."""

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.chdir(tmp_path)
    git("init")
    append_rows(tmp_path / "bench" / "results" / "cpu.jsonl", [row])
    git("add", ".")
    git("commit", "-m", "first")
    append_rows(tmp_path / "bench" / "results" / "cpu.jsonl", [shifted(row, 2.0)])
    assert load_side("HEAD") == [row]
    assert compare(load_side("HEAD"), load_side("bench/results/cpu.jsonl"))[0][0].verdict == "worse"
    with pytest.raises(ValueError, match="neither a result file nor a git revision"):
        load_side("no-such-revision")
