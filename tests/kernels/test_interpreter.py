"""Every kernel against its reference: interpreted on the CPU, compiled on a GPU.

By hand: ``TRITON_INTERPRET=1 pytest tests/kernels/cases/adaln_cases.py``.
"""

from pathlib import Path

import pytest
from fresh_process import has_slow_cases, names, run_cases, shared

CASES = sorted((Path(__file__).parent / "cases").glob("*_cases.py"))


@pytest.mark.parametrize("files", shared(CASES, 6), ids=names)
def test_cases_in_the_interpreter(files):
    run_cases(files, interpret=True)


@pytest.mark.slow
@pytest.mark.parametrize("file", [*filter(has_slow_cases, CASES)], ids=lambda file: file.stem)
def test_slow_cases_in_the_interpreter(file):
    run_cases([file], interpret=True, slow=True)


@pytest.mark.gpu
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_cases_on_the_gpu(file):
    run_cases([file], interpret=False)
