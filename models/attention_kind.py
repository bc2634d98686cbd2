"""How the blocks of a DiT or SiT attend: fully, or by ProbSparse attention with budgets of queries and keys."""

import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import nn

from segue.kernels.sparse_attention import usual_budget

FULL_ATTENTION, PROBSPARSE = "full", "probsparse"
KNOWN = f"{FULL_ATTENTION}, {PROBSPARSE}, or {PROBSPARSE} with budgets, as in {PROBSPARSE}:queries=40,keys=40"


@dataclass(frozen=True)
class ProbSparse:
    """``queries`` of each head attend, found by their scores with ``keys`` keys; None is ``5 ceil(ln L)`` of L tokens."""

    queries: int | None = None
    keys: int | None = None

    def __post_init__(self):
        for name in ("queries", "keys"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} of {PROBSPARSE} attention must be a positive integer, got {value!r}")

    def budgets(self, tokens: int) -> tuple[int, int]:
        """Queries that attend and keys that they are found by, at most ``tokens`` each."""
        usual = usual_budget(tokens)
        queries, keys = (usual if value is None else min(tokens, value) for value in (self.queries, self.keys))
        return queries, keys

    def flops(self, tokens: int, dim: int) -> int:
        """FLOPs of the products of one row: scores with the chosen keys, then the attention of the chosen queries."""
        queries, keys = self.budgets(tokens)
        if queries == tokens:
            return 4 * tokens**2 * dim
        return 2 * tokens * keys * dim + 4 * queries * tokens * dim

    def __str__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return ":".join(filter(None, (PROBSPARSE, ",".join(f"{name}={value}" for name, value in given.items()))))


def parse_attention(text: str) -> ProbSparse | None:
    """``full`` -> None, ``probsparse`` or ``probsparse:queries=40,keys=40`` -> :class:`ProbSparse`; else ``ValueError``."""
    if not isinstance(text, str):
        raise TypeError(f"attention must be text, {KNOWN}; got {text!r}")
    if text == FULL_ATTENTION:
        return None
    name, colon, rest = text.partition(":")
    given: dict[str, int] = {}
    for piece in rest.split(",") if colon else ():
        option, _, value = piece.partition("=")
        if option not in ("queries", "keys") or option in given or not value.isdecimal():
            raise ValueError(f"attention must be {KNOWN}; got {text!r}")
        given[option] = int(value)
    if name != PROBSPARSE:
        raise ValueError(f"attention must be {KNOWN}; got {text!r}")
    return ProbSparse(**given)


def told_budgets(spec: Any) -> str:
    """How many queries attend at the native size of ``spec``, whose attention is not full."""
    tokens = spec.tokens(spec.height, spec.width)
    queries, keys = parse_attention(spec.attention).budgets(tokens)
    return f"{queries} of {tokens} queries attend, found by {keys} keys"


def spec_with_attention(spec: Any, text: str) -> Any:
    """``spec`` with another attention; ``ValueError`` unless it is of a DiT or SiT, or the attention is full."""
    kind = parse_attention(text)
    if hasattr(spec, "attention"):
        return replace(spec, attention=FULL_ATTENTION if kind is None else str(kind))
    if kind is None:
        return spec
    raise ValueError(f"attention {text!r} is of a DiT or SiT, and {spec.name} is none")


def with_attention(network: nn.Module, text: str | None) -> nn.Module:
    """``network`` if it attends as ``text`` says (None: as it does), else a copy that does and shares every tensor.

    Raises ``ValueError`` for a network that is no DiT or SiT of ours.
    """
    if text is None:
        return network
    kind, own = parse_attention(text), getattr(network, "spec", None)
    if own is None:
        return network  # no network at all, which the engine refuses
    spec = spec_with_attention(own, text)
    if spec is own or parse_attention(spec.attention) == parse_attention(own.attention):
        return network
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    network = copy.deepcopy(network, shared)
    network.spec = spec
    for block in network.blocks:
        block.attn.sparse = kind
    return network
