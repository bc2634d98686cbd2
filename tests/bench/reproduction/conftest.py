"""Where and with what made-up rows were made."""

import numpy as np
import pytest
from tiny_checkpoint import save_tiny
from typer.testing import CliRunner

from segue.__main__ import app
from segue.bench.rows import Environment


@pytest.fixture
def segue(tmp_path, monkeypatch):
    """Runs a command of ``segue reproduce`` in a folder with real pictures and a tiny model."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "mine.safetensors", name="mine")
    pixels = np.random.default_rng(1).integers(0, 256, (30, 8, 12, 3), dtype=np.uint8)
    np.savez("real.npz", pixels, np.arange(30) % 5)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["reproduce", *arguments])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


@pytest.fixture
def environment() -> Environment:
    return Environment("test machine", 1, {"torch": "0"}, "abc", "segue reproduce test")


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """Rows of tests come of a commit, whatever the checkout is like."""
    monkeypatch.setenv("SEGUE_COMMIT", "abc")
