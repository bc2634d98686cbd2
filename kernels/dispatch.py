"""Which implementation of each operation runs, decided once when an engine is built.

``auto`` takes Triton kernels on CUDA and the reference functions elsewhere, with oneDNN's products in fp32 on x86, and may
fall back; that is logged once.  An explicit request works or raises.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec

import torch

from . import adaln, compiled, fp8, mlp, onednn, readout
from .attention import attention_sdpa, attention_xformers, perturbed_attention, sdpa_order
from .attention_lse import FORMS, attention_lse_cpu
from .choice import CLASSIFIERS, ByClass, dependent
from .flash_attention import LARGEST_SCORE, MAX_HEAD_DIM, attention_bounded
from .launch_lookup import table_architecture
from .launch_table import PREFERRED
from .normalized_attention import normalized_attention_by_parts
from .predicted_table import PREDICTED
from .record import OPERATIONS, REFERENCE, TRITON, Kernels
from .sparse_attention import sparse_attention
from .triton_runtime import architecture, compute_capability, dependent_obstacle, unavailable

ENVIRONMENT = "SEGUE_KERNELS"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
logger = logging.getLogger("segue")


BACKENDS = ("reference", "triton")
LAUNCH = "launch"  # beside the operations: how this project's kernels start
PLAIN, DEPENDENT = LAUNCHES = ("plain", "dependent")
BOUNDED = "bounded"  # attention without a running maximum, by request only: that scores are small is for a network to show
# the vendor's functions beside PyTorch's own, by operation and backend; attention's need a word with the device first
VENDOR: dict[str, dict[str, Callable]] = {
    "linear": {"onednn": onednn.linear},
    "linear_gelu": {"cublaslt": mlp.linear_gelu_cublaslt, "onednn": onednn.linear_gelu},
    "project_slices": {"onednn": onednn.project_slices},
    "fp8_linear": {
        "scaled_mm": fp8.fp8_linear_scaled_mm,
        "scaled_mm_fast": partial(fp8.fp8_linear_scaled_mm, fast_accumulation=True),
    },
}
MORE_BACKENDS = {"attention": ("sdpa", "xformers", BOUNDED), "linear_gated_residual": ("deferred",)}
MORE_BACKENDS |= {operation: tuple(made) for operation, made in VENDOR.items()}
MORE_BACKENDS |= dict.fromkeys(compiled.FUNCTIONS, ("compiled",))
WITHOUT_TRITON = ("linear", "fp8_linear")  # a request for Triton everywhere leaves these to the automatic choice
# matrix products and attention stay with the vendor's libraries until a measurement on the architecture says otherwise
LIBRARY = {
    "attention": "sdpa",
    "linear": "reference",
    "linear_gelu": "cublaslt",
    "grouped_linear": "reference",
    "grouped_linear_gelu": "reference",
    "project_slices": "reference",
    "project_heads": "reference",
    "project_joint_heads": "reference",
    "fp8_linear": "scaled_mm",
}
# references that are made of the functions chosen for other operations: by which argument they take each
COMPOSED = {
    "linear_gated_residual": {"product": "linear", "residual": "gated_residual"},
    "grouped_linear": {"product": "linear"},
    "grouped_linear_gelu": {"product": "linear_gelu"},
    "project_heads": {"product": "linear", "split": "split_heads_norm"},
    "project_joint_heads": {"products": "grouped_linear", "split": "joint_heads_norm"},
}
WITHOUT_KERNEL = {"linear_gated_residual": ("deferred", "automatic: the residual is added by the norm that follows")}
QUANTISED = tuple(name for name in OPERATIONS if name.endswith("_fp8") or name.startswith("quantize_"))  # by rows
FP8_OPERATIONS = (*QUANTISED, "fp8_linear")
ROW_BY_ROW = ("gated_residual", "quantize_rows", "quantize_streams", "merge_normalized")
NORMS = tuple(name for name in OPERATIONS if "modulated_norm" in name or name in ROW_BY_ROW)  # hold a row in registers
HEAD_PRODUCTS = ("project_heads", "project_joint_heads")
READOUTS = ("combine_then_project", "project", "readout_update")
FOLLOWERS = dict.fromkeys(
    ("perturbed_attention", "sparse_attention", "attention_lse", "normalized_attention"), "attention"
)  # take its backend


@dataclass(frozen=True)
class Shapes:
    """The sizes of an engine's networks that decide whether a kernel can serve: the largest of each."""

    head_dim: int = 0
    width: int = 0
    outputs: int = 0  # numbers in a patch
    largest_score: float = math.inf  # that norms of queries and keys allow, as flash_attention.LARGEST_SCORE counts it


