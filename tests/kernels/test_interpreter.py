"""Runs the kernel cases where Triton interprets them: in a process of their own, for Triton reads TRITON_INTERPRET at import.

The same cases run compiled on a GPU.  By hand: ``TRITON_INTERPRET=1 pytest tests/kernels/cases/adaln_cases.py``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = sorted(path.name for path in (Path(__file__).parent / "cases").glob("*_cases.py"))


def run_cases(file: str, interpret: bool) -> None:
    """All cases of one file must run and pass in a fresh process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"cases/{file}"]
    result = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-6000:]}\n{result.stderr[-2000:]}"
    assert re.search(r"\b\d+ passed", result.stdout), result.stdout[-2000:]


@pytest.mark.parametrize("file", CASES)
def test_cases_in_the_interpreter(file):
    run_cases(file, interpret=True)


@pytest.mark.gpu
@pytest.mark.parametrize("file", CASES)
def test_cases_on_the_gpu(file):
    run_cases(file, interpret=False)
