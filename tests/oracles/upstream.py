"""Defects of diffusers, shown in the tests that ours does not have them."""

import warnings
from importlib.metadata import version
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def diffusers_defect(shown: bool, what: str) -> None:
    """Fail unless the diffusers of ``constraints.txt`` shows the defect ``what``; one of another version may have mended it.

    That is a warning: the test goes on, for ours has to be right either way.
    """
    installed = version("diffusers")
    if shown:
        return
    tested = f"diffusers=={installed}" in CONSTRAINTS.read_text().split()
    assert not tested, f"diffusers {installed} does not show it: {what}"
    warnings.warn(f"diffusers {installed} has mended it: {what}", stacklevel=2)