@dataclass(frozen=True)
class Selection:
    """The kernels of an engine; ``chosen`` gives backend and reason of every operation.

    ``classes`` gives, by operation and shape class, the backends that were measured or predicted to be faster than that one;
    ``predicted``, of the latter, the part of the time that they should save.  ``launch`` is one of LAUNCHES.
    """

    kernels: Kernels
    chosen: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    predicted: Mapping[tuple[str, str], float] = field(default_factory=dict)
    launch: str = PLAIN

    @property
    def without_maximum(self) -> bool:
        """Whether attention keeps no running maximum, so that the scores must stay bounded."""
        return self.chosen.get("attention", ("", ""))[0] == BOUNDED

    def explain(self) -> list[str]:
        """One line per backend and reason, with the operations that it serves; then those of single shape classes, and how
        kernels start where that was chosen."""
        groups: dict[tuple[str, str], list[str]] = {}
        for operation, choice in self.chosen.items():
            groups.setdefault(choice, []).append(operation)
        if len(groups) == 1:
            ((backend, reason),) = groups
            return [f"kernels {backend} ({reason}): every operation", *self._start()]
        lines = [f"kernels {backend} ({reason}): {', '.join(served)}" for (backend, reason), served in groups.items()]
        for operation, preferred in self.classes.items():
            shapes: dict[str, list[str]] = {}
            for shape_class, backend in preferred.items():
                shapes.setdefault(f"{backend} ({self._why(operation, shape_class)})", []).append(shape_class)
            lines += [f"kernels {choice} for {operation} at {'; '.join(alike)}" for choice, alike in sorted(shapes.items())]
        return lines + self._start()

    def _start(self) -> list[str]:
        if self.launch == PLAIN:
            return []
        return [f"launches {self.launch} (requested): kernels of this project start while the one before ends"]

    def _why(self, operation: str, shape_class: str) -> str:
        gain = self.predicted.get((operation, shape_class))
        return "measured fastest" if gain is None else f"predicted to save {100 * gain:.0f} % of the time, not measured"


