"""The orchestration of a GPU visit, with a machine that is made up: order, limits, resumption, exit codes."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from segue.bench import gpu_visit
from segue.bench.child_process import execute
from segue.bench.gpu_visit import CLOSING_S, Machine, run_visit
from segue.bench.tuned_table import install
from segue.bench.visit_parts import Part

OWN = "TABLE = {}\n"
HERE = {"architecture": "sm_90", "triton": "3.6.0"}
TABLE = "TABLE = {'sm_90': {('adaln', 'd512'): 1}}\n"


@pytest.fixture
def parts(monkeypatch):
    """The parts of a visit, which a test may change."""
    made = {
        "tests": Part(["tests"], 100),
        "tune": Part(["tune"], 100, missing="there is no tuner"),
        "bench": Part(["bench"], 100, least=10, unfinished=3),
        "late": Part(["late"], 100),
    }
    monkeypatch.setattr(gpu_visit, "parts", lambda _out: made)
    return made


@pytest.fixture
def installed(tmp_path):
    """The launch table of the tree."""
    path = tmp_path / "tree" / "installed.py"
    path.parent.mkdir()
    path.write_text(OWN)
    return path


@pytest.fixture
def visit(parts, tmp_path, installed):
    """``visit(codes, seconds, ...)`` runs the parts; returns (exit code, what ran with which limit, states)."""

    def go(codes=None, seconds=30.0, minutes=8.0, names=None, here=HERE, writes=None):
        clock, ran = [0.0], []

        def run(command, limit_s, log, environment):
            ran.append((command[0], limit_s))
            clock[0] += min(seconds, limit_s)
            with log.open("a") as file:
                file.write(f"{command[0]} wrote this, commit {environment['SEGUE_COMMIT']}\n")
            (writes or (lambda _name: None))(command[0])
            given = (codes or {}).get(command[0], 0)
            return given.pop(0) if isinstance(given, list) else given

        machine = Machine(run, lambda: clock[0], lambda: True, lambda: {"device": "made up"}, lambda: here, installed)
        code = run_visit(tmp_path / "out", minutes, names, machine=machine)
        state = json.loads((tmp_path / "out" / "visit.json").read_text())
        return code, ran, {name: part["status"] for name, part in state["parts"].items()}

    return go


def test_parts_run_in_order_and_a_missing_one_is_no_failure(visit, capsys):
    code, ran, states = visit()
    assert (code, [name for name, _ in ran]) == (0, ["tests", "bench", "late"])
    assert states == {"tests": "passed", "tune": "missing", "bench": "passed", "late": "passed"}
    assert "tune: not run, there is no tuner" in capsys.readouterr().out


def test_a_step_that_was_measured_is_shown_beside_its_prediction_by_a_process_of_its_own(
    visit, tuner, installed, tmp_path, capsys
):
    """Within what is left of the visit, and with the tree's table, as the step was measured."""
    seen = []

    def step(name):
        tuner(name)
        (tmp_path / "out" / "results.jsonl").write_text("row")
        seen.append((name, installed.read_text()))

    _, ran, _ = visit(seconds=30.0, minutes=5.0, writes=step)
    assert seen[-2:] == [("late", TABLE), (sys.executable, OWN)]
    assert ran[-1] == (sys.executable, 300.0 - 4 * 30.0 - CLOSING_S)
    assert f"{sys.executable} wrote this" in capsys.readouterr().out


@pytest.mark.parametrize("code, said", [(1, "failed"), (None, "timed out"), (-9, "killed by signal 9")])
def test_predictions_that_fail_are_said_and_cost_nothing_else(visit, code, said, tmp_path, capsys):
    rows = tmp_path / "out" / "results.jsonl"
    ended, ran, _ = visit(codes={sys.executable: code}, writes=lambda _name: rows.write_text("row"))
    assert (ended, ran[-1][0]) == (0, sys.executable)
    out = capsys.readouterr().out
    assert f"{sys.executable} wrote this" in out
    assert f"the predictions: {said}; measured beside predicted: segue bench census MODEL --beside {rows}" in out


def test_a_visit_that_is_over_leaves_the_predictions_to_its_user(visit, tmp_path, capsys):
    """Counting kernels takes the host some seconds."""
    rows = tmp_path / "out" / "results.jsonl"
    _, ran, _ = visit(seconds=95.0, minutes=5.0, writes=lambda _name: rows.write_text("row"))
    assert sys.executable not in [name for name, _ in ran]
    assert f"measured beside predicted: segue bench census MODEL --beside {rows}" in capsys.readouterr().out


