"""Which diffusers pipeline is calling, asked from inside its transformer."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


def running_pipeline() -> Any:
    """The innermost diffusers pipeline with a method on the call stack; None under a loop written by hand.

    Pipelines that share a transformer and a scheduler call the one exactly alike, and ``pipe(...)`` is looked up on the type,
    where nothing can be put for one instance: only the stack tells them apart.
    """
    frame = next(_pipeline_frames(), None)
    return None if frame is None else frame.f_locals["self"]


def put_back_processors(pipe: Any) -> None:
    """Undo what a running PAG pipeline did to the attention of its transformer, for a call that is about to be refused.

    diffusers puts the processors back only where the pipeline ends by itself; until then they are a local of its call.
    """
    for frame in _pipeline_frames():
        if frame.f_locals["self"] is pipe and "original_attn_proc" in frame.f_locals:
            pipe.transformer.set_attn_processor(dict(frame.f_locals["original_attn_proc"]))


def _pipeline_frames() -> Iterator[FrameType]:
    """The frames of methods of diffusers pipelines on the call stack, innermost first."""
    from diffusers import DiffusionPipeline

    frame = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_code.co_varnames and isinstance(frame.f_locals.get("self"), DiffusionPipeline):
            yield frame
        frame = frame.f_back
