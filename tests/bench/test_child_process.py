"""Commands as processes: ended with all they started, and never without their last words."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segue.bench.child_process import execute


def running(pid: str) -> bool:
    """Whether a process is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def limit_reached(tmp_path, monkeypatch):
    """A log; the limit of a command is reached when the command has written a whole line to it, however long that takes."""
    log = tmp_path / "log.txt"
    log.touch()
    wait = subprocess.Popen.wait

    def limited(process, timeout=None):
        if timeout == 1.0:
            while not log.read_text().endswith("\n"):
                os.sched_yield()
            raise subprocess.TimeoutExpired(process.args, timeout)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", limited)
    return log


def test_a_command_past_its_limit_is_ended_with_what_it_started_and_its_output_kept(limit_reached):
    assert execute(["sh", "-c", "sleep 600 & echo child $!; wait"], 1.0, limit_reached, {}) is None
    word, child = limit_reached.read_text().split()
    assert word == "child"
    while running(child):  # it was killed, not waited for; alive, it would go on for ten minutes
        os.sched_yield()


def test_a_python_program_that_hangs_says_what_it_printed_and_where_it_was(limit_reached):
    program = "import signal\ndef waits_for_ever():\n    print('before', flush=False)\n    signal.pause()\nwaits_for_ever()"
    assert execute([sys.executable, "-c", program], 1.0, limit_reached, {}) is None
    said = limit_reached.read_text()
    assert said.startswith("before\n")
    assert "in waits_for_ever" in said


def test_what_a_killed_program_printed_is_in_the_log(tmp_path):
    log = tmp_path / "log.txt"
    program = "import os; print('as far as this'); os.kill(os.getpid(), 9)"
    assert execute([sys.executable, "-c", program], 600, log, {}) == -9
    assert log.read_text() == "as far as this\n"


def test_the_exit_code_of_a_command_is_its_own_and_its_output_is_added(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    assert execute(["sh", "-c", "echo $MORE; exit 4"], 600, log, {"MORE": "more"}) == 4
    assert log.read_text() == "before\nmore\n"


def test_what_a_command_leaves_running_is_ended_with_it(tmp_path):
    log = tmp_path / "log.txt"
    assert execute(["sh", "-c", "sleep 600 & echo $!"], 600, log, {}) == 0
    while running(log.read_text().strip()):
        os.sched_yield()


def test_a_command_that_does_not_exist_is_a_failure_with_a_reason(tmp_path):
    log = tmp_path / "log.txt"
    assert execute(["there-is-no-such-command"], 600, log, {}) == 127
    assert log.read_text() == "there-is-no-such-command cannot start: No such file or directory\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_visit_that_is_ended_takes_its_part_with_it(tmp_path, number):
    """A visit of one part, which sleeps; once the part has said its number, the visit is sent a signal."""
    log = tmp_path / "log.txt"
    log.touch()
    program = f"""
from pathlib import Path
from segue.bench.child_process import execute
execute(["sh", "-c", "echo $$; exec sleep 600"], 600, Path({str(log)!r}), {{}})
"""
    visit = subprocess.Popen([sys.executable, "-c", program])
    while not log.read_text().endswith("\n"):
        assert visit.poll() is None
        os.sched_yield()
    visit.send_signal(number)
    assert visit.wait() == -number
    while running(log.read_text().strip()):  # the kernel kills it; alive, it would go on for ten minutes
        os.sched_yield()
