"""Which implementation of each operation runs, decided once when an engine is built."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .adaln import (
    gated_residual,
    gated_residual_differentiable,
    modulated_norm,
    modulated_norm2,
    residual_modulated_norm,
    residual_modulated_norm_differentiable,
)
from .attention import attention, perturbed_attention
from .combine import gather_rows, solver_update
from .mlp import linear_gelu
from .philox import normal_noise
from .qkv import joint_heads_norm, split_heads_norm
from .readout import combine_then_project, project


@dataclass(frozen=True)
class Kernels:
    """One callable per operation; the signatures are those of the reference functions of the same name."""

    modulated_norm: Callable = modulated_norm
    modulated_norm2: Callable = modulated_norm2
    gated_residual: Callable = gated_residual
    residual_modulated_norm: Callable = residual_modulated_norm
    split_heads_norm: Callable = split_heads_norm
    joint_heads_norm: Callable = joint_heads_norm
    attention: Callable = attention
    perturbed_attention: Callable = perturbed_attention
    linear_gelu: Callable = linear_gelu
    combine_then_project: Callable = combine_then_project
    project: Callable = project
    gather_rows: Callable = gather_rows
    solver_update: Callable = solver_update
    normal_noise: Callable = normal_noise


REFERENCE = Kernels()
# training writes no activation in place
DIFFERENTIABLE = replace(
    REFERENCE,
    gated_residual=gated_residual_differentiable,
    residual_modulated_norm=residual_modulated_norm_differentiable,
)
