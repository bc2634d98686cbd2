"""One network's forward over rows of many runs: static buffers, and indices that say whose rows they are.

A :class:`.rows.RowLayout` with its blocks of B rows serves runs that are in step.  Here every row has its own state, time and
condition: what differs between two forwards of the same :class:`.shared_layout.SharedLayout` lies in ``indices`` on the
device, so one captured forward serves all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.kernels.combine import unpatchify
from segue.kernels.record import Kernels

from .read_rows import Head
from .residuals import RowCarries
from .shared_layout import SharedLayout, SharedRowsOfCall
from .shared_modulation import SharedModulation
from .spec import ModelSpec


class SharedRows(ABC):
    """Buffers for ``rows`` rows of up to ``runs`` runs of ``conditions`` conditions each, on latents of one size.

    ``outputs`` [rows + taps, C, H, W] fp32 has what the last forward read, in the network's own output.
    """

    def __init__(
        self, model: nn.Module, runs: int, conditions: int, rows: int, height: int, width: int, kernels: Kernels, columns: int
    ):
        """``columns``: of the modulation."""
        spec: ModelSpec = model.spec
        spec.check_size(height, width)
        weight = next(model.parameters())
        self.model, self.kernels, self.height, self.width = model, kernels, height, width
        self.hidden = weight.new_zeros(rows, spec.tokens(height, width), spec.dim)  # [R, L, D]
        self.modulation = weight.new_zeros(rows, columns)  # [R, W]
        self.table = SharedModulation(weight, columns, runs, conditions)
        self.outputs = torch.zeros(2 * rows, spec.channels, height, width, dtype=torch.float32, device=weight.device)
        # of a forward: state, entry and source of its rows, the rows that are read early, entry, condition and source of its
        # rows of text: 2 rows + taps + 2 texts, where texts and taps are up to twice as many as there is room for, rows no
        # more than texts; and the states' scales
        self.indices = torch.zeros(6 * rows, dtype=torch.int64, device=weight.device)
        self.scale = torch.ones(rows, dtype=torch.float32, device=weight.device)

    @abstractmethod
    def remembered(self) -> Iterator[Tensor]:
        """The weights that :meth:`begin` and :meth:`look_ahead` compute with, and :meth:`forward` does not."""

    def follow(self) -> None:
        """Compute anew what was computed from weights that have changed."""
        self.table.forget()

    @abstractmethod
    def begin(self, run: int, times: np.ndarray, conditions: Sequence[Any]) -> None:
        """A run takes the place ``run``: its network times [N], and its conditions as rows of one sample take them."""

    @abstractmethod
    def look_ahead(self, run: int, call: int) -> None:
        """Have the modulation of a run's next call."""

    @abstractmethod
    def forward(self, states: Tensor, layout: SharedLayout) -> None:
        """Run the rows that :meth:`put` described over ``states`` [S, C, H, W] fp32, and leave their ``outputs``."""

    def put(self, rows: SharedRowsOfCall) -> None:
        """Bring the indices of a forward to the device."""
        of_texts = rows.text_entry, rows.text_condition, rows.text_source
        host = torch.from_numpy(np.concatenate((rows.state, rows.entry, rows.source, rows.tapped, *of_texts)))
        self.indices[: len(host)].copy_(host)
        self.scale[: len(rows.scale)].copy_(torch.from_numpy(rows.scale))

    def _parts(self, layout: SharedLayout) -> tuple[Tensor, ...]:
        """State, entry, source and tapped rows, then entry, condition and source of texts, as :meth:`put` left them."""
        sizes = [layout.embedded, layout.rows, layout.rows - layout.embedded, layout.outputs - layout.rows]
        sizes += [layout.texts, layout.embedded_texts, layout.texts - layout.embedded_texts]
        return self.indices[: sum(sizes)].split(sizes)

    def _embed(self, states: Tensor, state: Tensor, projection: nn.Conv2d, positions: Tensor) -> None:
        """Begin the first rows as the states [S, C, H, W] that ``state`` [N] names, each times its scale."""
        x = self.kernels.gather_rows(states.flatten(1), state).view(-1, *states.shape[1:])
        into = self.hidden[None, : len(state)]
        self.kernels.embed_patches(x, projection.weight, projection.bias, positions, into, self.scale[: len(state)])

    def _fork(self, places: Sequence[slice], source: Tensor, embedded: int, state: Tensor, carries: RowCarries) -> None:
        """Begin rows of a stream as copies of rows before theirs: of ``source``, which has one for each after the embedded."""
        for place in places:
            own = source[place.start - embedded : place.stop - embedded]
            carries.settle()
            self.kernels.gather_rows(state[: place.start].flatten(1), own, out=state[place].flatten(1))

    def _read(self, hidden: Tensor, head: Head, place: slice) -> None:
        """Project rows [N, L, D] by a head, whose modulation is [N, D], into the outputs at ``place``."""
        patches = torch.empty(*hidden.shape[:2], len(head.bias), dtype=torch.float32, device=hidden.device)
        self.kernels.project(hidden, head.shift, head.scale, head.weight, head.bias, out=patches)
        self.outputs[place].copy_(unpatchify(patches, self.model.spec.patch, self.height, self.width))
