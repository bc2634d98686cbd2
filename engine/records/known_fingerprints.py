"""Fingerprints of networks, known until a weight changes: a server records every picture that it answers with."""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from segue.models.fingerprint import fingerprint
from segue.models.weight_watch import WeightWatch

Names = tuple[tuple[str, int], ...]  # of networks, and the identity of each
Networks = Mapping[str, "weakref.ref[nn.Module]"]  # held weakly: what is known of them ends with them


@dataclass(frozen=True)
class _Known:
    """A fingerprint, and what tells whether it still is that of the networks: a watch for each device they are on."""

    fingerprint: str
    watches: tuple[WeightWatch, ...]


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, dict[Names, _Known]]" = weakref.WeakKeyDictionary()  # by the first network


def known_fingerprint(models: Mapping[str, nn.Module]) -> str:
    """As :func:`fingerprint`, which copies from every tensor to the host, but only where a weight has changed.

    Whether one has is one wait for the device, not one for each tensor: see :class:`WeightWatch`, which compares a sample of
    values too, for peft fuses a LoRA through ``.data``, where PyTorch does not count.
    """
    names = tuple((name, id(model)) for name, model in models.items())
    kept = _KNOWN.setdefault(next(iter(models.values())), {})
    known = kept.get(names)
    if known is None or not all(watch.unchanged() for watch in known.watches):
        networks = {name: weakref.ref(model) for name, model in models.items()}
        devices = dict.fromkeys(tensor.device for tensor in _weights(networks))
        watches = tuple(WeightWatch(partial(_weights, networks, device)) for device in devices)  # before the weights are read
        known = kept[names] = _Known(fingerprint(models), watches)
    return known.fingerprint


def _weights(networks: Networks, device: torch.device | None = None) -> Iterator[Tensor]:
    """What a fingerprint reads of the networks that there still are, on one device or all; 8-bit numbers as their bits."""
    for network in networks.values():
        if (model := network()) is not None:
            for tensor in model.state_dict().values():
                if device in (None, tensor.device):
                    yield tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor  # fp8 does not join others
