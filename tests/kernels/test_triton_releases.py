"""What releases of Triton cannot do is said in one sentence before a kernel runs."""

import re
import tomllib
from pathlib import Path

import fresh_process
import pytest
import torch

from segue.engine.cli import doctor
from segue.kernels import triton_runtime
from segue.kernels.triton_runtime import interpreter_obstacle, unavailable

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "triton, numpy, works",
    [
        ("3.6.0", "2.3.5", True), ("3.6.0", "1.26.4", True), ("3.6.0+git1", "2.4.0", False), ("3.6.0", "2.5.5", False),
        ("3.6.0", "2.10.0", False), ("3.7.0", "2.5.5", True), ("3.10.1", "3.0.0rc1", True),
    ],
)  # fmt: skip
def test_the_interpreter_of_a_release_needs_a_numpy_that_it_can_use(triton, numpy, works):
    reason = interpreter_obstacle(triton, numpy)
    if works:
        assert reason is None
    else:
        assert f"Triton {triton} fails in loops under NumPy {numpy}; it needs NumPy below 2.4, or Triton 3.7" in reason


def test_the_tested_versions_can_interpret():
    """Of constraints.txt: the oldest Triton let in, beside the NumPy that it pins; docs/production.md has the others."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (oldest,), (numpy,) = (
        [line.removeprefix(start).split(",")[0] for line in lines if line.startswith(start)]
        for start in ("triton>=", "numpy==")
    )
    assert interpreter_obstacle(oldest, numpy) is None
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ((allowed, below),) = (re.match(r"triton>=([\d.]+),<([\d.]+);", line).groups() for line in dependencies if "triton" in line)
    assert interpreter_obstacle(allowed, numpy) and f"Triton {allowed} " in (ROOT / "docs" / "production.md").read_text()
    assert any(line.startswith("triton>=") and line.endswith(f",<{below}") for line in lines)


def test_an_interpreter_that_would_fail_is_not_available(monkeypatch):
    monkeypatch.setattr(triton_runtime, "interpreting", lambda: True)
    monkeypatch.setattr(triton_runtime, "interpreter_obstacle", lambda triton, numpy: f"no loops under {numpy}")
    monkeypatch.setattr(triton_runtime, "version", lambda name: f"{name} 2.4")
    assert unavailable(torch.device("cpu")) == "no loops under numpy 2.4"
    assert unavailable(torch.device("cuda")) is None  # compiled there


def test_interpreted_cases_skip_with_the_reason(monkeypatch):
    monkeypatch.setattr(fresh_process, "interpreter_obstacle", lambda triton, numpy: "no loops")
    with pytest.raises(pytest.skip.Exception, match="no loops"):
        fresh_process.run_cases([Path("missing_cases.py")], interpret=True)


def test_doctor_says_it(monkeypatch):
    monkeypatch.setattr(doctor, "interpreter_obstacle", lambda triton, numpy: None)
    assert "runs every kernel" in doctor._interpreter()
    monkeypatch.setattr(doctor, "interpreter_obstacle", lambda triton, numpy: f"no loops under {numpy}")
    assert doctor._interpreter().startswith("no loops under ")
    monkeypatch.setattr(doctor, "triton", None)
    assert doctor._interpreter() == "Triton is not installed"
