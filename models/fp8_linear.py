"""Linear layers in fp8, and the operations around a linear layer that may be one.

An :class:`Fp8Linear` takes rows that are quantised already, by the norm before it or with the GELU, or quantises them itself.
The functions of this file run a plain layer exactly as the kernels of the record do.
"""

from torch import Tensor, nn

from segue.kernels.fp8 import ALIGNMENT, Fp8Rows, quantize_rows
from segue.kernels.mlp import Projected
from segue.kernels.record import Kernels

from .residuals import Residual


class Fp8Linear(nn.Module):
    """A linear layer whose weight is e4m3 with one scale per output channel; its result has the dtype of the bias.

    ``values`` [E, D] float8_e4m3fn, ``scale`` [E] fp32, ``bias`` [E].  Inference only.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        values, scale = quantize_rows(linear.weight.detach())
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def _apply(self, fn, recurse: bool = True) -> "Fp8Linear":
        """Follow the network to a device; a cast of the network leaves values and scales as they are."""
        values, scale = self.values, self.scale
        super()._apply(fn, recurse)
        self.values, self.scale = values.to(self.values.device), scale.to(self.scale.device)
        return self


def fp8_fits(linear: nn.Linear) -> bool:
    """Whether a layer can be quantised: the vendor's product needs a bias here, and sizes that are multiples of 16."""
    return linear.bias is not None and not linear.in_features % ALIGNMENT and not linear.out_features % ALIGNMENT


def apply_linear(x: Tensor | Fp8Rows, layer: nn.Linear | Fp8Linear, kernels: Kernels) -> Tensor:
    """``x W^T + b``.  x [R, L, D] -> [R, L, E]."""
    if not isinstance(layer, Fp8Linear):
        return kernels.linear(x, layer.weight, layer.bias)
    rows = x if isinstance(x, Fp8Rows) else kernels.quantize_rows(x)
    return kernels.fp8_linear(*rows, layer.values, layer.scale, layer.bias)


def linear_inputs(layer: nn.Linear | Fp8Linear, kernels: Kernels, *streams: Tensor | None) -> list[Tensor | Fp8Rows | None]:
    """Streams [R, L, D] as inputs of layers like ``layer``: quantised where that is in fp8, all in one launch."""
    if not isinstance(layer, Fp8Linear):
        return [*streams]
    rows = iter(kernels.quantize_streams(False, *(stream for stream in streams if stream is not None)))
    return [None if stream is None else next(rows) for stream in streams]


def linear_gelu(x: Tensor | Fp8Rows, layer: nn.Linear | Fp8Linear, kernels: Kernels) -> Tensor | Fp8Rows:
    """``gelu(x W^T + b)``, quantised by rows after a layer in fp8: both layers of an MLP are, or neither."""
    if isinstance(layer, Fp8Linear):
        return kernels.quantize_rows(apply_linear(x, layer, kernels), gelu=True)
    return kernels.linear_gelu(x, layer.weight, layer.bias)


def linear_gated_residual(
    h: Tensor, x: Tensor | Fp8Rows, layer: nn.Linear | Fp8Linear, gate: Tensor, kernels: Kernels
) -> tuple[Tensor, Residual | None]:
    """``h + gate * (x W^T + b)``: the state [R, L, E], and the residual that it waits for unless the product adds it itself."""
    if isinstance(layer, Fp8Linear) or kernels.linear_gated_residual is None:
        return h, Residual(apply_linear(x, layer, kernels), gate)
    return kernels.linear_gated_residual(h, x, layer.weight, layer.bias, gate), None


