"""The real parts of a visit: their limits, their order, and what their commands are."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from segue.__main__ import app
from segue.bench import kernel_probe, visit_parts
from segue.bench.visit_parts import CALL_S, FIRST_CALL, ROOT, THIRD_CALL, Part, parts
from segue.kernels.catalogue import SIZES, cases

CPU = torch.device("cpu")


def test_the_first_call_has_time_for_its_parts_and_a_second_one_for_the_rest(tmp_path):
    made = parts(tmp_path)
    assert tuple(made)[: len(FIRST_CALL)] == FIRST_CALL
    assert sum(made[name].seconds for name in FIRST_CALL) <= CALL_S <= 590
    assert sum(part.seconds for name, part in made.items() if name not in FIRST_CALL + THIRD_CALL) <= 600
    assert tuple(made)[-len(THIRD_CALL) :] == THIRD_CALL and sum(made[name].seconds for name in THIRD_CALL) <= 240


def test_what_is_measured_again_waits_for_a_tuned_table(tmp_path):
    assert [name for name, part in parts(tmp_path).items() if part.tuned] == ["kernels-tuned", "e2e-tuned"]


def test_tests_come_first_tuning_before_what_it_changes_and_the_sanitizer_last(tmp_path):
    names = list(parts(tmp_path))
    assert names[0] == "kernel-tests" and names[-2:] == ["sanitizer", "train"]
    assert names.index("kernels") < names.index("tune") < names.index("kernels-tuned")


@pytest.mark.parametrize("seconds", [100, 30])
def test_a_suite_is_told_how_long_it_really_has(tmp_path, seconds):
    option, minutes = parts(tmp_path)["step"].limit(seconds)
    assert option == "--limit-minutes"
    assert 0 < 60 * float(minutes) < seconds


def test_every_suite_accepts_its_options(tmp_path, monkeypatch):
    """Typer parses them and the settings take them; what would measure is left out."""
    seen = {}
    monkeypatch.setattr("segue.bench.runs.run_suites", lambda names, *_, **options: seen.update({names[0]: options}) or 0)
    for part in parts(tmp_path).values():
        if part.command[2:4] == ["segue", "bench"]:
            result = CliRunner().invoke(app, [*part.command[3:], *part.limit(part.seconds)])
            assert result.exit_code == 0, result.output
    assert set(seen) == {"e2e", "step", "cost", "kernels", "cold"}
    assert seen["step"]["models"] == ("dit-xl/2", "sd3.5-medium")
    assert (seen["cost"]["models"], len(seen["cost"]["rules"])) == (("sd3.5-medium",), 3)
    sizes = [size.name for size in SIZES]
    assert all(any(name.startswith(wanted) for name in sizes) for wanted in seen["kernels"]["models"])
    assert seen["e2e"]["peers"] == ("eager",)


def test_case_files_run_directly_and_every_one_of_them(tmp_path):
    files = {path.name for path in (ROOT / "tests" / "kernels" / "cases").glob("*_cases.py")}
    command = parts(tmp_path)["kernel-tests"].command
    assert {argument.rpartition("/")[2] for argument in command if argument.endswith("_cases.py")} == files


def test_every_other_test_that_needs_a_device_is_run_too(tmp_path):
    """As pytest finds them by their mark, in every file but the one that would start the kernel cases once more."""
    command = parts(tmp_path)["engine-tests"].command
    given = {Path(argument).name for argument in command if argument.endswith(".py")}
    pattern = re.compile(r"^(@|pytestmark = )pytest\.mark\.gpu", re.MULTILINE)
    marked = {path.name for path in (ROOT / "tests").rglob("test_*.py") if pattern.search(path.read_text(encoding="utf-8"))}
    assert given == marked - {"test_interpreter.py"}
    assert {"test_graph.py", "test_interpreter_engine.py"} <= given


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("adapters/test_attach.py", "test_steps_captured_as_graphs"),
        ("prompts/test_live.py", "test_graphs_follow_the_weights"),
    ],
)
def test_tests_of_a_device_that_need_diffusers_skip_without_it(monkeypatch, file, name):
    path = ROOT / "tests" / "engine" / file
    specification = importlib.util.spec_from_file_location(f"{path.stem}_without_diffusers", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "diffusers", None)  # makes the import fail
    with pytest.raises(pytest.skip.Exception, match="diffusers"):
        getattr(module, name)()


def test_the_files_of_kernel_tests_are_collected_by_pytest_as_given(tmp_path):
    """Without a device they need the interpreter, which is chosen before Triton is imported: a process of its own."""
    file = next(argument for argument in parts(tmp_path)["kernel-tests"].command if argument.endswith("adaln_cases.py"))
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "not slow", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests collected" in done.stdout


@pytest.mark.parametrize(
    ("cores", "xdist", "wanted"), [(16, True, ["-n", "12"]), (16, False, []), (5, True, []), (None, True, [])]
)
def test_workers_leave_a_few_cores_and_need_xdist(monkeypatch, cores, xdist, wanted):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object() if xdist else None)
    assert visit_parts.workers() == wanted


def test_the_sanitizer_sees_every_allocation(tmp_path):
    part = parts(tmp_path)["sanitizer"]
    assert part.environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    assert part.command[part.command.index("--report-api-errors") + 1] == "no"


def test_the_tuner_writes_into_the_folder_that_comes_back(tmp_path):
    part = parts(tmp_path)["tune"]
    assert part.command[part.command.index("--out") + 1] == str(tmp_path / "launch_table.py")
    assert part.limit(110)[0] == "--limit-seconds"
    assert part.writes == tmp_path / "launch_table.py"


def test_the_documentation_tells_every_part_with_its_limit(tmp_path):
    told: list[tuple[str, float]] = []
    for line in (ROOT / "docs" / "gpu-visit.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (`.+`) \| ([\d, ]+) \|", line):
            told += zip(re.findall(r"`([^`]+)`", match[1]), map(float, match[2].split(",")), strict=True)
    assert told == [(name, part.seconds) for name, part in parts(tmp_path).items()]


def test_a_kernel_that_raises_is_said_and_the_others_are_probed(monkeypatch, capsys):
    def fails(*_arguments):
        raise KeyError("out of resource")

    (case, *_) = cases(SIZES[0], torch.float32)
    made = [replace(case, kernel=fails), replace(case, kernel=case.reference)]
    monkeypatch.setattr(kernel_probe, "cases", lambda _size: made)
    monkeypatch.setattr(torch, "device", lambda _name: CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert kernel_probe.main() == 1
    assert capsys.readouterr().out == f"{case.name}: FAILED, KeyError: 'out of resource'\n1 of 2 kernels ran\n"


@pytest.mark.parametrize(("seconds", "least"), [(0, 0), (10, 11), (10, -1)])
def test_a_part_has_sensible_limits(seconds, least):
    with pytest.raises(ValueError, match="0 <= least <= seconds"):
        Part(["a"], seconds, least)
