"""Prompts of classes, embedded once, from which the step of a rule draws references; and whose class a prompt is."""

from collections.abc import Callable, Sequence

import torch

from segue.models.drawn_rows import PromptPool
from segue.models.mmdit import TextCondition
from segue.models.weight_watch import WeightWatch

from ..rules.drawn import ClassPrompts, Draw, plain_condition
from .encoding import PromptEmbeddings

AT_ONCE = 16  # prompts that are encoded together

Encode = Callable[[list[str]], TextCondition]


class ClassPools:
    """The embedded prompts of the classes of rules, kept until the text encoders change."""

    def __init__(self) -> None:
        self._watch: WeightWatch | None = None
        self._kept: dict[tuple[ClassPrompts, int], TextCondition] = {}

    def pool(self, classes: ClassPrompts, tokens: int, encode: Encode, encoders: Sequence[torch.nn.Module]) -> TextCondition:
        """The prompts of ``classes``, [K, tokens, text_dim] and [K, pooled_dim], by ``encode`` unless they are there.

        Raises ``ValueError`` where ``encode`` gives prompts of another length.
        """
        if encoders and (self._watch is None or not self._watch.unchanged()):
            self._kept = {}
            self._watch = WeightWatch(lambda: [p for encoder in encoders for p in encoder.parameters()])
        if (classes, tokens) not in self._kept:
            texts = classes.prompts
            parts = [encode(texts[first : first + AT_ONCE]) for first in range(0, len(texts), AT_ONCE)]
            found = TextCondition(torch.cat([part.context for part in parts]), torch.cat([part.pooled for part in parts]))
            if found.context.shape[1] != tokens:
                raise ValueError(
                    f"the prompts of classes have {found.context.shape[1]} tokens, and those of the samples {tokens}: encode "
                    "these by the same pipeline"
                )
            self._kept[classes, tokens] = found
        return self._kept[classes, tokens]


def drawn_prompts(draw: Draw, pool: TextCondition, embeddings: PromptEmbeddings) -> PromptPool:
    """What the samples of ``embeddings`` draw prompts from: a sample's class is the one that its prompt names.

    Raises ``ValueError`` for embeddings that do not say of which prompts they are, for a prompt of no class, and without the
    negative prompt that stands in where nothing is chosen.
    """
    if draw.classes is None or not embeddings.texts:
        raise ValueError(
            f"a {draw} needs the class of every prompt, and these embeddings came without texts: make them by encode()"
        )
    plain = embeddings.positive if plain_condition(draw) == "cond" else embeddings.negative
    if plain is None:
        raise ValueError(f"the rule has a {draw} branch, and the embeddings hold no negative prompt")
    own = [draw.classes.label_of(text) for text in embeddings.texts]
    return PromptPool(pool, plain, torch.tensor(own, device="cpu"))
