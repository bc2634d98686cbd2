"""Packages that were brought along as wheels, for a machine that cannot fetch them."""

import subprocess
import sys
from pathlib import Path


def found_wheels(folder: Path) -> list[Path]:
    """The wheels of a folder; raises ``ValueError`` where there is none."""
    wheels = sorted(Path(folder).glob("*.whl"))
    if not wheels:
        raise ValueError(f"there are no wheels in {folder}")
    return wheels


def unpack(wheels: list[Path], target: Path) -> None:
    """Install wheels into ``target``, for ``PYTHONPATH``; what they need must be there already.

    Raises ``RuntimeError`` with pip's last line where it refuses one.
    """
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["pip failed without a message"])[-1])
