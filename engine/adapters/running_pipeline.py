"""Which diffusers pipeline is calling, asked from inside its transformer."""

import sys
from typing import Any


def running_pipeline() -> tuple[Any, bool]:
    """The innermost diffusers pipeline with a method on the call stack, and whether code of its user runs between two steps.

    Under a loop written by hand these are None and True.

    Pipelines that share a transformer and a scheduler call the one exactly alike, and ``pipe(...)`` is looked up on the type,
    where nothing can be put for one instance: only the stack tells them apart.
    """
    from diffusers import DiffusionPipeline

    frame = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_code.co_varnames:
            owner = frame.f_locals.get("self")
            if isinstance(owner, DiffusionPipeline):
                return owner, frame.f_locals.get("callback_on_step_end") is not None
        frame = frame.f_back
    return None, True
