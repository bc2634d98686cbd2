"""The report of `segue doctor` in ten lines, whatever the machine: what is there, what would run, and what is missing."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

BESIDE = ("triton", "diffusers", "transformers")  # the versions that decide most, beside PyTorch's
MORE = "segue doctor --verbose tells every version, every operation and why its kernel was chosen; --json the same"


def summary_lines(found: Mapping[str, Any]) -> list[str]:
    """Ten lines from :func:`~segue.engine.cli.doctor.report`."""
    versions, default = found["versions"], found["default"]
    lines = {
        "segue": f"{versions['segue']}, Python {versions['python']}, {found['platform']}",
        "torch": ", ".join([str(versions["torch"]), *(f"{name} {versions[name] or '-'}" for name in BESIDE)]),
        "not installed": ", ".join(name for name, version in versions.items() if version is None) or "nothing",
        "devices": _devices(found["devices"]),
        "engines run on": f"{default['device']} in {default['dtype']}",
        "kernels": _kernels(found["kernels"]),
        "interpreter": found["interpreter"],
        "fp8": "; ".join(f"{model}: {_fp8(error)}" for model, error in found["fp8"].items()),
        "models": "; ".join(f"{model}: {_files(files)}" for model, files in found["models"].items()),
    }
    width = max(map(len, lines)) + 2
    return [*(f"{name:<{width}}{text}" for name, text in lines.items()), MORE]


def _devices(devices: Mapping[str, Mapping[str, Any]]) -> str:
    """The processor, then the cards, equal ones counted."""
    others = Counter(_card(properties) for name, properties in devices.items() if name != "cpu")
    cpu = f"CPU ({devices['cpu']['threads']} threads, {devices['cpu']['vectors']})"
    return ", ".join([cpu, *(card if count == 1 else f"{count} x {card}" for card, count in others.items())])


def _card(properties: Mapping[str, Any]) -> str:
    if "capability" not in properties:
        return str(properties["name"])
    return f"{properties['name']} ({properties['memory']}, capability {properties['capability']})"


def _kernels(kernels: Mapping[str, str]) -> str:
    """How many operations each backend serves, the most frequent first."""
    counts = Counter(choice.split(" (")[0] for choice in kernels.values())
    return ", ".join(f"{backend} for {count}" for backend, count in counts.most_common()) + f" of {len(kernels)} operations"


def _fp8(error: Mapping[str, float] | str) -> str:
    return error if isinstance(error, str) else ", ".join(f"{name} {value:.2%}" for name, value in error.items())


def _files(files: Mapping[str, str] | str) -> str:
    return files if isinstance(files, str) else ", ".join(files)
