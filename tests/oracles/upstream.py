"""Defects of diffusers, shown in the tests that ours does not have them, and what a release of it cannot do here."""

import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version

pytest.importorskip("diffusers")

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

offloads_groups = pytest.mark.skipif(
    Version(version("diffusers")) < Version("0.41") and torch.accelerator.current_accelerator() is None,
    reason="diffusers 0.40 offloads groups of layers on machines with an accelerator only",
)


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
