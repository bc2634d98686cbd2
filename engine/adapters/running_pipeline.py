"""Which diffusers pipeline is calling, asked from inside its transformer."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


def running_pipeline() -> tuple[Any, bool]:
    """The innermost diffusers pipeline with a method on the call stack, and whether code of its user runs between two steps.

    Under a loop written by hand these are None and True.

    Pipelines that share a transformer and a scheduler call the one exactly alike, and ``pipe(...)`` is looked up on the type,
    where nothing can be put for one instance: only the stack tells them apart.
    """
    frame = next(_pipeline_frames(), None)
    if frame is None:
        return None, True
    return frame.f_locals["self"], frame.f_locals.get("callback_on_step_end") is not None


def argument_of_call(pipe: Any, name: str) -> Any:
    """What the running call of ``pipe`` was given as ``name``, or its default; None where no such call is running."""
    found = (frame.f_locals[name] for frame in _pipeline_frames() if frame.f_locals["self"] is pipe and name in frame.f_locals)
    return next(found, None)


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
