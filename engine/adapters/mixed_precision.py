"""The forward of a model that accelerate prepared for mixed precision: under autocast, with its outputs cast to fp32.

Training goes on with that forward, so a validation in between must leave it as it is.
"""

from collections.abc import Callable, Iterator

import torch


def autocast_around(forward: Callable) -> torch.autocast | None:
    """A fresh context like the one in which accelerate's wrapper calls the forward that it replaced; None for any other."""
    chain = list(_wrapped(forward))
    if not any(type(link).__module__ == "accelerate.utils.operations" for link in chain):
        return None
    cells = [cell.cell_contents for link in chain for cell in getattr(link, "__closure__", None) or ()]
    found = next((value for value in cells if isinstance(value, torch.autocast)), None)
    return None if found is None else torch.autocast(found.device, found.fast_dtype, found._enabled, found._cache_enabled)


def innermost(forward: Callable) -> Callable:
    """What is at the end of a chain of wrappers that name what they wrap."""
    return list(_wrapped(forward))[-1]


def _wrapped(forward: Callable) -> Iterator[Callable]:
    while forward is not None:
        yield forward
        forward = getattr(getattr(forward, "__func__", forward), "__wrapped__", None)