def test_what_one_machine_lacked_another_may_have(visit, parts):
    assert visit()[2]["tune"] == "missing"
    parts["tune"] = Part(["tune"], 100)
    _, ran, states = visit()
    assert ([name for name, _ in ran], states["tune"]) == (["tune"], "passed")


def test_a_part_gets_its_limit_or_what_is_left(visit):
    code, ran, states = visit(seconds=95.0, minutes=3.0)
    assert ran == [("tests", 100), ("bench", 85.0 - CLOSING_S)]
    assert states["late"] == "not reached"
    assert code == 1


@pytest.mark.parametrize("minutes", [0.1, 1.0, 2.9, 8.0])
def test_limits_never_pass_what_is_left_of_the_visit(visit, minutes):
    """Every part takes all it is given, and is ended: together they stay within the limit of the visit."""
    _, ran, _ = visit(codes=dict.fromkeys(("tests", "bench", "late")), seconds=1e9, minutes=minutes)
    assert sum(limit for _, limit in ran) <= 60 * minutes - CLOSING_S


def test_a_part_without_its_least_time_is_not_started(visit):
    """After 50 of 60 seconds less than the ten that the benchmark needs are left; what comes after needs none."""
    _, ran, states = visit(seconds=50.0, minutes=1.0)
    assert [name for name, _ in ran] == ["tests", "late"]
    assert states["bench"] == "not reached"


def test_a_failure_stops_nothing_shows_its_last_words_and_fails_the_visit(visit, capsys):
    code, ran, states = visit(codes={"tests": 3, "late": -9})
    assert code == 1
    assert [name for name, _ in ran] == ["tests", "bench", "late"]
    assert (states["tests"], states["late"]) == ("failed", "killed by signal 9")
    assert "tests wrote this" in capsys.readouterr().out


def test_a_visit_goes_on_where_it_stopped(visit):
    assert visit(codes={"tests": None})[2]["tests"] == "timed out"
    code, ran, states = visit()
    assert [name for name, _ in ran] == ["tests"]
    assert code == 0
    assert set(states.values()) == {"passed", "missing"}


@pytest.mark.parametrize("ended", [3, None])
def test_what_ran_out_of_time_is_unfinished_and_goes_on_first_in_the_same_call_then_in_the_next(visit, ended):
    code, ran, states = visit(codes={"bench": ended})
    assert [name for name, _ in ran] == ["tests", "bench", "late", "bench"]
    assert (code, states["bench"]) == (1, "unfinished")
    code, ran, states = visit()
    assert (code, [name for name, _ in ran], states["bench"]) == (0, ["bench"], "passed")


def test_what_a_part_did_is_not_forgotten_when_a_later_call_does_not_reach_it(visit):
    visit(codes={"late": 4})
    assert visit(names=("late",), minutes=0.01)[2]["late"] == "failed"


def test_a_visit_that_is_killed_leaves_what_it_did_and_what_it_was_doing(visit, tmp_path):
    class Killed(BaseException):
        pass

    def kill(name):
        if name == "bench":
            raise Killed

    with pytest.raises(Killed):
        visit(writes=kill)
    parts = json.loads((tmp_path / "out" / "visit.json").read_text())["parts"]
    assert (parts["tests"]["status"], parts["bench"]["status"]) == ("passed", "ended with the visit")
    assert [name for name, _ in visit()[1]] == ["bench", "late"]


def test_every_part_and_every_call_say_their_commit(visit, tmp_path, monkeypatch):
    """A copy without its repository: the commit is what the variable says, and the children are told."""
    monkeypatch.setattr(gpu_visit, "current_commit", lambda _root: "abc123")
    visit(names=("tests",))
    monkeypatch.setattr(gpu_visit, "current_commit", lambda _root: "def456")
    visit()
    state = json.loads((tmp_path / "out" / "visit.json").read_text())
    assert [call["commit"] for call in state["calls"]] == ["abc123", "def456"]
    assert {name: part["commit"] for name, part in state["parts"].items() if name in ("tests", "late")} == {
        "tests": "abc123",
        "late": "def456",
    }
    assert state["calls"][0]["device"] == "made up"
    assert "tests wrote this, commit abc123" in (tmp_path / "out" / "log.txt").read_text()