def grouped_linear(
    x: Tensor | Fp8Rows, layer: nn.Linear | Fp8Linear, x2: Tensor | Fp8Rows, layer2: nn.Linear | Fp8Linear, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Two layers of one shape on two streams."""
    if isinstance(layer, Fp8Linear):
        return apply_linear(x, layer, kernels), apply_linear(x2, layer2, kernels)
    return kernels.grouped_linear(x, layer.weight, layer.bias, x2, layer2.weight, layer2.bias)


def grouped_linear_gelu(
    x: Tensor | Fp8Rows, layer: nn.Linear | Fp8Linear, x2: Tensor | Fp8Rows, layer2: nn.Linear | Fp8Linear, kernels: Kernels
) -> tuple[Tensor | Fp8Rows, Tensor | Fp8Rows]:
    """:func:`linear_gelu` of two layers of one shape on two streams, quantised in one launch."""
    if isinstance(layer, Fp8Linear):
        return kernels.quantize_streams(True, *grouped_linear(x, layer, x2, layer2, kernels))
    return kernels.grouped_linear_gelu(x, layer.weight, layer.bias, x2, layer2.weight, layer2.bias)


def project_heads(
    x: Tensor | Fp8Rows,
    layer: nn.Linear | Fp8Linear,
    heads: int,
    weights: tuple[Tensor, Tensor] | None,
    kernels: Kernels,
) -> tuple[Tensor, Tensor, Tensor]:
    """A QKV layer and what splits its heads, with norm weights of queries and keys or without: q, k, v [R, H, L, K]."""
    if isinstance(layer, Fp8Linear):
        return kernels.split_heads_norm(apply_linear(x, layer, kernels), heads, *(weights or ()))
    return kernels.project_heads(x, layer.weight, layer.bias, heads, *(weights or ()))


def project_joint_heads(
    x: Tensor | Fp8Rows,
    layer: nn.Linear | Fp8Linear,
    x2: Tensor | Fp8Rows,
    layer2: nn.Linear | Fp8Linear,
    heads: int,
    weights: tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None],
    kernels: Kernels,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`project_heads` of an image and a text stream to one sequence [R, H, L + M, K].

    x2 [R', M, D] may have several rows for each of x [R, L, D], whose tokens follow each other.
    """
    rows, of_both = x.shape[0], (heads, *weights)
    if isinstance(x2, Fp8Rows) or isinstance(layer, Fp8Linear):
        image, text = grouped_linear(x, layer, x2, layer2, kernels)
        return kernels.joint_heads_norm(image, text.view(rows, -1, text.shape[2]), *of_both)
    x2 = x2.view(rows, -1, x2.shape[2])
    return kernels.project_joint_heads(x, layer.weight, layer.bias, x2, layer2.weight, layer2.bias, *of_both)


def project_slices(kernels: Kernels, *streams: tuple[Tensor | Fp8Rows, nn.Linear | Fp8Linear]) -> tuple[Projected, ...]:
    """Layers on slices of the tokens of a longer sequence, x [R, L, D]: outputs, and the biases that these yet lack."""
    if any(isinstance(layer, Fp8Linear) for _, layer in streams):
        return tuple((apply_linear(x, layer, kernels), None) for x, layer in streams)
    return kernels.project_slices(*(operand for x, layer in streams for operand in (x, layer.weight, layer.bias)))


def residual_norm(
    h: Tensor,
    residual: Residual | None,
    shift: Tensor,
    scale: Tensor,
    layer: nn.Module,
    kernels: Kernels,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor | Fp8Rows]:
    """The state with its residual, and its modulated norm as the input of ``layer``: quantised where that is in fp8."""
    in_fp8 = isinstance(layer, Fp8Linear)
    if residual is None:
        norm = kernels.modulated_norm_fp8 if in_fp8 else kernels.modulated_norm
        return h, norm(h, shift, scale, eps)
    norm = kernels.residual_modulated_norm_fp8 if in_fp8 else kernels.residual_modulated_norm
    return norm(h, residual.y, residual.gate, shift, scale, eps, residual.bias)


def residual_norm2(
    h: Tensor, residual: Residual | None, modulations: tuple[Tensor, ...], layer: nn.Module, kernels: Kernels
) -> tuple[Tensor, Tensor | Fp8Rows, Tensor | Fp8Rows]:
    """:func:`residual_norm` under two modulations (shift, scale, shift2, scale2): the inputs of two layers like ``layer``."""
    in_fp8 = isinstance(layer, Fp8Linear)
    if residual is None:
        norm = kernels.modulated_norm2_fp8 if in_fp8 else kernels.modulated_norm2
        return h, *norm(h, *modulations)
    norm = kernels.residual_modulated_norm2_fp8 if in_fp8 else kernels.residual_modulated_norm2
    return norm(h, residual.y, residual.gate, *modulations, bias=residual.bias)


def residual2_norm(
    h: Tensor, first: Residual, second: Residual, shift: Tensor, scale: Tensor, layer: nn.Module, kernels: Kernels
) -> tuple[Tensor, Tensor | Fp8Rows]:
    """:func:`residual_norm` of two residuals, of which the second has its bias."""
    norm = kernels.residual2_modulated_norm_fp8 if isinstance(layer, Fp8Linear) else kernels.residual2_modulated_norm
    return norm(h, first.y, second.y, first.gate, second.gate, shift, scale, bias=first.bias)
