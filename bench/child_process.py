"""A command as a process of its own: its output in a log, its time limited, nothing of it left behind."""

import os
import resource
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# nothing of a killed child's output is lost in a buffer, and SIGABRT makes it say where it was
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
LAST_WORDS_S = 2.0


def execute(command: list[str], limit_s: float, log: Path, environment: Mapping[str, str]) -> int | None:
    """Exit code of a command whose output goes to the end of ``log``; None when it passed its limit and was ended.

    It is ended with every process that it started, so that none of them keeps the GPU; a Python process first writes where
    each of its threads was.  ``environment`` is added to that of this process.  A command that cannot start has code 127.
    """
    with log.open("a", encoding="utf-8") as file:
        options = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        try:  # a group, not a session: what ends this process's session ends its children
            process = subprocess.Popen(command, env=os.environ | ENVIRONMENT | environment, process_group=0, **options)
        except OSError as error:
            file.write(f"{command[0]} cannot start: {error.strerror}\n")
            return 127
        with suppress(OSError):  # it has ended already; else SIGABRT leaves no image of its memory
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS_S)
            return None
        finally:
            with suppress(ProcessLookupError):  # the group may have outlived its leader
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