def test_an_unknown_commit_is_said(visit, monkeypatch, capsys):
    monkeypatch.setattr(gpu_visit, "current_commit", lambda _root: "unknown")
    visit()
    assert "set SEGUE_COMMIT" in capsys.readouterr().out


@pytest.fixture
def tuner(parts, tmp_path, monkeypatch):
    """The part ``tune`` writes a table into the folder; ``tuner()`` is what it does."""
    parts["tune"] = Part(["tune"], 100, unfinished=3)
    monkeypatch.setattr("segue.bench.tuned_table.launch_table.TABLE", {"sm_90": {("adaln", "d512"): 0}})

    def write(name):
        if name == "tune":
            (tmp_path / "out" / "launch_table.py").write_text(TABLE)

    return write


def test_what_was_tuned_is_used_by_what_follows_even_if_the_tuner_was_ended(visit, tuner, installed):
    seen = []

    def step(name):
        tuner(name)
        seen.append((name, installed.read_text()))

    visit(codes={"tune": None}, writes=step)
    # the last run of tune goes on with its table
    assert seen == [("tests", OWN), ("tune", OWN), ("bench", TABLE), ("late", TABLE), ("tune", TABLE)]
    assert [path.name for path in installed.parent.iterdir()] == ["installed.py"]
    assert installed.read_text() == OWN


def test_what_a_tuned_table_changed_is_not_measured_without_one(visit, parts, tuner, tmp_path):
    """The tuner writes nothing at first: what waits for its table runs once there is one, in the same call or the next."""
    parts["tune"] = Part(["tune"], 100, unfinished=3, writes=tmp_path / "out" / "launch_table.py")
    parts["bench"] = Part(["bench"], 100, least=10, unfinished=3, tuned=True)
    code, ran, states = visit()
    assert ([name for name, _ in ran], states["bench"]) == (["tests", "tune", "late", "tune"], "not reached")
    assert code == 1
    tries = []

    def second(name):
        tries.append(name)
        if tries.count("tune") == 2:
            tuner(name)

    code, ran, states = visit(writes=second)
    assert ([name for name, _ in ran], states["bench"], code) == (["tune", "tune", "bench"], "passed", 0)


def test_what_comes_before_tuning_is_measured_with_the_table_of_the_tree_whenever_it_runs(visit, parts, tuner, installed):
    """Once more in the call that tuned, and in the next one, beside what is measured with the tuned table."""
    parts["tests"] = Part(["tests"], 100, unfinished=3)
    seen = []

    def step(name):
        tuner(name)
        seen.append((name, installed.read_text()))

    visit(codes={"tests": 3, "late": 1}, writes=step)
    assert seen[-1] == ("tests", OWN)
    seen.clear()
    visit(writes=step)
    assert seen == [("tests", OWN), ("late", TABLE)]


def test_a_visit_that_was_killed_leaves_no_tuned_table_to_the_next(visit, tuner, installed, tmp_path):
    visit(codes={"tests": 1}, writes=tuner)
    install(tmp_path / "out" / "launch_table.py", installed)  # what a process that is killed cannot undo
    seen = []
    visit(codes={"tests": 1}, writes=lambda name: seen.append((name, installed.read_text())))
    assert seen == [("tests", OWN)]
    assert installed.read_text() == OWN


def test_a_tree_that_cannot_be_written_is_said_and_keeps_its_table(visit, tuner, installed, capsys):
    installed.with_name("installed.py.new").mkdir()
    code, ran, _ = visit(writes=tuner)
    assert (code, [name for name, _ in ran]) == (0, ["tests", "tune", "bench", "late"])
    assert capsys.readouterr().out.count("launch_table.py: not used, it cannot be put in place: ") == 1
    assert installed.read_text() == OWN


def test_a_tuner_that_came_to_its_limit_before_it_wrote_anything_goes_on_next_time(visit, parts, tuner, tmp_path):
    parts["tune"] = Part(["tune"], 100, writes=tmp_path / "out" / "launch_table.py")
    assert visit()[2]["tune"] == "unfinished"
    _, ran, states = visit(writes=tuner)
    assert (ran[0][0], states["tune"]) == ("tune", "passed")


def test_a_fresh_machine_takes_the_tuned_table_for_what_comes_after_tuning(visit, tuner, installed):
    visit(codes={"bench": 1}, writes=tuner)
    installed.write_text("another tree")
    seen = []
    visit(writes=lambda name: seen.append((name, installed.read_text())))
    assert seen == [("bench", TABLE)]
    assert installed.read_text() == "another tree"


