"""A callable that a user names as ``module:function`` on Python's path."""

import importlib
from typing import Any


def named_callable(name: str, kind: str) -> Any:
    """What ``name`` says, ``module:function``; a class is made without arguments.

    Raises ``ValueError``, in which it is called a ``kind``, for a name of another form, and for what cannot be imported, is not
    there or cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError(f"a {kind} is named as module:function, got {name!r}")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever a foreign module raises
        raise ValueError(f"the {kind} {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"the {kind} {name!r} is not there: {module} has no {attribute}")
        found = getattr(found, part)
    found = found() if isinstance(found, type) else found
    if not callable(found):
        raise ValueError(f"the {kind} {name!r} must be callable, got {type(found).__name__}")
    return found
