"""Distillations that are killed at random moments end as the one that never was."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_sit

from segue.models.adapted import AdapterSpec
from segue.models.low_rank import LowRankSpec
from segue.models.weights import save_model
from segue.training.distill.assembly import DEFAULT_SETTINGS, Teaching, make_trainer
from segue.training.distill.spec import TrajectorySpec

SETTINGS = replace(DEFAULT_SETTINGS, steps=12, batch_size=3, learning_rate=1e-2, warmup=2, checkpoint_every=2, ema=0.5)


def distill_in_a_child(teaching, folder, seconds: float) -> bool:
    """Distill in a forked process that the kernel ends after ``seconds`` (0: never); whether it came to its end."""
    start = "resume" if (folder / "run.json").exists() else "new"
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process on the spot: no handler, no clean-up
        signal.setitimer(signal.ITIMER_REAL, seconds)
        code = 1
        try:
            make_trainer(teaching, SETTINGS, folder, start).run()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGALRM if os.WIFSIGNALED(status) else os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


@pytest.mark.slow
def test_a_distillation_that_is_killed_ten_times_ends_as_one_that_was_not(tmp_path, seed):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has no other
    save_model(tiny_sit(seed), tmp_path / "tiny.safetensors")
    adapter = AdapterSpec(LowRankSpec(2))
    teaching = Teaching(
        str(tmp_path / "tiny.safetensors"), "cfg:scale=2", adapter=adapter, trajectories=TrajectorySpec(6, own=0.5, levels=2)
    )
    make_trainer(teaching, SETTINGS, tmp_path / "whole", "new").run()
    expected = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["networks"]["main"]
    random, killed, rounds = np.random.default_rng(seed), 0, 0
    while killed < 10:
        folder, rounds, finished = tmp_path / str(rounds), rounds + 1, False
        while not finished:
            finished = distill_in_a_child(teaching, folder, 0 if killed >= 10 else random.uniform(0.05, 0.8))
            killed += not finished
        found = torch.load(folder / "state.pt", weights_only=True)["networks"]["main"]
        for part in ("weights", "average"):
            assert [name for name, value in found[part].items() if not torch.equal(value, expected[part][name])] == []
        ours, theirs = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "whole"))
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    torch.set_num_threads(threads)
