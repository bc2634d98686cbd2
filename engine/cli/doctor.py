"""``segue doctor``: what is installed, what it runs on, and what would be chosen."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from segue.kernels import dispatch
from segue.kernels.triton_runtime import interpreter_obstacle, triton
from segue.models.bundled import BUNDLED, bundled_files

from ..device import resolve_device, resolve_dtype
from ..fp8_error import quick_fp8_error
from ..linears import check_linears
from .doctor_summary import summary_lines

PACKAGES = ("segue", "torch", "triton", "numpy", "safetensors", "pillow", "typer", "rich")
OPTIONAL = ("diffusers", "transformers", "xformers", "torchmetrics", "matplotlib", "accelerate", "nvidia-ml-py")


def report() -> dict[str, Any]:
    """Plain numbers and strings, by section."""
    device = resolve_device(None)
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": _devices(),
        "interpreter": _interpreter(),
        "attention": _attention_backends(),
        "default": {"device": str(device), "dtype": str(resolve_dtype(None, device)).removeprefix("torch.")},
        "kernels": _kernels(),
        "fp8": {model: _fp8(model) for model in BUNDLED},
        "models": {name: _bundled(name) for name in BUNDLED},
    }


def show_report(as_json: bool, verbose: bool) -> None:
    """Print the report: ten lines, or section by section, or as JSON, which has every section too."""
    found = report()
    if as_json:
        print(json.dumps(found))
    elif verbose:
        _show_sections(found)
    else:
        print("\n".join(summary_lines(found)))


def _show_sections(found: dict[str, Any]) -> None:
    console = Console()
    for section, content in found.items():
        table = Table(title=section, title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in (content if isinstance(content, dict) else {"": content}).items():
            table.add_row(name, _text(value))
        console.print(table)
        console.print()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not installed" if value is None else str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, dict[str, Any]]:
    cpu = {"threads": torch.get_num_threads(), "vectors": torch.backends.cpu.get_cpu_capability()}
    found: dict[str, dict[str, Any]] = {"cpu": cpu}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "multiprocessors": properties.multi_processor_count,
        }
    if torch.backends.mps.is_available():
        found["mps"] = {"name": "Metal"}
    return found


def _interpreter() -> str:
    """Whether Triton's interpreter could run every kernel on the CPU, or why not."""
    if triton is None:
        return "Triton is not installed"
    return interpreter_obstacle(triton.__version__, version("numpy")) or "runs every kernel (TRITON_INTERPRET=1)"


def _attention_backends() -> dict[str, Any]:
    """What scaled dot product attention may use on CUDA, and the cuDNN it would use."""
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled() and cuda.is_flash_attention_available(),
        "memory efficient": cuda.mem_efficient_sdp_enabled() and torch.cuda.is_available(),
        "cudnn": cuda.cudnn_sdp_enabled() and torch.backends.cudnn.is_available(),
        "cudnn version": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "math": cuda.math_sdp_enabled(),
    }


def _kernels() -> dict[str, str]:
    """The backend of every operation of an engine made with the defaults, why it was chosen, and others by shape class."""
    device = resolve_device(None)
    selection = dispatch.select_kernels(device, resolve_dtype(None, device))
    classes = {
        operation: "".join(
            f"; {backend} at {shape_class}" + " (predicted)" * ((operation, shape_class) in selection.predicted)
            for shape_class, backend in preferred.items()
        )
        for operation, preferred in selection.classes.items()
    }
    return {
        operation: f"{backend} ({reason}){classes.get(operation, '')}"
        for operation, (backend, reason) in selection.chosen.items()
    }


def _fp8(model: str) -> dict[str, float] | str:
    """The relative error of ``linears="fp8"`` on a bundled model with the defaults, or why it cannot work here."""
    device = resolve_device(None)
    try:
        check_linears("fp8", device, resolve_dtype(None, device))
        error = quick_fp8_error(model, device, resolve_dtype(None, device))
    except (ValueError, FileNotFoundError) as reason:
        return str(reason)
    return {"error of a network evaluation": round(error.evaluation, 4), "error of a run": round(error.run, 4)}


def _bundled(name: str) -> dict[str, str] | str:
    """The files of a bundled model, or why they cannot be used."""
    try:
        return {network: f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for network, path in bundled_files(name).items()}
    except (ValueError, FileNotFoundError) as error:  # made for another model, or not there
        return str(error)
