"""What is read off the machine, and what is said where there is nothing to read."""

import shlex
import subprocess
import sys
import types

import pytest
import torch

from segue.bench import telemetry as telemetry_module
from segue.bench.allocator import DEFAULT
from segue.bench.runs import command_line
from segue.bench.telemetry import (
    PeakMemory,
    Telemetry,
    cuda_versions,
    current_commit,
    device_name,
    driver_version,
    environment,
    package_versions,
    status_bytes,
)

CPU = torch.device("cpu")


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_commit_is_marked_when_code_differs_but_not_for_results(tmp_path, monkeypatch):
    monkeypatch.delenv("SEGUE_COMMIT", raising=False)
    inner = tmp_path / "bench"
    (inner / "results").mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    table = tmp_path / "kernels" / "launch_table.py"  # its digest is in the rows
    for path in (tmp_path / "code.py", inner / "results" / "cpu.jsonl", tmp_path / "README.md", table):
        path.write_text("1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = current_commit(inner)
    assert len(clean) == 12
    for path in (inner / "results" / "cpu.jsonl", tmp_path / "README.md", table):
        path.write_text("2\n")
    assert current_commit(inner) == clean
    (tmp_path / "code.py").write_text("2\n")
    assert current_commit(inner) == clean + "+changes"
    monkeypatch.setenv("SEGUE_COMMIT", "0123abcd")  # whoever copied the files knows what they are
    assert current_commit(inner) == "0123abcd"


def test_outside_a_checkout_the_commit_is_what_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("SEGUE_COMMIT", raising=False)
    assert current_commit(tmp_path) == "unknown"
    monkeypatch.setenv("SEGUE_COMMIT", "0123abcd")
    assert current_commit(tmp_path) == "0123abcd"


def test_without_a_gpu_there_is_a_reason_and_no_reading():
    telemetry = Telemetry(CPU)
    assert "NVIDIA" in telemetry.reason
    assert telemetry.read() is None


def test_without_the_package_there_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # makes the import fail
    telemetry = Telemetry(torch.device("cuda"))
    assert telemetry.reason == "clocks, power and energy are not read: nvidia-ml-py is not installed"
    assert telemetry.read() is None


def nvml(unreadable: tuple[str, ...] = ()):
    """A driver that reports fixed values, except for what it does not know."""
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM = "sm", "memory"
    values = {"PowerUsage": 350_000, "TotalEnergyConsumption": 7_000_000}

    def ask(name):
        def answer(_handle, *arguments):
            if name in unreadable:
                raise module.NVMLError(name)
            return {"sm": 1980, "memory": 3201}[arguments[0]] if arguments else values[name]

        return answer

    for name in ("ClockInfo", *values):
        setattr(module, f"nvmlDeviceGet{name}", ask(name))
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    module.nvmlDeviceGetMemoryInfo = lambda _handle: types.SimpleNamespace(used=5 * 2**30)
    return module


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: types.SimpleNamespace(uuid="1-2"))
    return lambda module: (monkeypatch.setitem(sys.modules, "pynvml", module), Telemetry(torch.device("cuda")))[1]


def test_readings_are_in_plain_units(card):
    reading = card(nvml()).read()
    assert (reading.sm_clock, reading.memory_clock) == (1980, 3201)
    assert (reading.power, reading.energy, reading.memory) == (350.0, 7000.0, 5 * 2**30)


def test_what_a_card_does_not_report_is_none_and_the_rest_is_read(card):
    reading = card(nvml(("TotalEnergyConsumption",))).read()
    assert reading.energy is None
    assert reading.power == 350.0


def test_working_memory_is_what_was_needed_beyond_the_rest():
    """64 MiB of fp32 are allocated, written and freed; what is read covers them and little more."""
    memory = PeakMemory(CPU)
    memory.reset()
    if memory.read() is None:
        pytest.skip("this system does not tell the peak resident size of a process")
    torch.ones(2**24).sum()
    assert 0.9 * 2**26 < memory.read() < 2**26 + 2**25


def test_freed_memory_stays_when_it_is_kept():
    """In a process of its own, for the setting lasts: 64 MiB written and freed again and again cost pages once."""
    program = """
import ctypes, resource, sys
from segue.bench.allocator import DEFAULT, KEPT, keep_freed_memory
if keep_freed_memory() == DEFAULT: sys.exit(77)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    block = libc.malloc(1 << 26)
    ctypes.memset(block, 1, 1 << 26)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this C library has no such setting")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8 * 2**26 / 4096 / 100  # 1 % of what paging every block in again would take


def test_a_status_without_the_field_is_refused():
    assert status_bytes("Name:\tx\nVmHWM:\t    12 kB\n", "VmHWM") == 12 * 1024
    with pytest.raises(ValueError, match="no field VmRSS"):
        status_bytes("VmHWM: 1 kB", "VmRSS")


def test_on_cuda_a_row_names_cuda_cudnn_driver_and_launch_table(monkeypatch, tmp_path):
    device = torch.device("cuda", 0)
    driver = types.SimpleNamespace(nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.159.04")
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91501)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "card")
    table = tmp_path / "launch_table.py"
    monkeypatch.setattr(telemetry_module.launch_table, "__file__", str(table))
    found = []
    for text in ("first", "second", "first"):
        table.write_text(text)
        found.append(environment(device, "segue bench", DEFAULT).versions)
    assert {"cuda": "13.0", "cudnn": "91501", "driver": "580.159.04"}.items() <= found[0].items()
    assert found[0] == found[2] != found[1]  # rows made with another table do not make a case superfluous
    assert cuda_versions(CPU) == {}


def test_the_kernel_module_tells_the_driver_where_nvml_does_not(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(telemetry_module, "DRIVER", tmp_path / "version")
    assert driver_version() == "unknown"
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n")
    assert driver_version() == "580.159.04"


def test_a_row_names_the_machine_and_the_packages():
    assert "cores" in device_name(CPU)
    assert {"python", "torch"} <= set(package_versions())


def test_a_recorded_command_is_one_that_a_shell_takes(monkeypatch):
    words = ["segue", "score", "-g", "cfg + rescale:phi=0.7", "--out", "my rows.jsonl"]
    monkeypatch.setattr(sys, "argv", ["/some/where/segue", *words[1:]])
    assert shlex.split(command_line()) == words
