"""One engine for all servers of the tests, and schedulers that run when a test says so."""

import pytest

pytest.importorskip("fastapi")

from segue.engine.engine import Engine


@pytest.fixture(scope="session")
def engine():
    """The bundled model."""
    return Engine.from_pretrained("herbarium", device="cpu")


@pytest.fixture
def by_hand(engine, monkeypatch):
    """The engine, whose schedulers make a call of the network only when their ``tick`` is called."""
    scheduler = engine.scheduler
    monkeypatch.setattr(engine, "scheduler", lambda **options: scheduler(**options, start=False), raising=False)
    return engine
