"""Prompts and their embeddings, made by the text encoders of a diffusers SD3 pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from segue.models.mmdit import TextCondition

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class PromptEmbeddings:
    """Encoded prompts of B images, reusable across calls.  ``negative`` may be None when no rule needs it."""

    positive: TextCondition
    negative: TextCondition | None = None

    def __len__(self) -> int:
        return len(self.positive)

    def select(self, rows: Sequence[int]) -> "PromptEmbeddings":
        """The prompts of these rows, in their order; a row may come several times."""
        rows = list(rows)

        def selected(condition: TextCondition | None) -> TextCondition | None:
            return None if condition is None else TextCondition(condition.context[rows], condition.pooled[rows])

        return PromptEmbeddings(selected(self.positive), selected(self.negative))

    def repeat(self, images: int) -> "PromptEmbeddings":
        """Each prompt ``images`` times in a row (prompt-major)."""
        return self.select([row for row in range(len(self)) for _ in range(images)])


def check_prompts(prompt: str | Sequence[str], count: int | None = None) -> list[str]:
    """A list of prompts; one string fits any ``count``."""
    prompts = [prompt] * (count or 1) if isinstance(prompt, str) else list(prompt)
    for text in prompts:
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a string, got {text!r}")
    if not prompts:
        raise ValueError("prompt is empty; give at least one prompt")
    if count is not None and len(prompts) != count:
        raise ValueError(f"{len(prompts)} negative prompts do not fit {count} prompts")
    return prompts


@torch.no_grad()
def encode_prompts(
    pipe, prompts: list[str], negatives: list[str] | None, device: torch.device, max_sequence_length: int
) -> PromptEmbeddings:
    """Embeddings of ``prompts`` and, unless None, of as many ``negatives``."""
    if all(getattr(pipe, name, None) is None for name in ENCODERS):
        raise ValueError("the text encoders were freed; pass embeddings from an earlier encode()")
    positive, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompt=prompts,
        prompt_2=None,
        prompt_3=None,
        negative_prompt=negatives,
        do_classifier_free_guidance=negatives is not None,
        device=device,
        max_sequence_length=max_sequence_length,
    )
    without = negatives is None
    return PromptEmbeddings(TextCondition(positive, pooled), None if without else TextCondition(negative, negative_pooled))
