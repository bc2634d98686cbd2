"""What a run of a class-label model made."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from segue.models.spec import SiTSpec

from ..adapters.upscaling import Upscaler
from ..adapters.vae import Decoder
from ..images import PIXEL_CHANNELS, latents_to_images
from ..planning.plan import Plan
from .provenance import Record
from .run import Run


@dataclass(frozen=True, eq=False, repr=False)
class SampleRun(Run):
    """What a sampling run made.  ``latents`` [B, C, H, W] fp32; ``calls`` is less than planned if a callback stopped it.

    A run that is stopped in one of several batches holds the samples of that batch and those before it.
    """

    latents: Tensor
    plan: Plan
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    calls: int
    model: str
    decoder: Decoder | None = None
    max_batch: int | None = None
    engine: Any = None  # the Engine
    unrecorded: str = ""
    upscaler: Upscaler | None = None

    @cached_property
    def enlarged(self) -> Tensor:
        """The samples at the size that was asked for, [B, C, f H, f W] fp32; the latents where none was."""
        return self.latents if self.upscaler is None else self.upscaler(self.latents)

    @cached_property
    def images(self) -> list:
        """PIL images, made when they are first asked for: by the engine's VAE, or of latents that are pixels."""
        if self.decoder is None:
            return latents_to_images(self.enlarged)
        return self.decoder.pictures(self.latents, self.max_batch)

    def _record(self, rule: str, max_batch: int) -> Record:
        origin = self._origin().with_decoder(self.decoder).with_upscaler(self.upscaler)
        return Record(origin, rule, self.plan.to_dict(), self.labels, self.seeds, max_batch, planned=self.plan)

    def _names(self) -> tuple[str, ...]:
        return cast(SiTSpec, self.plan.spec).class_names

    def _caption(self, index: int) -> str:
        names = self._names()
        return names[self.labels[index]] if names else f"class {self.labels[index]}"

    def _pictures(self) -> list:
        return self.images

    def _pictures_at_hand(self) -> list:
        if self.decoder is None:
            return self.images if self.latents.shape[1] == PIXEL_CHANNELS and torch.isfinite(self.latents).all() else []
        return vars(self).get("images", [])
