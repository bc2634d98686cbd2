"""The forward of an MMDiT over rows of many runs."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from segue.kernels.normalized_attention import NEUTRAL
from segue.kernels.record import REFERENCE, Kernels

from .joint_attention import JoinedTexts
from .mmdit import MMDiT, TextCondition
from .read_rows import Head
from .residuals import RowCarries
from .shared_layout import SharedLayout, SharedRowsOfCall
from .shared_rows import SharedRows


class SharedMMDiT(SharedRows):
    """:class:`.shared_rows.SharedRows` of an MMDiT; a condition is the :class:`.mmdit.TextCondition` of one prompt.

    ``context`` [runs * conditions, M, D] has the embedded prompts, which the rows' texts begin as.
    """

    model: MMDiT

    def __init__(
        self,
        model: MMDiT,
        runs: int,
        conditions: int,
        rows: int,
        height: int,
        width: int,
        kernels: Kernels = REFERENCE,
        text_tokens: int | None = None,
    ):
        """``text_tokens`` is the prompt length M, by default the model's."""
        super().__init__(model, runs, conditions, rows, height, width, kernels, model.modulation_width)
        tokens, spec = text_tokens or model.spec.text_tokens, model.spec
        self.positions = model.position_table(height, width).clone()
        self.text = self.hidden.new_zeros(rows, tokens, spec.dim)  # [R', M, D]
        # where images meet two texts: the modulation of each text [R', W], and the numbers of the guidance of each image
        self.text_modulation = torch.zeros_like(self.modulation)
        self.normalized = torch.zeros(rows, len(NEUTRAL), dtype=torch.float32, device=self.hidden.device)
        self.context = self.hidden.new_zeros(runs * conditions, tokens, spec.dim)
        self.pooled = [self.hidden.new_zeros(0)] * runs
        self._texts: list[Sequence[TextCondition]] = [()] * runs  # of the runs under way

    def remembered(self) -> Iterator[Tensor]:
        return self.model.run_weights()

    def follow(self) -> None:
        super().follow()
        with torch.no_grad():
            self.positions.copy_(self.model.position_table(self.height, self.width))
        for run, conditions in enumerate(self._texts):
            self._embed_texts(run, conditions)

    @torch.no_grad()
    def begin(self, run: int, times: np.ndarray, conditions: Sequence[TextCondition]) -> None:
        self.table.begin(run, times, len(conditions))
        self._embed_texts(run, conditions)
        self._texts[run] = tuple(conditions)
        self.pooled[run] = torch.cat([condition.pooled.to(self.hidden.device) for condition in conditions])

    @torch.no_grad()
    def _embed_texts(self, run: int, conditions: Sequence[TextCondition]) -> None:
        device, tokens = self.hidden.device, self.context.shape[1]
        for place, condition in enumerate(conditions, start=run * self.table.conditions):
            if condition.context.shape[1] != tokens:
                raise ValueError(f"prompts here are of {tokens} tokens, got one of {condition.context.shape[1]}")
            self.context[place].copy_(self.model.embed_context(condition.context.to(device))[0])

    @torch.no_grad()
    def look_ahead(self, run: int, call: int) -> None:
        def compute(times: Tensor, into: Tensor) -> None:
            embedded = self.model.embed_condition(times[None], self.pooled[run][:, None])  # [conditions, n, D]
            self.model.modulation(embedded, out=into)

        self.table.look_ahead(run, call, compute)

    def put(self, rows: SharedRowsOfCall) -> None:
        super().put(rows)
        if rows.layout.is_joined:
            self.normalized[: len(rows.normalized)].copy_(torch.from_numpy(rows.normalized))

    @torch.no_grad()
    def forward(self, states: Tensor, layout: SharedLayout) -> None:
        model = self.model
        state, entry, source, _, text_entry, condition, text_source = self._parts(layout)
        modulation = self.kernels.gather_rows(self.table.rows, entry, out=self.modulation[: layout.rows])
        per_block, final = model.split_modulation(modulation)
        of_texts = self._text_modulation(text_entry, layout)
        self._embed(states, state, model.x_embedder.proj, self.positions)
        self.kernels.gather_rows(self.context.flatten(1), condition, out=self.text[: len(condition)].flatten(1))
        carries = RowCarries(self.hidden, self.kernels), RowCarries(self.text, self.kernels)
        for layer, (block, runs) in enumerate(zip(model.joint_blocks, layout.layers, strict=True)):
            self._fork(layout.forks(layer), source, layout.embedded, self.hidden, carries[0])
            self._fork(layout.text_forks(layer), text_source, layout.embedded_texts, self.text, carries[1])
            for run in runs:
                rows, texts = run.rows, run.texts
                states_of, carry = (self.hidden[rows], self.text[texts]), (carries[0].at(rows), carries[1].at(texts))
                joined = None if of_texts is None else JoinedTexts(of_texts[layer][texts], self.normalized[rows])
                block(*states_of, per_block[layer][rows], self.kernels, run.segments, carry, joined)
        carries[0].settle()  # nothing reads the text after the last block
        shift, scale = model.final_shift_scale(final)
        linear = model.final_layer.linear
        self._read(self.hidden[: layout.rows], Head(shift, scale, linear.weight, linear.bias), slice(layout.rows))

    def _text_modulation(self, entry: Tensor, layout: SharedLayout) -> tuple[Tensor, ...] | None:
        """That of each row of text in each block, [R', W_b]; None where it is that of the images."""
        if not layout.is_joined:
            return None
        found = self.kernels.gather_rows(self.table.rows, entry, out=self.text_modulation[: layout.texts])
        return self.model.split_modulation(found)[0]
