"""A few digits that tell networks apart, by their shapes and some values of every tensor."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from .attention_kind import FULL_ATTENTION

VALUES_PER_TENSOR = 64


def rounded_fingerprint(models: Mapping[str, nn.Module]) -> str:
    """As :func:`fingerprint`, of values rounded to bf16, so that weights in fp32 and in bf16 are the same.

    What the tensors do not show is told apart too: whether the blocks attend fully.
    """
    return _digest(models, torch.bfloat16)


def fingerprint(models: Mapping[str, nn.Module]) -> str:
    """16 hexadecimal digits that differ between networks of different shape or training: every tensor, a few values each."""
    return _digest(models, None)


def _digest(models: Mapping[str, nn.Module], rounded: torch.dtype | None) -> str:
    digest = hashlib.sha256()
    for network, model in models.items():
        attention = getattr(getattr(model, "spec", None), "attention", FULL_ATTENTION)
        if rounded is not None and attention != FULL_ATTENTION:
            digest.update(f"{network} {attention}".encode())
        for name, tensor in model.state_dict().items():
            dtype = tensor.dtype if rounded is None or not tensor.is_floating_point() else "floating"
            digest.update(f"{network} {name} {tuple(tensor.shape)} {dtype}".encode())
            values = tensor.detach().flatten()
            few = values[:: max(1, values.numel() // VALUES_PER_TENSOR)][:VALUES_PER_TENSOR]
            few = few if dtype != "floating" else few.to(rounded)
            digest.update(few.cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
