"""Partial fine-tuning: the parts of a network that are trained, by name; everything else stays as it is."""

from collections.abc import Callable

from torch import nn

ALL = "all"
_NORMS = ("q_norm.", "k_norm.", "norm1.", "norm2.")


def _inside(*words: str) -> Callable[[str], bool]:
    return lambda name: any(f".{word}" in f".{name}" for word in words)


# by the names of parameters of a SiT; DiT's norms have no weights of their own, but those of queries and keys, and affine ones
PARTS: dict[str, Callable[[str], bool]] = {
    ALL: lambda name: True,
    "labels": _inside("y_embedder."),
    "biases": lambda name: name.endswith(".bias"),
    "norms": _inside(*_NORMS),
    "times": _inside("t_embedder."),
    "modulation": _inside("adaLN_modulation."),
    "attention": _inside("attn."),
    "mlp": _inside("mlp.fc1.", "mlp.fc2."),
    "heads": _inside("final_layer.", "exit_layers."),
}


def check_parts(text: str) -> tuple[str, ...]:
    """The parts named in ``text``, comma-separated as in ``labels,biases,norms``; ``ValueError`` for one that is none."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in PARTS:
            raise ValueError(f"unknown part {name!r} of a network to train; there are: {', '.join(PARTS)}")
    return names


def freeze_all_but(network: nn.Module, text: str) -> None:
    """Let those parameters of ``network`` alone take gradients that ``text`` names, and took gradients before."""
    names = check_parts(text)
    for name, parameter in network.named_parameters():
        if not any(PARTS[part](name) for part in names):
            parameter.requires_grad_(False)
