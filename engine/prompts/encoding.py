"""Prompts and their embeddings, made by the text encoders of a diffusers SD3 pipeline."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segue.models.mmdit import TextCondition

from ..adapters.live_transformer import hook_device
from ..numeric_input import counting_number

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = dict(zip(ENCODERS, ("tokenizer", "tokenizer_2", "tokenizer_3"), strict=True))
CLIPS = ENCODERS[:2]  # the third, T5, may be missing: zeros stand in its place, as in the pipelines
PROMPT_LENGTH = 256  # tokens of the third encoder, T5; the two CLIPs bring 77


@dataclass(frozen=True, eq=False, repr=False)
class PromptEmbeddings:
    """Encoded prompts of B images, reusable across calls.  ``negative`` may be None when no rule needs it.

    ``texts``: the prompts themselves where they are known, for rules that draw the prompts of classes.
    """

    positive: TextCondition
    negative: TextCondition | None = None
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positive)

    def __repr__(self) -> str:
        return f"<PromptEmbeddings of {len(self)} prompts, {'without' if self.negative is None else 'with'} negative ones>"

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PromptEmbeddings":
        def changed(condition: TextCondition | None) -> TextCondition | None:
            return None if condition is None else TextCondition(change(condition.context), change(condition.pooled))

        return PromptEmbeddings(changed(self.positive), changed(self.negative), self.texts)

    def select(self, rows: Sequence[int]) -> "PromptEmbeddings":
        """The prompts of these rows, in their order; a row may come several times."""
        rows = list(rows)
        taken = tuple(self.texts[row] for row in rows) if self.texts else ()
        return replace(self._each(lambda tensor: tensor[rows]), texts=taken)

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptEmbeddings":
        """The same on a device and in a dtype."""
        return self._each(lambda tensor: tensor.to(device, dtype))

    def repeat(self, images: int) -> "PromptEmbeddings":
        """Each prompt ``images`` times in a row (prompt-major)."""
        images = counting_number(images, "images")
        return self.select([row for row in range(len(self)) for _ in range(images)])


def check_prompts(prompt: str | Sequence[str], count: int | None = None) -> list[str]:
    """A list of prompts; one string fits any ``count``.  Raises ``TypeError`` or ``ValueError``."""
    if not hasattr(prompt, "__iter__"):
        raise TypeError(f"a prompt must be a string or a list of strings, got {prompt!r}")
    prompts = [prompt] * (count or 1) if isinstance(prompt, str) else list(prompt)
    for text in prompts:
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a string, got {text!r}")
    if not prompts:
        raise ValueError("prompt is empty; give at least one prompt")
    if count is not None and len(prompts) != count:
        raise ValueError(f"{len(prompts)} negative prompts do not fit {count} prompts")
    return prompts


def check_texts(
    prompt: str | Sequence[str] | PromptEmbeddings, negative_prompt: str | Sequence[str], length: int | None
) -> list[str] | None:
    """The prompts to encode; None for embeddings, which leave nothing to say about how to encode them."""
    if not isinstance(prompt, PromptEmbeddings):
        if length is not None:
            counting_number(length, "max_sequence_length")
        return check_prompts(prompt)
    for name, value in (("negative_prompt", negative_prompt or None), ("max_sequence_length", length)):
        if value is not None:
            raise ValueError(f"the prompts are encoded already: give {name} {value!r} to encode()")
    return None


def text_encoders(pipe) -> dict[str, nn.Module]:
    """The text encoders that a pipeline has, by name."""
    return {name: encoder for name in ENCODERS if (encoder := getattr(pipe, name, None)) is not None}


def check_encoders(pipe) -> None:
    """Raise ``ValueError`` where a pipeline lacks what encoding prompts needs."""
    present = text_encoders(pipe)
    needed = dict.fromkeys((*CLIPS, *(TOKENIZERS[name] for name in (*CLIPS, *present))))
    missing = [name for name in needed if getattr(pipe, name, None) is None]
    if missing:
        raise ValueError(
            f"the pipeline has no {', '.join(missing)} (freed, or never loaded), which prompts need; "
            "pass embeddings from an earlier encode()"
        )


@torch.no_grad()
def encode_prompts(
    pipe, prompts: list[str], negatives: list[str] | None, device: torch.device, max_sequence_length: int
) -> PromptEmbeddings:
    """Embeddings of ``prompts`` and, unless None, of as many ``negatives``, on ``device``.

    Text encoders that lie elsewhere are brought there for as long as it takes; offload hooks are left to do so themselves.
    """
    check_encoders(pipe)
    with _encoders_on(pipe, device):
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
    unguided = None if without else TextCondition(negative, negative_pooled)
    return PromptEmbeddings(TextCondition(positive, pooled), unguided, tuple(prompts))


@contextmanager
def _encoders_on(pipe, device: torch.device) -> Iterator[None]:
    encoders = [encoder for encoder in text_encoders(pipe).values() if hook_device(encoder) is None]
    away = [(encoder, encoder.device) for encoder in encoders if encoder.device != device]
    try:
        for encoder, _ in away:
            encoder.to(device)
        yield
    finally:
        for encoder, place in away:
            encoder.to(place)


def move_text_encoders(pipe, device: torch.device) -> None:
    """Let the text encoders rest on ``device``.  Raises ``ValueError`` where hooks of the pipeline move them already."""
    encoders = text_encoders(pipe)
    for name, encoder in encoders.items():
        if hook_device(encoder) is not None:
            raise ValueError(f"{name} has offload hooks of the pipeline, which move it already")
    for encoder in encoders.values():
        encoder.to(device)
