"""Networks whose weights come later: neither memory nor numbers for those of a fresh network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Uninitialised(TorchFunctionMode):
    """Leaves tensors of the meta device that ``torch.nn.init`` would fill as they are.

    There is nothing to fill, and drawing normal numbers there loads PyTorch's compiler: a second at the start of every command.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        options = options or {}
        if getattr(function, "__module__", None) == torch.nn.init.__name__:
            tensor = options.get("tensor", *arguments[:1])
            if tensor.is_meta:
                return tensor
        return function(*arguments, **options)


@contextmanager
def unallocated() -> Iterator[None]:
    """Modules that are made within have parameters on the meta device: shapes and dtypes alone."""
    with torch.device("meta"), _Uninitialised():
        yield
