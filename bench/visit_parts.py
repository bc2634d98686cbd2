"""The parts of a visit to a GPU: what each runs, for how long at most, and what it lacks on this machine."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .suites import UNFINISHED

ROOT = Path(__file__).resolve().parent.parent
TUNER = "segue.kernels.tune"
SANITIZER = "compute-sanitizer"
RESULTS = "results.jsonl"
TUNED_TABLE = "launch_table.py"  # in the folder of the visit
TRAINED = "train"  # the folder of the training run in that of the visit
KERNEL_TIMES = "kernel_times.jsonl"  # one line for each step that the profiler saw
CALL_S = 582.0  # of one call, of which the parts of the first need at most this much together
SPARE_CORES = 4  # for the driver and for what feeds the device
MODELS = ("dit-xl/2", "sd3.5-medium")
SIZES = ("SD3.5-medium 1024", "DiT-XL/2 256")  # of the kernels' catalogue

# on SD3.5-medium: a negative prompt inside attention; the published recipe, whole and with ten of its 28 calls
RECIPE = "sgg:scale=4.5,weight=3,layers=7-9,switch=fraction:0.5"
RULES = ("nag:scale=5", RECIPE, f"{RECIPE},order=1,calls=1,3,6,9,12,15,18,22,26,28")

STARTS_KERNEL_CASES = ROOT / "tests" / "kernels" / "test_interpreter.py"

TEST_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "SEGUE_SAY_AT_ONCE": "1"}

Options = Callable[[float], list[str]]


def _no_options(_seconds: float) -> list[str]:
    return []


@dataclass(frozen=True)
class Part:
    """A command of the visit and the most seconds it may take.

    ``least``: seconds below which it is not worth a start.  ``limit`` gives the options that tell the command how long it has.
    ``missing``: what this machine lacks for it (None: nothing).  ``unfinished``: the exit code of a command that kept what it
    had when its time was over, and goes on when it is started again.  ``writes``: a file without which its work is not done,
    whatever its exit code.  ``tuned``: it measures what a tuned launch table changed, and is not reached without one.
    """

    command: list[str]
    seconds: float
    least: float = 0.0
    limit: Options = _no_options
    missing: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    unfinished: int | None = None
    writes: Path | None = None
    tuned: bool = False

    def __post_init__(self):
        if not 0 <= self.least <= self.seconds or not self.seconds > 0:
            raise ValueError(f"a part has 0 <= least <= seconds, seconds > 0, got {self.least} and {self.seconds}")


def parts(out: Path) -> dict[str, Part]:
    """All parts in their order: the first call has time for those up to ``kernels``, a second one for the rest but ``train``.

    What must be right comes first, then what the table of results needs, then tuning and what it changed; the sanitizer, which
    shares the device with nothing, is last.
    """
    results, sd3 = out / RESULTS, ("--model", MODELS[1])
    peers = ("--peer", "eager", "--case-seconds", "12")  # the algorithms on our own modules are the first stages of step
    models = [option for model in MODELS for option in ("--model", model)]
    sizes = [option for size in SIZES for option in ("--model", size)]
    return {
        "kernel-tests": _tests(130, kernel_cases(), "not slow"),
        "e2e": _suite("e2e", 135, results, *sd3, *peers),
        "step": _suite("step", 165, results, *models, "--case-seconds", "12"),
        "cost": _suite("cost", 25, results, "--model", MODELS[0], "--case-seconds", "6"),
        "rules": _suite(
            "cost", 65, results, *sd3, *(option for rule in RULES for option in ("--rule", rule)), "--case-seconds", "6"
        ),
        "kernels": _suite("kernels", 60, results, *sizes, "--case-seconds", "1"),
        "tune": _tuner(110, out / TUNED_TABLE),
        "kernels-tuned": replace(_suite("kernels", 60, results, *sizes, "--case-seconds", "1"), tuned=True),
        "e2e-tuned": replace(_suite("e2e", 135, results, *sd3, *peers), tuned=True),
        "engine-tests": _tests(70, device_tests(), "gpu"),
        "profile": _profile(40, out / KERNEL_TIMES),
        "cold": _suite("cold", 75, results, *sd3),
        "sanitizer": _sanitizer(45),
        "train": _training(240, out / TRAINED),
    }


THIRD_CALL = ("train",)
FIRST_CALL = ("kernel-tests", "e2e", "step", "cost", "rules", "kernels")


def _suite(name: str, seconds: float, results: Path, *options: str) -> Part:
    def limit(given: float) -> list[str]:  # the rest is for starting and for the case in hand
        return ["--limit-minutes", f"{max(1.0, 0.9 * given - 5) / 60:.3f}"]

    command = [sys.executable, "-m", "segue", "bench", name, "--out", str(results), *options]
    return Part(command, seconds, 20, limit, None, {"SEGUE_TRACEBACK": "1"}, UNFINISHED)


def _tests(seconds: float, files: list[Path], marks: str) -> Part:
    """Tests in one process per core, but for a few."""
    missing = None if files else "there are no tests beside this installation"
    command = [sys.executable, "-m", "pytest", "-q", "-m", marks, "-p", "no:cacheprovider", "--tb=short", "-rs", *workers()]
    return Part([*command, *map(str, files)], seconds, seconds / 2, missing=missing, environment=TEST_ENVIRONMENT)


def kernel_cases() -> list[Path]:
    """The files of kernel cases, which run on the device directly."""
    return sorted((ROOT / "tests" / "kernels" / "cases").glob("*_cases.py"))


def device_tests() -> list[Path]:
    """The other files with tests that need a device; those that start the files of kernel cases are left out."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [file for file in files if file != STARTS_KERNEL_CASES and "pytest.mark.gpu" in file.read_text(encoding="utf-8")]


def workers() -> list[str]:
    """Options of pytest for as many processes as this machine has cores to spare; none without xdist."""
    count = (os.cpu_count() or 1) - SPARE_CORES
    return ["-n", str(count)] if count > 1 and importlib.util.find_spec("xdist") else []


def _tuner(seconds: float, table: Path) -> Part:
    missing = None if importlib.util.find_spec(TUNER) else f"there is no module {TUNER}"
    command = [sys.executable, "-m", TUNER, "--jobs", str(os.cpu_count() or 1), "--out", str(table)]

    def limit(given: float) -> list[str]:
        return ["--limit-seconds", f"{max(1.0, 0.9 * given - 5):.0f}"]

    return Part(command, seconds, 30, limit, missing, unfinished=UNFINISHED, writes=table)


def _profile(seconds: float, times: Path) -> Part:
    command = [sys.executable, "-m", "segue.bench.kernel_times", *reversed(MODELS), "--out", str(times)]
    return Part(command, seconds, 20)


def _training(seconds: float, out: Path) -> Part:
    """Only where times of the card are committed: they come first."""

    def limit(given: float) -> list[str]:
        return ["--limit-seconds", f"{given:.0f}"]

    command = [sys.executable, "-m", "segue.bench.train_part", "--out", str(out)]
    return Part(command, seconds, 60, limit)


def _sanitizer(seconds: float) -> Part:
    """Invalid accesses of the kernels; errors of the interface are left out, which PyTorch makes and handles.

    The caching allocator would hand out parts of large blocks, inside of which no access is invalid.
    """
    missing = None if shutil.which(SANITIZER) else f"{SANITIZER} is not installed"
    options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "1"]
    command = [SANITIZER, *options, sys.executable, "-m", "segue.bench.kernel_probe"]
    return Part(command, seconds, 30, missing=missing, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
