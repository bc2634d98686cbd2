"""The orchestration of a GPU visit, with a machine that is made up: order, limits, resumption, exit codes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from segue.bench import gpu_visit
from segue.bench.gpu_visit import Part, execute, run_visit

PARTS = {
    "tests": Part(["tests"], 100),
    "tune": Part(["tune"], 100, missing="there is no tuner"),
    "bench": Part(["bench"], 100),
    "late": Part(["late"], 100),
}


@pytest.fixture
def visit(monkeypatch, tmp_path):
    """``visit(codes, seconds, **options)`` runs the parts above; returns (exit code, what ran with which limit, states)."""
    monkeypatch.setattr(gpu_visit, "parts", lambda _out: PARTS)

    def go(codes=None, seconds=30.0, minutes=8.0, names=None):
        clock, ran = [0.0], []

        def run(command, limit_s, log):
            ran.append((command[0], limit_s))
            clock[0] += min(seconds, limit_s)
            with log.open("a") as file:
                file.write(f"{command[0]} wrote this\n")
            return (codes or {}).get(command[0], 0)

        code = run_visit(tmp_path, minutes, names, run, lambda: clock[0], lambda: True)
        states = {name: part["status"] for name, part in json.loads((tmp_path / "visit.json").read_text()).items()}
        return code, ran, states

    return go


def test_parts_run_in_order_and_a_missing_one_is_no_failure(visit, capsys):
    code, ran, states = visit()
    assert (code, [name for name, _ in ran]) == (0, ["tests", "bench", "late"])
    assert states == {"tests": "passed", "tune": "missing", "bench": "passed", "late": "passed"}
    assert "tune: not run, there is no tuner" in capsys.readouterr().out


def test_a_part_gets_its_share_or_what_is_left(visit):
    code, ran, states = visit(seconds=95.0, minutes=3.0)
    assert ran == [("tests", 100), ("bench", 85.0)]
    assert states["late"] == "not reached"
    assert code == 1


def test_a_failure_stops_nothing_shows_its_last_words_and_fails_the_visit(visit, capsys):
    code, ran, states = visit(codes={"tests": 3})
    assert code == 1
    assert [name for name, _ in ran] == ["tests", "bench", "late"]
    assert states["tests"] == "failed"
    assert "tests wrote this" in capsys.readouterr().out


def test_a_visit_goes_on_where_it_stopped(visit):
    assert visit(codes={"bench": None})[2]["bench"] == "timed out"
    code, ran, states = visit()
    assert [name for name, _ in ran] == ["bench"]
    assert code == 0
    assert set(states.values()) == {"passed", "missing"}


def test_what_a_part_writes_elsewhere_is_kept_when_it_passes(visit, monkeypatch, tmp_path):
    table = tmp_path / "elsewhere" / "table.py"
    table.parent.mkdir()
    table.write_text("tuned")
    monkeypatch.setitem(PARTS, "late", Part(["late"], 100, writes=table))
    visit(codes={"late": 1})
    assert not (tmp_path / "table.py").exists()
    visit()
    assert (tmp_path / "table.py").read_text() == "tuned"


def test_chosen_parts_only(visit):
    assert [name for name, _ in visit(names=("late", "tests"))[1]] == ["late", "tests"]


def test_the_real_parts_put_correctness_first(tmp_path):
    names = list(gpu_visit.parts(tmp_path))
    assert names[:2] == ["kernel-tests", "engine-tests"]
    assert names.index("tune") < names.index("kernels") < names.index("e2e")


def running(pid: str) -> bool:
    """Whether a process is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_command_past_its_limit_is_ended_with_what_it_started_and_its_output_kept(tmp_path, monkeypatch):
    """The limit is reached when the command has said the number of its child, however long that takes."""
    log = tmp_path / "log.txt"
    log.touch()
    wait = subprocess.Popen.wait

    def limited(process, timeout=None):
        if timeout is not None:
            while not log.read_text().endswith("\n"):
                os.sched_yield()
            raise subprocess.TimeoutExpired(process.args, timeout)
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", limited)
    assert execute(["sh", "-c", "sleep 600 & echo child $!; wait"], 1.0, log) is None
    word, child = log.read_text().split()
    assert word == "child"
    while running(child):  # it was killed, not waited for; alive, it would go on for ten minutes
        os.sched_yield()


def test_the_exit_code_of_a_command_is_its_own_and_its_output_is_added(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    assert execute(["sh", "-c", "echo more; exit 4"], 600, log) == 4
    assert log.read_text() == "before\nmore\n"


def test_a_machine_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this machine has none"):
        run_visit(tmp_path / "out", 8.0, None, has_device=lambda: False)
    assert not (tmp_path / "out").exists()
