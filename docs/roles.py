"""An extension of griffe, which reads the docstrings for the site: roles as in :meth:`Engine.sample` become names in code."""

import re

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr):`(~?)\.*([^`]+)`")


def plain(text: str) -> str:
    """``text`` with each role as the name that it shows: all of it, or what follows the last dot after a ``~``."""
    return ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)


class Roles(griffe.Extension):
    """Rewrites the docstring of every object that has one."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
