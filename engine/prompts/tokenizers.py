"""A pipeline's tokenizers for threads beside the one that the pipeline runs in.

Tokenizers of the transformers library hold the padding and truncation of the call that they are in, so two threads may not
share one.
"""

import copy
import weakref
from typing import Any

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


class OwnTokenizers:
    """Copies of tokenizers, each made once; whoever encodes by them takes turns."""

    def __init__(self):
        self._copies: weakref.WeakKeyDictionary[Any, tuple[tuple, Any]] = weakref.WeakKeyDictionary()

    def view(self, pipe: Any) -> Any:
        """A pipeline with the same components as ``pipe``, but for its tokenizers, which are copies."""
        view = copy.copy(pipe)
        found = {name: getattr(pipe, name, None) for name in TOKENIZERS}
        vars(view).update((name, self._copy(tokenizer)) for name, tokenizer in found.items() if tokenizer is not None)
        return view

    def _copy(self, tokenizer: Any) -> Any:
        """The copy made before, while the tokenizer is as it was: textual inversion adds tokens to it."""
        found = self._copies.get(tokenizer)
        if found is None or found[0] != _settings(tokenizer):
            found = self._copies[tokenizer] = _settings(tokenizer), copy.deepcopy(tokenizer)
        return found[1]


def _settings(tokenizer: Any) -> tuple:
    sides = tokenizer.padding_side, tokenizer.truncation_side
    return len(tokenizer), tokenizer.model_max_length, *sides, tuple(tokenizer.special_tokens_map.items())
