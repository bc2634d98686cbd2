"""Runs of a tiny pipeline, plain and attached, with everything about them that tests ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from counted_rows import counted_rows
from tiny_sd3 import T5_TOKENS

import segue

PATHS = ("packed", "modules")


def draw(pipe, **call):
    """Latents of a call with the common settings filled in; ``generator`` is a function, so that each call draws anew."""
    settings = {
        "prompt": "leaf",
        "num_inference_steps": 5,
        "max_sequence_length": T5_TOKENS,
        "output_type": "latent",
        "generator": lambda: torch.Generator().manual_seed(7),
    }
    settings |= call
    settings["generator"] = settings["generator"]()
    return pipe(**settings).images


@dataclass(frozen=True)
class AttachedRun:
    """``rows``: the batch size of every block call, in order; ``text``: what ``explain()`` said."""

    latents: torch.Tensor
    plan: segue.Plan
    rows: list[int]
    text: str

    @property
    def path(self) -> str:
        return "packed" if self.text.startswith("path: packed weights") else "modules"


@contextmanager
def forced(pipe, path: str | None) -> Iterator[None]:
    """Make an attached pipeline take ``path``: a hook that changes nothing keeps its weights from being packed."""
    handle = pipe.transformer.proj_out.register_forward_hook(lambda *_: None) if path == "modules" else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def draw_attached(pipe, rule, path=None, **call) -> AttachedRun:
    """One guided call on a path (None: whichever it takes)."""
    with forced(pipe, path):
        attachment = segue.attach(pipe, rule)
        try:
            with counted_rows() as rows:
                latents = draw(pipe, **call)
            run = AttachedRun(latents, attachment.plan, rows, attachment.explain())
        finally:
            segue.detach(pipe)
    assert path is None or run.path == path, run.text
    return run


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest magnitude wanted."""
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())
