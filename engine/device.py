"""Where an engine runs and in which precision, from what a caller wrote."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
Method = TypeVar("Method", bound=Callable[..., Any])


def resolve_device(device: str | torch.device | None) -> torch.device:
    """A device that is present; None is CUDA where there is one, else the CPU.  Raises ``ValueError``.

    It is named as tensors that lie there name it (``cuda`` is the current device, ``cuda:0`` say), so the two compare equal.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"unknown device {device!r}; write cpu, cuda, cuda:INDEX or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = present.get(resolved.type, 0)
    if (resolved.index or 0) >= count:
        counted = {name: number for name, number in present.items() if number}
        have = ", ".join(name if number == 1 else f"{name}:0 to {name}:{number - 1}" for name, number in counted.items())
        raise ValueError(f"device {str(device)!r} is not present; this machine has: {have}")
    if resolved.type == "cpu":
        return torch.device("cpu")
    index = resolved.index
    if index is None:
        index = torch.cuda.current_device() if resolved.type == "cuda" else 0
    return torch.device(resolved.type, index)


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """A floating-point dtype; None is bfloat16 on CUDA and float32 elsewhere.  Raises ``ValueError``."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"unknown dtype {str(dtype)!r}; accepted: {', '.join(DTYPES)}")
    if resolved == torch.float64 and device.type == "mps":
        raise ValueError("mps has no float64; float32, bfloat16 and float16 are accepted there")
    return resolved


def check_graphs(graphs: bool | None, device: torch.device) -> None:
    """Raise ``TypeError`` or ``ValueError`` where CUDA graphs cannot be captured as asked for; None captures where it can."""
    if not isinstance(graphs, bool | None):
        raise TypeError(f"graphs must be True, False or None, got {graphs!r}")
    if graphs and device.type != "cuda":
        raise ValueError(f"graphs=True needs a CUDA device, and the network is on {device}")


def outside_autocast(method: Method) -> Method:
    """A decorator for methods of engines: they compute in ``self.dtype``, whatever autocast they are called under."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **options: Any) -> Any:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **options)

    return cast(Method, called)