def parse_kernels(text: str) -> tuple[str, dict[str, str]]:
    """``"triton"``, ``"attention=sdpa"`` or ``"auto,attention=triton,launch=dependent"`` -> (backend, overrides)."""
    if not isinstance(text, str):
        raise TypeError(f"kernels must be text such as 'auto' or 'triton,attention=sdpa', got {text!r}")
    backend, overrides = "auto", {}
    for i, part in enumerate(text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if equals:
            overrides[name] = value
        elif i == 0:
            backend = name
        else:
            raise ValueError(f"kernels {text!r}: after the first entry, write operation=backend, got {part.strip()!r}")
    return backend, overrides


def _wanted(backend: str, overrides: Mapping[str, str] | None) -> tuple[dict[str, str], str]:
    """The backend asked for each operation, and how kernels start: arguments first, then the environment, then ``auto``."""
    requests: dict[str, str] = {}
    if backend == "auto" and (text := os.environ.get(ENVIRONMENT)):
        backend, requests = parse_kernels(text)
    requests = requests | dict(overrides or {})
    start = requests.pop(LAUNCH, PLAIN)
    if start not in LAUNCHES:
        raise ValueError(f"unknown launch {start!r}; known: {', '.join(LAUNCHES)}")
    for operation in requests:
        if operation not in OPERATIONS:
            raise ValueError(f"unknown operation {operation!r}; known: {', '.join(OPERATIONS)}, and {LAUNCH}")
        if operation in FOLLOWERS:
            raise ValueError(f"{operation} takes the backend of {FOLLOWERS[operation]}; choose that")
    wanted = dict.fromkeys((operation for operation in OPERATIONS if operation not in FOLLOWERS), backend)
    if backend == "triton":
        wanted |= dict.fromkeys(WITHOUT_TRITON, "auto")
    if backend == "compiled":
        wanted |= {operation: "auto" for operation in wanted if operation not in compiled.FUNCTIONS}
    wanted |= requests
    for operation, name in wanted.items():
        own = ("reference",) if operation in WITHOUT_TRITON else BACKENDS
        known = ("auto", *own, *MORE_BACKENDS.get(operation, ()))
        if name not in known:
            raise ValueError(f"unknown backend {name!r} for {operation}; known: {', '.join(known)}")
    return wanted, start


def select_kernels(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Shapes = Shapes(),
    *,
    backend: str = "auto",
    overrides: Mapping[str, str] | None = None,
) -> Selection:
    """Choose every operation for networks of ``dtype`` and ``shapes`` on ``device``.

    ``backend`` is ``auto``, ``reference``, ``triton`` or ``compiled``, which leaves products and attention to the automatic
    choice; ``overrides`` names a backend for single operations, and under ``launch`` whether this project's kernels start
    ``plain``, after the one before has ended, as they do by default, or ``dependent``.  Where the argument is ``auto``, the
    environment variable SEGUE_KERNELS (text as for :func:`parse_kernels`) is asked.  Raises ``ValueError`` for unknown names
    and for an explicit choice that cannot work here.
    """
    made, chosen, classes, predicted = {}, {}, {}, {}
    wanted, start = _wanted(backend, overrides)
    if start == DEPENDENT and (obstacle := dependent_obstacle(device)):
        raise ValueError(f"{LAUNCH}={start!r} cannot work: {obstacle}")
    for operation, name in wanted.items():
        automatic = name == "auto"
        if automatic:
            name, reason = _automatic(operation, device, dtype, shapes)
        else:
            reason = "requested"
            if obstacle := _obstacle(operation, name, device, dtype, shapes):
                raise ValueError(f"{operation}={name!r} cannot work: {obstacle}")
        made[operation], detail = _composed(operation, name, device, made)
        if (operation, name) == ("attention", "triton"):
            why = _bound_obstacle(dtype, shapes)
            detail = f"with a running maximum: {why}" if why else f"attention={BOUNDED} would keep no running maximum"
        chosen[operation] = (name, f"{reason}; {detail}" if detail else reason)
        free = automatic and all(wanted[part] == "auto" for part in _parts(operation))  # a request for a part is followed
        preferred, gains = _preferred(operation, name, device, dtype, shapes) if free else ({}, {})
        predicted |= gains
        if preferred:
            functions = {shape: _composed(operation, backend, device, made)[0] for shape, backend in preferred.items()}
            made[operation] = ByClass(CLASSIFIERS[operation], made[operation], functions)
            classes[operation] = preferred
    made |= _followers(made, chosen["attention"][0], classes.get("attention", {}), device)
    chosen |= {follower: chosen[operation] for follower, operation in FOLLOWERS.items()}
    kernels = dependent(Kernels(**made)) if start == DEPENDENT else Kernels(**made)
    return Selection(kernels, {operation: chosen[operation] for operation in OPERATIONS}, classes, predicted, start)


def _parts(operation: str) -> set[str]:
    """The operations that the reference of one is made of, and those that these are made of."""
    own = set(COMPOSED.get(operation, {}).values())
    return own.union(*map(_parts, own))


def _followers(
    made: Mapping[str, Callable | None], backend: str, preferred: Mapping[str, str], device: torch.device
) -> dict[str, Callable]:
    """The operations that are made of attention, by its ``backend`` and those ``preferred`` for single shape classes."""

    def with_lse(name: str) -> Callable:
        if name == "reference" and device.type == "cpu":
            return attention_lse_cpu
        form: Callable = FORMS[name]
        return partial(form, backends=sdpa_order(device)[0]) if name == "sdpa" else form

    lse = with_lse(backend)
    if preferred:
        lse = ByClass(CLASSIFIERS["attention"], lse, {shape: with_lse(name) for shape, name in preferred.items()})
    return {
        "perturbed_attention": partial(perturbed_attention, attend=made["attention"]),
        "sparse_attention": partial(sparse_attention, attend=made["attention"], spread=made["query_spread"]),
        "attention_lse": lse,
        "normalized_attention": partial(normalized_attention_by_parts, attend=lse, merge=made["merge_normalized"]),
    }


def _obstacle(operation: str, name: str, device: torch.device, dtype: torch.dtype, shapes: Shapes) -> str | None:
    """Why a backend of ``operation`` cannot serve; None when it can."""
    if name == "triton":
        return triton_obstacle(operation, device, dtype, shapes)
    if name == BOUNDED:
        return triton_obstacle(operation, device, dtype, shapes) or _bound_obstacle(dtype, shapes)
    if name == "compiled":
        return compiled.obstacle(device)
    if name == "onednn":
        return onednn.obstacle(device, dtype)
    return fp8_obstacle(device, dtype) if name in VENDOR["fp8_linear"] else None


def _fast_obstacle(operation: str, device: torch.device, dtype: torch.dtype, shapes: Shapes) -> str | None:
    """Why neither a kernel of this project nor, in fp8, the vendor's can serve; None when it can."""
    return _obstacle(operation, "scaled_mm" if operation == "fp8_linear" else "triton", device, dtype, shapes)


def triton_obstacle(operation: str, device: torch.device, dtype: torch.dtype, shapes: Shapes = Shapes()) -> str | None:
    """Why the Triton kernel of ``operation`` cannot serve; None when it can."""
    if reason := unavailable(device):
        return reason
    if dtype not in TRITON_DTYPES:
        return f"the Triton kernels compute in fp32, fp16 or bf16, not {dtype}"
    for names, what, size, limit in (
        (("attention", "query_spread"), "head dim", shapes.head_dim, MAX_HEAD_DIM),
        (NORMS, "width", shapes.width, adaln.MAX_WIDTH),
        (READOUTS, "number of values in a patch", shapes.outputs, readout.MAX_OUTPUTS),
    ):
        if operation in names and size > limit:
            return f"its {what} is at most {limit}, and this network has {size}"
    if device.type != "cuda":
        return None
    try:
        table_architecture(architecture(device))
    except ValueError as error:
        return str(error)
    return _capability_obstacle(device) if operation in FP8_OPERATIONS else None


def _bound_obstacle(dtype: torch.dtype, shapes: Shapes) -> str | None:
    if dtype != torch.bfloat16:
        computes = f"this network computes in {str(dtype).removeprefix('torch.')}"
        return f"powers of two up to 2^{LARGEST_SCORE:g} need bfloat16, and {computes}"
    if not shapes.largest_score <= LARGEST_SCORE:  # also where it is no number
        found = f"they give 2^{shapes.largest_score:.4g}" if math.isfinite(shapes.largest_score) else "nothing does"
        return f"norms with weights of the engine's own must keep exp(scores) within 2^{LARGEST_SCORE:g}, and here {found}"
    return None


def fp8_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the vendor's row-wise fp8 product cannot serve networks of ``dtype`` on ``device``; None when it can.

    None also on the CPU, where the reference serves.
    """
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip:
        return f"fp8 products run on NVIDIA devices, and this is {'AMD' if torch.version.hip else device.type}"
    if dtype != torch.bfloat16:
        return f"row-wise fp8 products give bfloat16, and this network computes in {str(dtype).removeprefix('torch.')}"
    return _capability_obstacle(device)


def _capability_obstacle(device: torch.device) -> str | None:
    if torch.version.hip or compute_capability(device) >= (8, 9):
        return None
    return f"fp8 needs compute capability 8.9, and this device is {architecture(device)}"


def _automatic(operation: str, device: torch.device, dtype: torch.dtype, shapes: Shapes) -> tuple[str, str]:
    """Backend and reason of an operation that nobody asked anything for."""
    if operation in WITHOUT_KERNEL:
        return WITHOUT_KERNEL[operation]
    if onednn.measured_faster() and not onednn.obstacle(device, dtype):
        if "onednn" in VENDOR.get(operation, {}):
            return "onednn", "automatic: bias and GELU within the product, measured faster on x86"
        if operation in COMPOSED:
            return "reference", f"automatic: by {', then '.join(COMPOSED[operation].values())}"
    if device.type != "cuda":
        return "reference", f"automatic: device {device.type} has no Triton compiler"
    obstacle = _fast_obstacle(operation, device, dtype, shapes)
    if obstacle and operation in LIBRARY and operation != "fp8_linear":
        return LIBRARY[operation], f"automatic: the vendor's library; no Triton kernel, {obstacle}"
    if obstacle:
        if operation not in FP8_OPERATIONS:  # most engines never call these
            _log_once(f"kernel {operation} falls back to the reference function: {obstacle}")
        return "reference", f"fallback: {obstacle}"
    served = table_architecture(architecture(device))
    if operation in LIBRARY:
        but = "where nothing faster was measured" if PREFERRED.get(served) else "nothing was measured"
        return LIBRARY[operation], f"automatic: the vendor's library, {but} on {served}"
    return "triton", "automatic: CUDA"


def _preferred(
    operation: str, default: str, device: torch.device, dtype: torch.dtype, shapes: Shapes
) -> tuple[dict[str, str], dict[tuple[str, str], float]]:
    """The backends, by shape class, that are faster than the default in 16 bits; and of those of which that is a prediction
    alone, the part of the time that they should save."""
    if device.type != "cuda" or operation not in CLASSIFIERS or dtype not in (torch.float16, torch.bfloat16):
        return {}, {}
    if _fast_obstacle(operation, device, dtype, shapes):
        return {}, {}
    served = table_architecture(architecture(device))
    measured = PREFERRED.get(served, {})
    expected = {key: found for key, found in PREDICTED.get(served, {}).items() if key not in measured}
    found, gains = {}, {}
    for (name, shape_class), (backend, gain) in expected.items():
        if name == operation:
            found[shape_class], gains[name, shape_class] = backend, gain
    for (name, shape_class), backend in measured.items():
        if name != operation or backend == default:
            continue
        if backend == "xformers" and find_spec("xformers") is None:
            _log_once(f"kernel {operation} at {shape_class} falls back to {default}: xformers is not installed")
            continue
        found[shape_class] = backend
    return found, gains


@cache
def _log_once(message: str) -> None:
    logger.warning(message)


def _composed(
    operation: str, name: str, device: torch.device, made: Mapping[str, Callable | None]
) -> tuple[Callable | None, str]:
    """:func:`_implementation`, and what follows a reference's product by the kernel that was chosen for it."""
    if name == "reference" and operation in COMPOSED:
        parts = {argument: made[part] for argument, part in COMPOSED[operation].items()}
        return partial(getattr(REFERENCE, operation), **parts), ""
    return _implementation(operation, name, device)


def _implementation(operation: str, name: str, device: torch.device) -> tuple[Callable | None, str]:
    """The callable of a backend and, where there is something to tell, a detail for ``explain``."""
    if name == "deferred":
        return None, ""
    if name in BACKENDS:
        return getattr(TRITON if name == "triton" else REFERENCE, operation), ""
    if name == "compiled":
        return compiled.compiled(operation), ""
    if name == "onednn":
        return VENDOR[operation][name], ""
    if name == BOUNDED:
        return attention_bounded, "no running maximum"
    if device.type != "cuda":
        raise ValueError(f"{operation}={name!r} cannot work: it needs a CUDA device, and this is {device.type!r}")
    if operation in VENDOR:
        return VENDOR[operation][name], ""
    if name == "xformers":
        if find_spec("xformers") is None:
            raise ValueError(f"{operation}='xformers' cannot work: xformers is not installed")
        return attention_xformers, ""
    backends, detail = sdpa_order(device)
    return partial(attention_sdpa, backends=backends), detail
