"""A command as a process of its own: its output in a log, its time limited, nothing of it left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# nothing of a killed child's output is lost in a buffer, and SIGABRT makes it say where it was
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
LAST_WORDS_S = 2.0
NOT_STARTED = 127
# becomes the command: killed when this process dies (PR_SET_PDEATHSIG, prctl(2)), and leaves no image of its memory behind
BECOME = f"""
import ctypes, os, resource, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if os.getppid() != int(sys.argv[1]): sys.exit("what started this command has ended")
try: os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error: print(f"{{sys.argv[2]}} cannot start: {{error.strerror}}")
sys.exit({NOT_STARTED})
"""


def execute(command: list[str], limit_s: float, log: Path, environment: Mapping[str, str]) -> int | None:
    """Exit code of a command whose output goes to the end of ``log``; None when it passed its limit and was ended.

    It is ended with every process that it started, so that none of them keeps the GPU; a Python process first writes where
    each of its threads was.  It does not outlive this process.  ``environment`` is added to that of this process.  The code of
    a command that cannot start is ``NOT_STARTED``.
    """
    with log.open("a", encoding="utf-8") as file:
        start = [sys.executable, "-I", "-S", "-c", BECOME, str(os.getpid()), *command]
        options: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        # a group, not a session: what ends this process's session ends its children
        process = subprocess.Popen(start, env={**os.environ, **ENVIRONMENT, **environment}, process_group=0, **options)
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
