"""What the machine did meanwhile: clocks, power, energy and memory; absent values are None, never zero."""

import ctypes
import hashlib
import importlib
import os
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from segue.kernels import launch_table

from .rows import Environment

COMMIT_VARIABLE = "SEGUE_COMMIT"
# with those that diffusers imports where they are installed, which a cold start pays for
PACKAGES = ("segue", "torch", "triton", "diffusers", "numpy", "transformers", "peft", "accelerate", "torchao")
NOT_COUNTED = ("bench/results", "docs/reproduction", "README.md", "kernels/launch_table.py")
DRIVER = Path("/proc/driver/nvidia/version")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # the value of clear_refs that resets the peak resident size; see proc(5)


@dataclass(frozen=True)
class Reading:
    """One reading of the accelerator: MHz, W, J since the driver was loaded, bytes; None where it does not tell."""

    sm_clock: float | None
    memory_clock: float | None
    power: float | None
    energy: float | None
    memory: float | None


class Telemetry:
    """Reads the accelerator through nvidia-ml-py.  ``reason`` says why there is nothing to read, else it is None."""

    def __init__(self, device: torch.device):
        self._nvml: Any = None
        self._handle: Any = None
        self.reason = self._connect(device)

    def _connect(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"clocks, power and energy are read on NVIDIA GPUs only, and the device is {device}"
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return "clocks, power and energy are not read: nvidia-ml-py is not installed"
        try:
            nvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        except nvml.NVMLError as error:
            return f"clocks, power and energy are not read: {error}"
        self._nvml = nvml
        return None

    def read(self) -> Reading | None:
        """The present state, None when there is nothing to read."""
        nvml = self._nvml
        if nvml is None:
            return None

        def ask(function, *arguments, scale: float = 1.0) -> float | None:
            try:
                value = function(self._handle, *arguments)
            except nvml.NVMLError:  # this card or driver does not report it
                return None
            return float(getattr(value, "used", value)) * scale

        return Reading(
            sm_clock=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_clock=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            power=ask(nvml.nvmlDeviceGetPowerUsage, scale=1e-3),
            energy=ask(nvml.nvmlDeviceGetTotalEnergyConsumption, scale=1e-3),
            memory=ask(nvml.nvmlDeviceGetMemoryInfo),
        )


class PeakMemory:
    """Peak memory of the work since :meth:`reset`.

    On CUDA all that is allocated on the device, weights included; on Linux what the process needed beyond what it held at
    rest (weights and buffers are held already).
    """

    def __init__(self, device: torch.device):
        self.device, self._rest = device, 0

    @property
    def metric(self) -> str:
        return "peak device memory" if self.device.type == "cuda" else "working memory"

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._readable:
            with suppress(AttributeError):  # a C library that is not glibc keeps no freed memory to trim
                ctypes.CDLL(None).malloc_trim(0)
            CLEAR_REFS.write_text(RESET_PEAK)
            self._rest = status_bytes(STATUS.read_text(), "VmRSS")

    def read(self) -> int | None:
        """Bytes, None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return status_bytes(STATUS.read_text(), "VmHWM") - self._rest if self._readable else None

    @property
    def _readable(self) -> bool:
        return STATUS.is_file() and CLEAR_REFS.exists()


def status_bytes(status: str, name: str) -> int:
    """A field of a /proc status text, in bytes; raises ``ValueError`` without it."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the process status has no field {name}")


def device_name(device: torch.device) -> str:
    """The card's or the processor's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names) or 1} cores"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a figure depends on; missing ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cuda_versions(device: torch.device) -> dict[str, str]:
    """What a figure of a card depends on besides: CUDA, cuDNN, the driver, and the launch table by a digest of its file."""
    if device.type != "cuda":
        return {}
    table = hashlib.sha256(Path(launch_table.__file__).read_bytes()).hexdigest()[:8]
    cudnn = torch.backends.cudnn.version()
    versions = {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": "none" if cudnn is None else str(cudnn)}
    return versions | {"driver": driver_version(), "launch table": table}


def driver_version() -> str:
    """The version of NVIDIA's driver, by nvidia-ml-py or by its kernel module; ``unknown`` where neither tells."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return str(nvml.nvmlSystemGetDriverVersion())
    except Exception:  # not installed, or no driver that answers: the kernel module may still tell
        found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", DRIVER.read_text()) if DRIVER.is_file() else None
        return found[0] if found else "unknown"


def current_commit(folder: Path) -> str:
    """Short commit of the checkout that holds ``folder``, with ``+changes`` if tracked files differ from it.

    Result files do not count, nor the README and the pages of reproduction, which results are written into, nor the launch
    table, whose digest every row on CUDA carries.  The variable SEGUE_COMMIT is taken at its word: a copy of the files on
    another machine may have no repository, or one that stands behind them.  Without either, ``unknown``.
    """
    if told := os.environ.get(COMMIT_VARIABLE):
        return told
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    others = (":(top)", *(f":(top,exclude){path}" for path in NOT_COUNTED))
    return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *others) else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None when it fails or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment(device: torch.device, command: str, allocator: str) -> Environment:
    """The environment that every row of this run carries; ``allocator`` says what becomes of freed host memory."""
    return Environment(
        device=device_name(device),
        threads=torch.get_num_threads(),
        versions=package_versions() | cuda_versions(device) | {"allocator": allocator},
        commit=current_commit(Path(__file__).resolve().parent),
        command=command,
    )
