"""The forward of a DiT or SiT over rows of many runs."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from segue.kernels.record import REFERENCE, Kernels

from .read_rows import Head
from .residuals import RowCarries
from .shared_layout import SharedLayout
from .shared_rows import SharedRows
from .sit import SiT


class SharedSiT(SharedRows):
    """:class:`.shared_rows.SharedRows` of a SiT; a condition is a label, [1] int64."""

    model: SiT

    def __init__(
        self, model: SiT, runs: int, conditions: int, rows: int, height: int, width: int, kernels: Kernels = REFERENCE
    ):
        super().__init__(model, runs, conditions, rows, height, width, kernels, model.modulation_width)
        self.positions = model.positions(height, width).to(self.hidden, copy=True)
        self.projections = {layer: model.projection(layer) for layer in (*model.spec.exits, model.spec.depth)}
        self.labels = [torch.zeros(0, dtype=torch.int64)] * runs

    def remembered(self) -> Iterator[Tensor]:
        yield from self.model.run_weights()
        for layer in self.projections:
            yield from self.model.head(layer).parameters()

    def begin(self, run: int, times: np.ndarray, conditions: Sequence[Tensor]) -> None:
        self.table.begin(run, times, len(conditions))
        self.labels[run] = torch.cat([label.to(self.hidden.device) for label in conditions])

    @torch.no_grad()
    def follow(self) -> None:
        super().follow()
        self.positions.copy_(self.model.positions(self.height, self.width))
        for layer, held in self.projections.items():
            for own, now in zip(held, self.model.projection(layer), strict=True):
                if own.data_ptr() != now.data_ptr():  # a copy, of some of the channels
                    own.copy_(now)

    @torch.no_grad()
    def look_ahead(self, run: int, call: int) -> None:
        def compute(times: Tensor, into: Tensor) -> None:
            labels = self.labels[run]
            values = self.model.modulation(times.repeat(len(labels)), labels.repeat_interleave(len(times)))
            into.copy_(values.view(into.shape))

        self.table.look_ahead(run, call, compute)

    @torch.no_grad()
    def forward(self, states: Tensor, layout: SharedLayout) -> None:
        model, depth = self.model, self.model.spec.depth
        state, entry, source, tapped, *_ = self._parts(layout)
        modulation = self.kernels.gather_rows(self.table.rows, entry, out=self.modulation[: layout.rows])
        per_block, final, exits = model.split_modulation(modulation)
        self._embed(states, state, model.x_embedder.proj, self.positions)
        carries = RowCarries(self.hidden, self.kernels)
        for layer, (block, runs) in enumerate(zip(model.blocks, layout.layers, strict=True)):
            if (place := layout.tap(layer)) is not None:
                carries.settle()
                own = tapped[place.start - layout.rows : place.stop - layout.rows]
                hidden = self.kernels.gather_rows(self.hidden.flatten(1), own).view(-1, *self.hidden.shape[1:])
                self._read(hidden, self._head(layer, exits[layer].index_select(0, own)), place)
            self._fork(layout.forks(layer), source, layout.embedded, self.hidden, carries)
            for run in runs:
                rows = run.rows
                block(self.hidden[rows], per_block[layer][rows], self.kernels, run.segments, carries.at(rows))
        carries.settle()
        self._read(self.hidden[: layout.rows], self._head(depth, final), slice(layout.rows))

    def _head(self, layer: int, modulation: Tensor) -> Head:
        """The head after ``layer`` blocks; modulation [N, 2 D]."""
        shift, scale = modulation.chunk(2, dim=-1)
        return Head(shift, scale, *self.projections[layer])
