"""What tests of the choice of kernels share."""

import pytest
from pretended_device import pretend

from segue.kernels import dispatch


@pytest.fixture
def clean(monkeypatch):
    """No environment, no memory of what was logged; device questions are answered without a device."""
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    dispatch._log_once.cache_clear()


@pytest.fixture
def hopper(monkeypatch):
    """A CUDA device of compute capability 9.0, as far as the choice of kernels can see."""
    pretend(monkeypatch, "sm_90", (9, 0))