@pytest.mark.parametrize("change", [{"architecture": "sm_100"}, {"triton": "3.7.1"}])
def test_a_table_tuned_for_another_machine_is_not_used(visit, tuner, installed, capsys, change):
    visit(codes={"bench": 1}, writes=tuner)
    seen = []
    visit(here=HERE | change, writes=lambda name: seen.append((name, installed.read_text())))
    assert seen == [("bench", OWN)]
    assert "not used, it was tuned for architecture sm_90, triton 3.6.0, and this is" in capsys.readouterr().out


def test_a_tuner_that_writes_nothing_does_not_pass_off_the_table_of_another_machine(visit, tuner, installed, tmp_path):
    visit(codes={"tune": 1, "late": 1}, writes=tuner)
    seen = []
    visit(codes={"tune": 1}, here=HERE | {"triton": "3.7.1"}, writes=lambda name: seen.append((name, installed.read_text())))
    assert seen == [("tune", OWN), ("late", OWN)]
    assert not (tmp_path / "out" / "launch_table.py").exists()


def test_chosen_parts_only(visit):
    assert [name for name, _ in visit(names=("late", "tests"))[1]] == ["late", "tests"]


def test_real_parts_that_hang_crash_or_are_killed_cost_only_themselves(parts, tmp_path, monkeypatch):
    """Processes of their own, without any waiting: the one that hangs is given no time."""
    python = [sys.executable, "-c"]
    parts.clear()
    parts["hangs"] = Part([*python, "import signal; signal.pause()"], 100)
    parts["crashes"] = Part([*python, "print('before'); raise TypeError('broken')"], 100)
    parts["killed"] = Part([*python, "import os; print('until here'); os.kill(os.getpid(), 9)"], 100)
    parts["absent"] = Part(["there-is-no-such-command"], 100)
    parts["good"] = Part([*python, "print('fine')"], 100)

    def run(command, limit_s, log, environment):
        return execute(command, 0.0 if "pause" in command[-1] else 600.0, log, environment)

    machine = Machine(run, lambda: 0.0, lambda: True, dict, lambda: HERE, tmp_path / "none" / "installed.py")
    assert run_visit(tmp_path / "out", 8.0, machine=machine) == 1
    state = json.loads((tmp_path / "out" / "visit.json").read_text())["parts"]
    assert {name: part["status"] for name, part in state.items()} == {
        "hangs": "timed out",
        "crashes": "failed",
        "killed": f"killed by signal {int(signal.SIGKILL)}",
        "absent": "failed",
        "good": "passed",
    }
    log = (tmp_path / "out" / "log.txt").read_text()
    for words in ("before", "TypeError: broken", "until here", "cannot start: No such file", "fine"):
        assert words in log


def test_packages_that_were_brought_are_on_the_path_of_every_part(visit, tmp_path, monkeypatch):
    seen = []

    def unpack(wheels, target):
        seen.append([wheel.name for wheel in wheels])
        (target / "brought.py").touch()

    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "brought-1-py3-none-any.whl").touch()
    monkeypatch.setattr(gpu_visit, "unpack", unpack)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")

    def run(command, limit_s, log, environment):
        first, rest = environment["PYTHONPATH"].split(os.pathsep)
        seen.append((Path(first, "brought.py").exists(), rest))
        return 0

    machine = Machine(run, lambda: 0.0, lambda: True, dict, lambda: HERE, tmp_path / "none" / "installed.py")
    assert run_visit(tmp_path / "out", 8.0, ("tests",), folder, machine) == 0
    assert seen == [["brought-1-py3-none-any.whl"], (True, "elsewhere")]


def test_a_machine_without_a_gpu_and_a_folder_without_wheels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="this machine has none"):
        run_visit(tmp_path / "out", 8.0, machine=Machine(has_device=lambda: False))
    with pytest.raises(ValueError, match="there are no wheels in"):
        run_visit(tmp_path / "out", 8.0, None, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_damaged_state_is_refused_before_anything_runs(visit, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for text in ("{", "[]", '{"tests": {"status": "passed"}}'):
        (out / "visit.json").write_text(text)
        with pytest.raises(ValueError, match="delete it to begin a new"):
            visit()
        assert (out / "visit.json").read_text() == text
