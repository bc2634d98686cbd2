"""Operations around others: a backend for each shape class, which a call is classified by, and dependent launches.

The mapping is fixed when an engine is built, and a class is a function of shapes and dtype alone: nothing waits for the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .record import OPERATIONS, Kernels
from .shape_class import FULL_PRECISION, attention_class, product_class
from .triton_runtime import dependent_launches


@dataclass(frozen=True)
class ByClass:
    """An operation with several backends: ``preferred`` for the classes named there, ``default`` for every other call."""

    classify: Callable[..., str]
    default: Callable
    preferred: Mapping[str, Callable]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.preferred.get(self.classify(*arguments, **options), self.default)(*arguments, **options)


@dataclass(frozen=True)
class Dependent:
    """An operation whose kernels of this project start while the one before ends; its numbers are those of ``function``."""

    function: Callable

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with dependent_launches():
            return self.function(*arguments, **options)


def dependent(kernels: Kernels) -> Kernels:
    """The same operations, launched dependent; those that are left to another operation stay so."""
    made = {name: getattr(kernels, name) for name in OPERATIONS}
    return Kernels(**{name: function and Dependent(function) for name, function in made.items()})


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    if bias.dtype == torch.float32:
        return FULL_PRECISION
    return product_class(x.numel() // x.shape[-1], weight.shape[1], weight.shape[0])


def classify_attention(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The class of a call of ``attention``."""
    return FULL_PRECISION if q.dtype == torch.float32 else attention_class(q.shape[-1], k.shape[2])


def classify_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    """The class of a call of ``linear_gelu``."""
    return _product(x, weight, bias)


def classify_streams(x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor | None = None, *_others: Tensor | None) -> str:
    """The class of a call of two streams, as of ``grouped_linear`` or ``project_slices``: that of the longer one."""
    return _product(x if x2 is None or x.numel() >= x2.numel() else x2, weight, bias)


def classify_heads(x: Tensor, weight: Tensor, bias: Tensor, *_others: object, **_options: object) -> str:
    """The class of a call of ``project_heads``."""
    return _product(x, weight, bias)


def classify_joint_heads(x: Tensor, weight: Tensor, bias: Tensor, x2: Tensor, *_others: object, **_options: object) -> str:
    """The class of a call of ``project_joint_heads``: that of the longer stream."""
    return classify_streams(x, weight, bias, x2)


def classify_fp8_linear(values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> str:
    """The class of a call of ``fp8_linear``."""
    return _product(values, weight, bias)


# the operations for which backends compete; a deferred residual competes with whole steps, not with calls
CLASSIFIERS: dict[str, Callable[..., str]] = {
    "attention": classify_attention,
    "linear_gelu": classify_linear_gelu,
    "grouped_linear": classify_streams,
    "grouped_linear_gelu": classify_streams,
    "project_slices": classify_streams,
    "project_heads": classify_heads,
    "project_joint_heads": classify_joint_heads,
    "fp8_linear": classify_fp8_linear,
}
