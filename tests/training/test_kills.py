"""Runs that are killed at random moments, as by kill -9 or a power cut: they end as the run that never was."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import TINY_SPEC, tiny_settings

from segue.training.loop import Trainer
from segue.training.run_folder import RunFolder

STEPS = 24
SETTINGS = tiny_settings(steps=STEPS, checkpoint_every=2, snapshot_every=5)


def train_in_a_child(folder, start: str, seconds: float) -> bool:
    """Train in a forked process that the kernel ends after ``seconds`` (0: never); whether it came to its end."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process on the spot: no handler, no clean-up
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            Trainer(TINY_SPEC, SETTINGS, folder, start).run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGALRM
    return os.WIFEXITED(status)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has no other
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kills", (3, pytest.param(12, marks=pytest.mark.slow)))
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(kills, one_thread, tmp_path, seed):
    whole = Trainer(TINY_SPEC, SETTINGS, tmp_path / "whole")
    whole.run()
    random, killed, rounds = np.random.default_rng(seed), 0, 0
    while killed < kills:
        folder, rounds, finished = tmp_path / str(rounds), rounds + 1, False
        while not finished:
            start = "resume" if (folder / "run.json").exists() else "new"
            finished = train_in_a_child(folder, start, 0 if killed >= kills else random.uniform(0.01, 0.6))
            killed += not finished
        assert_same_runs(folder, whole.folder.path)


def assert_same_runs(folder: Path, whole: Path) -> None:
    """The same weights, averages, steps in the log and snapshots."""
    states = [torch.load(path / "state.pt", weights_only=True)["networks"]["main"] for path in (folder, whole)]
    for part in ("weights", "average"):
        ours, theirs = (state[part] for state in states)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    rows = [[row["step"] for row in RunFolder(path).log_rows()] for path in (folder, whole)]
    assert rows[0] == rows[1]
    assert list(RunFolder(folder).snapshots()) == list(RunFolder(whole).snapshots()) == [5, 10, 15, 20]
