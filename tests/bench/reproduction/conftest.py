"""Where and with what made-up rows were made."""

import pytest

from segue.bench.rows import Environment


@pytest.fixture
def environment() -> Environment:
    return Environment("test machine", 1, {"torch": "0"}, "abc", "segue reproduce test")


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """Rows of tests come of a commit, whatever the checkout is like."""
    monkeypatch.setenv("SEGUE_COMMIT", "abc")
