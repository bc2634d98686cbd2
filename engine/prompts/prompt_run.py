"""What a run of a model that takes prompts made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..planning.plan import Plan
from ..records.pictures import short_prompts
from ..records.prompt_record import PromptRecord
from ..records.run import Run


@dataclass(frozen=True, eq=False, repr=False)
class PromptRun(Run):
    """What a run made.  ``latents`` [B, C, H, W] fp32; ``images`` PIL, empty if only latents were asked for.

    A run that a callback stopped holds the samples of the batch it was in, as far as they had come, and those before it.
    ``texts`` is what its record says of prompts and start beside every run's.
    """

    latents: Tensor
    plan: Plan
    seeds: tuple[int, ...]
    calls: int
    model: str
    prompts: tuple[str, ...] = ()
    images: list = field(default_factory=list)
    max_batch: int | None = None
    engine: Any = None  # the PromptEngine
    unrecorded: str = ""
    texts: Mapping[str, Any] = field(default_factory=dict)

    def _record(self, rule: str, max_batch: int) -> PromptRecord:
        labels = tuple(self.texts["labels"])
        texts = {name: value for name, value in self.texts.items() if name != "labels"}
        drawn = labels, self.seeds, max_batch
        return PromptRecord(self._origin(), rule, self.plan.to_dict(), *drawn, planned=self.plan, **texts)

    def _names(self) -> tuple[str, ...]:
        return short_prompts(self.texts["prompts"])

    def _caption(self, index: int) -> str:
        return short_prompts(self.prompts)[index] if self.prompts else "embedded prompt"

    def _pictures(self) -> list:
        return self.images

    def _pictures_at_hand(self) -> list:
        return self.images
