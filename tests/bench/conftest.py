"""Sessions that never read a clock: time is what a test says it is, or the FLOPs that were executed."""

import itertools

import pytest
import torch
from onednn_flops import COUNTED
from torch.utils.flop_counter import FlopCounterMode

from segue.bench.rows import Environment
from segue.bench.session import Session, Settings


@pytest.fixture
def environment() -> Environment:
    return Environment("test machine", 1, {"torch": "0"}, "abc", "segue bench test")


@pytest.fixture
def flop_timer():
    """A timer whose seconds are the floating-point operations that PyTorch counted: exact, and the same everywhere."""

    def timer(function) -> float:
        with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            function()
        return float(counter.get_total_flops())

    return timer


@pytest.fixture
def scripted_timer():
    """A timer that does not run anything and returns the given seconds one after the other."""

    def make(seconds):
        following = itertools.cycle(seconds)
        return lambda _function: next(following)

    return make


@pytest.fixture
def make_session(environment):
    """A session on the CPU that collects what it says in ``session.lines``; its clock stands still unless given."""

    def make(timer, path=None, now=lambda: 0.0, **settings) -> Session:
        lines: list[str] = []
        options = {"device": "cpu", "repetitions": 3, "case_limit_s": float("inf")} | settings
        session = Session(Settings(**options), environment, timer, path, echo=lines.append, now=now)
        session.lines = lines
        return session

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """Test workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
