"""Our network from a live ``DiTTransformer2DModel`` of diffusers, as its weights are at that moment."""

from pathlib import Path
from typing import Any, cast

from torch import nn

from .checkpoint_files import Checkpoint
from .diffusers_layout import dit_layout
from .sit import SiT
from .spec import SiTSpec
from .weights import build_network

NAME = "DiT"


def from_diffusers_dit(transformer: nn.Module) -> SiT:
    """The network of a live transformer, on its device and in its dtype, without gradients.

    It shares the weights that both hold as one matrix; queries, keys and values are copied into one.  Raises ``ValueError``
    for a transformer that is no DiT, or whose tensors are others (an adapter's, quantised ones).
    """
    checkpoint = _checkpoint(transformer)
    network, _ = build_network(checkpoint, dit_layout(checkpoint, _config(transformer), "the transformer"))
    return network.eval().requires_grad_(False).to(checkpoint.tensors["proj_out_1.weight"].device)


def live_dit_spec(transformer: nn.Module) -> SiTSpec:
    """The spec of a live transformer.  Raises as :func:`from_diffusers_dit`."""
    return cast(SiTSpec, dit_layout(_checkpoint(transformer), _config(transformer), "the transformer").spec)


def _checkpoint(transformer: nn.Module) -> Checkpoint:
    return Checkpoint(Path(f"the {type(transformer).__name__}"), NAME, transformer.state_dict())


def _config(transformer: Any) -> dict[str, Any]:
    return dict(transformer.config)
