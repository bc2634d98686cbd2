"""The operations of a step as a record of functions: the references, those of training, and the Triton kernels."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

from . import (
    adaln,
    adaln_fp8,
    combine,
    differentiable,
    embed,
    fp8,
    gather,
    gram,
    head_products,
    mlp,
    philox,
    qkv,
    readout,
    sparse_attention,
)
from .attention import attention, perturbed_attention
from .attention_lse import attention_lse
from .flash_attention import attention_lse_triton, attention_triton
from .normalized_attention import (
    merge_normalized,
    merge_normalized_triton,
    normalized_attention,
    normalized_attention_by_parts,
)


@dataclass(frozen=True)
class Kernels:
    """One callable per operation; the signatures are those of the reference functions of the same name.

    ``linear_gated_residual`` None: the product leaves its residual to the norm of the next block.
    """

    modulated_norm: Callable = adaln.modulated_norm
    modulated_norm2: Callable = adaln.modulated_norm2
    gated_residual: Callable = adaln.gated_residual
    residual_modulated_norm: Callable = adaln.residual_modulated_norm
    residual_modulated_norm2: Callable = adaln.residual_modulated_norm2
    residual2_modulated_norm: Callable = adaln.residual2_modulated_norm
    modulated_norm_fp8: Callable = adaln_fp8.modulated_norm_fp8
    modulated_norm2_fp8: Callable = adaln_fp8.modulated_norm2_fp8
    residual_modulated_norm_fp8: Callable = adaln_fp8.residual_modulated_norm_fp8
    residual_modulated_norm2_fp8: Callable = adaln_fp8.residual_modulated_norm2_fp8
    residual2_modulated_norm_fp8: Callable = adaln_fp8.residual2_modulated_norm_fp8
    quantize_rows: Callable = fp8.quantize_rows
    quantize_streams: Callable = fp8.quantize_streams
    fp8_linear: Callable = fp8.fp8_linear
    split_heads_norm: Callable = qkv.split_heads_norm
    joint_heads_norm: Callable = qkv.joint_heads_norm
    attention: Callable = attention
    perturbed_attention: Callable = perturbed_attention
    query_spread: Callable = sparse_attention.query_spread
    sparse_attention: Callable = sparse_attention.sparse_attention
    attention_lse: Callable = attention_lse
    merge_normalized: Callable = merge_normalized
    normalized_attention: Callable = normalized_attention
    linear: Callable = mlp.linear
    linear_gelu: Callable = mlp.linear_gelu
    linear_gated_residual: Callable | None = mlp.linear_gated_residual
    grouped_linear: Callable = mlp.grouped_linear
    grouped_linear_gelu: Callable = mlp.grouped_linear_gelu
    project_slices: Callable = mlp.project_slices
    project_heads: Callable = head_products.project_heads
    project_joint_heads: Callable = head_products.project_joint_heads
    embed_patches: Callable = embed.embed_patches
    combine_then_project: Callable = readout.combine_then_project
    project: Callable = readout.project
    readout_update: Callable = readout.readout_update
    gather_rows: Callable = gather.gather_rows
    gather_modulation: Callable = gather.gather_modulation
    combine_branches: Callable = combine.combine_branches
    solver_update: Callable = combine.solver_update
    moments: Callable = gram.moments
    linear_combination: Callable = gram.linear_combination
    normal_noise: Callable = philox.normal_noise


REFERENCE = Kernels()
# training writes no activation in place
DIFFERENTIABLE = replace(
    REFERENCE,
    modulated_norm=differentiable.modulated_norm,
    modulated_norm2=differentiable.modulated_norm2,
    gated_residual=differentiable.gated_residual,
    residual_modulated_norm=differentiable.residual_modulated_norm,
    residual_modulated_norm2=differentiable.residual_modulated_norm2,
    residual2_modulated_norm=differentiable.residual2_modulated_norm,
    joint_heads_norm=differentiable.joint_heads_norm,
    project_joint_heads=partial(head_products.project_joint_heads, split=differentiable.joint_heads_norm),
    linear_gated_residual=partial(mlp.linear_gated_residual, residual=differentiable.gated_residual),
)
TRITON = Kernels(
    modulated_norm=adaln.modulated_norm_triton,
    modulated_norm2=adaln.modulated_norm2_triton,
    gated_residual=adaln.gated_residual_triton,
    residual_modulated_norm=adaln.residual_modulated_norm_triton,
    residual_modulated_norm2=adaln.residual_modulated_norm2_triton,
    residual2_modulated_norm=adaln.residual2_modulated_norm_triton,
    modulated_norm_fp8=adaln_fp8.modulated_norm_fp8_triton,
    modulated_norm2_fp8=adaln_fp8.modulated_norm2_fp8_triton,
    residual_modulated_norm_fp8=adaln_fp8.residual_modulated_norm_fp8_triton,
    residual_modulated_norm2_fp8=adaln_fp8.residual_modulated_norm2_fp8_triton,
    residual2_modulated_norm_fp8=adaln_fp8.residual2_modulated_norm_fp8_triton,
    quantize_rows=fp8.quantize_rows_triton,
    quantize_streams=fp8.quantize_streams_triton,
    split_heads_norm=qkv.split_heads_norm_triton,
    joint_heads_norm=qkv.joint_heads_norm_triton,
    attention=attention_triton,
    perturbed_attention=partial(perturbed_attention, attend=attention_triton),
    query_spread=sparse_attention.query_spread_triton,
    sparse_attention=partial(
        sparse_attention.sparse_attention, attend=attention_triton, spread=sparse_attention.query_spread_triton
    ),
    attention_lse=attention_lse_triton,
    merge_normalized=merge_normalized_triton,
    normalized_attention=partial(normalized_attention_by_parts, attend=attention_lse_triton, merge=merge_normalized_triton),
    linear_gelu=mlp.linear_gelu_triton,
    linear_gated_residual=mlp.linear_gated_residual_triton,
    grouped_linear=mlp.grouped_linear_triton,
    grouped_linear_gelu=mlp.grouped_linear_gelu_triton,
    project_slices=mlp.project_slices_triton,
    project_heads=head_products.project_heads_triton,
    project_joint_heads=head_products.project_joint_heads_triton,
    embed_patches=embed.embed_patches_triton,
    combine_then_project=readout.combine_then_project_triton,
    project=readout.project_triton,
    readout_update=readout.readout_update_triton,
    gather_rows=gather.gather_rows_triton,
    gather_modulation=gather.gather_modulation_triton,
    combine_branches=combine.combine_branches_triton,
    solver_update=combine.solver_update_triton,
    moments=gram.moments_triton,
    linear_combination=gram.linear_combination_triton,
    normal_noise=philox.normal_noise_triton,
)
OPERATIONS = tuple(entry.name for entry in fields(Kernels))
