"""Threads that encode prompts of mixed lengths side by side get what each gives alone, by slow and by fast tokenizers."""

import random
import threading

import pytest
import torch
from tiny_sd3 import LETTERS, T5_TOKENS, tiny_pipeline

from segue import CFG, Engine

WORKERS = 4
HUNDRED = pytest.param(100, marks=pytest.mark.slow)
RULE = CFG(3.0)
SMALL = {"num_layers": 2, "dual_attention_layers": (0,)}


def slow_tokenizer(fast):
    """The same letters through transformers' tokenizers in Python, which cut and pad in Python too."""
    from transformers import PreTrainedTokenizer

    class LetterTokenizer(PreTrainedTokenizer):
        def __init__(self, vocab, **settings):
            self._vocab, self._names = vocab, {index: piece for piece, index in vocab.items()}
            super().__init__(**settings)

        @property
        def vocab_size(self):
            return len(self._vocab)

        def get_vocab(self):
            return dict(self._vocab)

        def _tokenize(self, text, **_):
            return [piece for piece in text if piece in self._vocab]

        def _convert_token_to_id(self, token):
            return self._vocab.get(token, 0)

        def _convert_id_to_token(self, index):
            return self._names[index]

    special = {name: str(token) for name, token in fast.special_tokens_map.items() if isinstance(token, str)}
    return LetterTokenizer(fast.get_vocab(), model_max_length=fast.model_max_length, **special)


def make_pipe(kind: str):
    pipe = tiny_pipeline(seed=21, **SMALL)
    if kind == "slow":
        names = ("tokenizer", "tokenizer_2", "tokenizer_3")
        pipe.register_modules(**{name: slow_tokenizer(getattr(pipe, name)) for name in names})
        assert not any(getattr(pipe, name).is_fast for name in names)
    return pipe


def mixed_prompts(count: int) -> list[tuple[str, str, int]]:
    """Prompts, negative prompts and lengths to cut at."""
    draw = random.Random(5)
    texts = ["".join(draw.choices(LETTERS + " ", k=draw.randint(0, 12))) for _ in range(2 * count)]
    return [(texts[index], texts[count + index], draw.randint(2, 2 * T5_TOKENS)) for index in range(count)]


def side_by_side(work, tasks) -> list:
    """What ``work`` gives for each of ``tasks``, in WORKERS threads that begin at different ones; raises what one raised."""
    found, start = [], threading.Barrier(WORKERS)

    def run(first):
        start.wait()
        for index in range(len(tasks)):
            place = (first * len(tasks) // WORKERS + index) % len(tasks)
            try:
                found.append((place, work(*tasks[place])))
            except BaseException as error:  # what a thread raises is this test's to raise
                found.append((place, error))
                return

    threads = [threading.Thread(target=run, args=(first,)) for first in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, result in found:
        if isinstance(result, BaseException):
            raise result
    return found


@pytest.mark.parametrize("count", [6, HUNDRED])
@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_prompts_of_mixed_lengths_side_by_side_are_those_encoded_alone(kind, count):
    engine, tasks = Engine.from_pipe(make_pipe(kind)), mixed_prompts(count)

    def encode(prompt, negative, length):
        found = engine.encode([prompt], negative, max_sequence_length=length)
        return [part for side in (found.positive, found.negative) for part in (side.context, side.pooled)]

    alone = [encode(*task) for task in tasks]
    assert len({len(parts[0][0]) for parts in alone}) > 3
    found = side_by_side(encode, tasks)
    assert len(found) == WORKERS * count
    for place, parts in found:
        assert all(torch.equal(part, wanted) for part, wanted in zip(parts, alone[place], strict=True))


@pytest.mark.parametrize("kind", ["fast", pytest.param("slow", marks=pytest.mark.slow)])
def test_engines_that_share_text_encoders_generate_side_by_side(kind):
    """Each on a transformer and a scheduler of its own, as a server with two models has them."""
    from diffusers import StableDiffusion3Pipeline

    pipe = make_pipe(kind)
    other = tiny_pipeline(seed=22, **SMALL)
    shared = pipe.components | {"transformer": other.transformer, "scheduler": other.scheduler}
    engines = [Engine.from_pipe(pipe), Engine.from_pipe(StableDiffusion3Pipeline(**shared))]
    tasks = [(index % 2, *task) for index, task in enumerate(mixed_prompts(3))]

    def draw(which, prompt, negative, length):
        options = {"steps": 1, "seeds": 3, "output": "latent", "max_sequence_length": length}
        return engines[which].generate(prompt, negative, RULE, **options).latents

    alone = [draw(*task) for task in tasks]
    for place, latents in side_by_side(draw, tasks):
        assert torch.equal(latents, alone[place])
