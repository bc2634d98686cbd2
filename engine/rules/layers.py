"""Layers of a network as rules name them: counted from 0, each once."""

from collections.abc import Iterable

from ..numeric_input import whole_number


def checked_layers(layers: int | Iterable[int]) -> tuple[int, ...]:
    """One layer or some as a rising tuple; raises ``TypeError`` or ``ValueError`` for what is none, or given twice."""
    layers = tuple(layers) if isinstance(layers, Iterable) else (layers,)
    layers = tuple(whole_number(layer, "layers must be integers") for layer in layers)
    for layer in layers:
        if layer < 0:
            raise ValueError(f"layers are counted from 0, got {layer}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers must be distinct, got {layers}")
    return tuple(sorted(layers))
