"""Operands of the fused norms, as a model passes them."""

from collections.abc import Callable

import torch

# [R, L, D]: odd token counts; widths of DiT-XL, SD3 and SD3.5-large among them
SHAPES = [(2, 1, 64), (1, 63, 192), (3, 5, 1152), (1, 6, 1536), (2, 3, 2432)]
OPERATIONS = {
    # name: (state and branch come first, modulation vectors)
    "modulated_norm": (1, 2),
    "gated_residual": (2, 1),
    "residual_modulated_norm": (2, 3),
    "modulated_norm2": (1, 4),
    "residual_modulated_norm2": (2, 5),
    "residual2_modulated_norm": (3, 4),
}


def operands(
    normal: Callable[..., torch.Tensor], shape: tuple[int, int, int], dtype: torch.dtype, name: str
) -> list[torch.Tensor]:
    """The state is a row prefix of a larger buffer, the vectors are chunks; ``normal`` draws."""
    rows, tokens, width = shape
    states, vectors = OPERATIONS[name]
    h = normal(rows + 2, tokens, width, dtype=dtype)[:rows] * 3 + 1
    y = [normal(rows, tokens, width, dtype=dtype) for _ in range(states - 1)]
    chunks = normal(rows, vectors * width, dtype=dtype)[:, None].chunk(vectors, dim=-1)
    return [h, *y, *chunks]
