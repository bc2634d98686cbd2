"""One engine for all servers of the tests, and schedulers that run when a test says so."""

import pytest

pytest.importorskip("fastapi")

from segue.engine.engine import Engine
from segue.engine.scheduling.scheduler import StepScheduler


@pytest.fixture(scope="session")
def engine():
    """The bundled model."""
    return Engine.from_pretrained("herbarium", device="cpu")


@pytest.fixture
def by_hand(engine, monkeypatch):
    """The engine, whose schedulers make a call of the network only when their ``tick`` is called."""
    monkeypatch.setattr(engine, "scheduler", lambda **options: StepScheduler(engine, engine.drawing, start=False, **options))
    return engine
