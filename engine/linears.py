"""The option ``linears``: in what the large linear layers of the blocks compute, ``native`` (the engine's dtype) or ``fp8``.

``fp8`` is an approximation: weights and activations of those layers are rounded to four significant bits (e4m3), each weight
with a scale per output channel, each activation with a scale per token; everything between the layers is as without it.
:func:`segue.engine.fp8_error.fp8_error` measures what it changes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from segue.kernels.dispatch import Selection, fp8_obstacle, parse_kernels, select_kernels
from segue.models.fp8_network import Fp8Layers, with_fp8_linears

LINEARS = ("native", "fp8")
MB = 1e6


def check_linears(linears: str, device: torch.device, dtype: torch.dtype, kernels: str = "auto") -> str:
    """``linears`` if it is known and can work for networks of ``dtype`` on ``device``, else ``ValueError``.

    Where the vendor's fp8 product is missing, ``kernels="fp8_linear=reference"`` computes the same numbers from dequantised
    operands, without the speed; on the CPU that is the automatic choice.
    """
    if linears not in LINEARS:
        raise ValueError(f"unknown linears {linears!r}; known: {', '.join(LINEARS)}")
    obstacle = fp8_obstacle(device, dtype) if linears == "fp8" else None
    if obstacle is None:
        return linears
    if device.type != "cuda":
        raise ValueError(f"linears='fp8' cannot work: {obstacle}")
    backend, overrides = parse_kernels(kernels)
    if select_kernels(device, dtype, backend=backend, overrides=overrides).chosen["fp8_linear"] != ("reference", "requested"):
        raise ValueError(
            f"linears='fp8' cannot work: {obstacle}; kernels='fp8_linear=reference' computes its numbers without its speed"
        )
    return linears


def with_linears(network: nn.Module, linears: str) -> nn.Module:
    """``network`` with its block linears as asked for; in fp8 a copy that shares everything else, unless it is so already."""
    if linears == "fp8":
        return with_fp8_linears(network)
    if Fp8Layers.of(network).quantized:
        raise ValueError(f"{network.spec.name} has fp8 linears, and its own weights are gone: pass linears='fp8'")
    return network


@torch.no_grad()
def weight_sums(network: nn.Module) -> Tensor:
    """One number per parameter [P] fp32, to notice new values, signs or order: ``r^T W s`` with fixed normal ``r`` and ``s``.

    The weights are read once.  Trailing dimensions of ``W`` count as one.
    """
    drawn: dict[int, Tensor] = {}

    def direction(size: int, device: torch.device) -> Tensor:
        if size not in drawn:
            drawn[size] = torch.randn(2, size, generator=torch.Generator("cpu").manual_seed(size), device="cpu").to(device)
        return drawn[size]

    sums = []
    for parameter in network.parameters():
        matrix = parameter.reshape(len(parameter), -1)
        r, s = (direction(size, matrix.device)[axis] for axis, size in enumerate(matrix.shape))
        sums.append((matrix @ s.to(matrix.dtype)).float() @ r)
    return torch.stack(sums)


def explain_linears(networks: Mapping[str, nn.Module], dtype: torch.dtype, selection: Selection) -> list[str]:
    """One line per network: how many layers are in fp8, their memory, and the layers that are not."""
    backend, _ = selection.chosen["fp8_linear"]
    how = "products by the reference: its numbers, not its speed" if backend == "reference" else f"products by {backend}"
    lines = []
    for name, network in networks.items():
        found, kept = Fp8Layers.of(network), str(dtype).removeprefix("torch.")
        lines.append(
            f"linears of {name}: {found.quantized} in fp8, an approximation ({how}); their weights take "
            f"{found.bytes / MB:.1f} MB, beside {found.bytes_before / MB:.1f} MB where a pipeline or caller holds the originals"
        )
        for (inputs, outputs), count in found.kept.items():
            lines.append(f"  {count} of {inputs} -> {outputs} stay in {kept}: fp8 products need multiples of 16")
    return lines
