"""A few digits that tell networks apart, by their shapes and some values of every tensor."""

import hashlib
from collections.abc import Mapping

from torch import nn

VALUES_PER_TENSOR = 64


def fingerprint(models: Mapping[str, nn.Module]) -> str:
    """16 hexadecimal digits that differ between networks of different shape or training: every tensor, a few values each."""
    digest = hashlib.sha256()
    for network, model in models.items():
        for name, tensor in model.state_dict().items():
            digest.update(f"{network} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            values = tensor.detach().flatten()
            few = values[:: max(1, values.numel() // VALUES_PER_TENSOR)][:VALUES_PER_TENSOR]
            digest.update(few.cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
