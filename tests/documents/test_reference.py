"""The API reference has every public name once, and its docstrings show no markup of another system."""

import re
from collections import Counter
from itertools import chain

import pytest
from markdown_pages import ROOT

import segue

REFERENCE = ROOT / "docs" / "reference.md"


def test_every_public_name_is_in_the_reference_once():
    shown = Counter(re.findall(r"^::: segue\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE))
    assert shown == Counter({*segue.__all__, *chain(*segue._ON_DIFFUSERS.values())})


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("see :meth:`Engine.sample`.", "see `Engine.sample`."),
        ("a :class:`~segue.engine.core.EngineCore`", "a `EngineCore`"),
        ("(see :mod:`.linears`) and ``code``", "(see `linears`) and ``code``"),
    ],
)
def test_roles_become_names_in_code(written, shown):
    pytest.importorskip("griffe")
    namespace = {}
    exec((ROOT / "docs" / "roles.py").read_text(encoding="utf-8"), namespace)
    assert namespace["plain"](written) == shown
