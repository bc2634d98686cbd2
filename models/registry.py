"""The networks that Segue knows: for each kind its spec, the network, its row-batched forward and the files it is read from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .checkpoint_files import Checkpoint
from .diffusers_layout import diffusers_layout
from .layout import Hints, Layout
from .mmdit import MMDiT
from .mmdit_rows import MMDiTRows
from .mmdit_spec import MMDiTSpec
from .mmdit_weights import is_mmdit, mmdit_layout
from .official_layout import official_layout
from .shared_mmdit import SharedMMDiT
from .shared_rows import SharedRows
from .shared_sit import SharedSiT
from .sit import SiT
from .sit_rows import SiTRows
from .spec import ModelSpec, SiTSpec


@dataclass(frozen=True)
class Reader:
    """``layout`` reads the key layout of the checkpoints that it ``knows``."""

    knows: Callable[[Checkpoint], bool]
    layout: Callable[[Checkpoint, Hints], Layout]


@dataclass(frozen=True)
class NetworkKind:
    """What belongs together; ``rows`` makes the static buffers and the row-batched forward of a ``network``.

    ``shared`` those of a forward over rows of many runs.
    """

    spec: type[ModelSpec]
    network: type[nn.Module]
    rows: type
    shared: type[SharedRows]
    readers: tuple[Reader, ...]


def _holds(prefix: str) -> Callable[[Checkpoint], bool]:
    return lambda checkpoint: any(key.startswith(prefix) for key in checkpoint.tensors)


# in the order in which a checkpoint is offered to their readers: diffusers names the blocks of DiT and SD3 alike
KINDS = (
    NetworkKind(MMDiTSpec, MMDiT, MMDiTRows, SharedMMDiT, (Reader(is_mmdit, mmdit_layout),)),
    NetworkKind(
        SiTSpec,
        SiT,
        SiTRows,
        SharedSiT,
        (Reader(_holds("transformer_blocks."), diffusers_layout), Reader(_holds("blocks."), official_layout)),
    ),
)


def make_network(spec: ModelSpec) -> nn.Module:
    """A network of the kind of ``spec``, on the default device."""
    return next(kind for kind in KINDS if isinstance(spec, kind.spec)).network(spec)


def make_rows(network: nn.Module, batch: int, height: int, width: int, **capacity: Any) -> Any:
    """Static buffers and the row-batched forward of ``network`` for B samples; ``capacity`` is what its rows take.

    A network around foreign modules is of no kind: it makes its rows itself.
    """
    for kind in KINDS:
        if isinstance(network, kind.network):
            return kind.rows(network, batch, height, width, **capacity)
    return network.rows(batch, height, width, **capacity)


def make_shared_rows(
    network: nn.Module, runs: int, conditions: int, rows: int, height: int, width: int, **more: Any
) -> SharedRows:
    """Static buffers of ``network`` for rows of many runs, and its forward over them; see :class:`.shared_rows.SharedRows`.

    Raises ``TypeError`` for a network around foreign modules, which has none.
    """
    for kind in KINDS:
        if isinstance(network, kind.network):
            return kind.shared(network, runs, conditions, rows, height, width, **more)
    raise TypeError(f"rows of many runs need a SiT, a DiT or an MMDiT, got a {type(network).__name__}")


def read_layout(checkpoint: Checkpoint, hints: Hints) -> Layout | None:
    """The layout of a checkpoint by the first reader that knows it, None for no known network.

    Raises ``ValueError`` where the checkpoint lacks what its layout needs.
    """
    readers = (reader for kind in KINDS for reader in kind.readers)
    return next((reader.layout(checkpoint, hints) for reader in readers if reader.knows(checkpoint)), None)
