"""Attention by each implementation that PyTorch has on a card, as functions (q, k, v) [R, H, T, K] -> [R, T, H * K]."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import attention
from torch.nn.functional import scaled_dot_product_attention

from segue.kernels.attention import merge_heads

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

BACKENDS = {
    "cuDNN": attention.SDPBackend.CUDNN_ATTENTION,
    "flash": attention.SDPBackend.FLASH_ATTENTION,
    "efficient": attention.SDPBackend.EFFICIENT_ATTENTION,
}
ACTIVATED = ("FA3", "FA4")  # other implementations of flash, from packages of their own


def attention_backends(device: torch.device) -> dict[str, Attention]:
    """What can be asked for on ``device``; whether it can compute a shape is found when it is called, which may raise."""
    if device.type != "cuda":
        return {}
    chosen: dict[str, Attention] = {name: partial(_with_backend, backend) for name, backend in BACKENDS.items()}
    registered = getattr(attention, "list_flash_attention_impls", list)()  # of PyTorch 2.10 and later
    return chosen | {name: partial(_with_activated, name) for name in ACTIVATED if name in registered}


def _with_backend(backend: attention.SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with attention.sdpa_kernel(backend):
        return merge_heads(scaled_dot_product_attention(q, k, v))


def _with_activated(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Raises what the implementation raises where its package is not installed or the card is another."""
    attention.activate_flash_attention_impl(name)
    try:
        return _with_backend(attention.SDPBackend.FLASH_ATTENTION, q, k, v)
    finally:
        attention.restore_flash_attention_impl()
