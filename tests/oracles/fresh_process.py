"""Test files that need a process of their own, because Triton reads TRITON_INTERPRET when it is imported."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from segue.kernels.triton_runtime import interpreter_obstacle, triton


def shared(files: Sequence[Path], processes: int) -> list[tuple[Path, ...]]:
    """Files for that many processes, which load Torch and Triton once for several."""
    return [tuple(files[first::processes]) for first in range(processes)]


def names(files: Sequence[Path]) -> str:
    return ", ".join(file.stem.removesuffix("_cases") for file in files)


def has_slow_cases(file: Path) -> bool:
    text = file.read_text()
    return "pytest.mark.slow" in text or "import interpreted" in text or "from interpreted" in text


def interpreter_missing() -> str | None:
    """Why no kernel could be interpreted here, if so."""
    if triton is None:
        return "Triton is not installed"
    return interpreter_obstacle(triton.__version__, version("numpy"))


def run_cases(files: Sequence[Path], interpret: bool, slow: bool = False) -> None:
    """The cases of test files of one folder, or their slow ones, must run and pass.

    ``interpret``: Triton kernels on the CPU, in numpy.
    """
    if reason := interpreter_missing() if interpret else None:
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_", "SEGUE_K"))}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *(file.name for file in files)]
    command += ["-m", "slow" if slow else "not slow"]
    result = subprocess.run(command, cwd=files[0].parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-6000:]}\n{result.stderr[-2000:]}"
    assert re.search(r"\b\d+ passed", result.stdout), result.stdout[-2000:]
