"""Runs of several parts and several processes: all are the run of one process with the whole batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import TINY_SPEC, tiny_settings

from segue.training.loop import Trainer
from segue.training.objectives.objective import Objective
from tests.tolerances import FP32_SUMMED_PARTS

STEPS = 5

RUN = """
import json, os, signal, sys
from training_fixtures import TINY_SPEC, tiny_settings
from segue.training.loop import Trainer
from segue.training.objectives.objective import Objective
folder, start, killed, objective = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
settings = tiny_settings(
    steps=5, batch_size=6, micro_batches=2, checkpoint_every=2, objective=Objective.from_dict(objective)
)
trainer = Trainer(TINY_SPEC, settings, folder, start)
if os.environ["RANK"] == sys.argv[5]:
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[6]))  # nobody handles it: the process is ended on the spot
trainer.run(lambda trainer, losses: os.kill(os.getpid(), signal.SIGKILL) if trainer.step == killed else None)
sys.stdout.write(f"process {trainer.processes.rank} of {trainer.processes.count} at {trainer.step}\\n")
"""


def launch(
    folder: Path,
    start: str = "new",
    killed: int = 0,
    objective: Objective | None = None,
    rank: int = 0,
    seconds: float = 0.0,
) -> subprocess.CompletedProcess:
    """A run in two processes, launched as users launch theirs.

    The first is killed after step ``killed``, or the one of ``rank`` after so many ``seconds`` of training.
    """
    script = folder.parent / "run.py"
    script.write_text(RUN)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([os.path.dirname(sys.modules["training_fixtures"].__file__), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        *launcher,
        str(script),
        str(folder),
        start,
        str(killed),
        json.dumps((objective or Objective()).to_dict()),
        str(rank),
        str(seconds),
    ]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "state.pt", weights_only=True)["networks"]["main"]["weights"]


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= FP32_SUMMED_PARTS * value.abs().max().clamp_min(1e-2), name


@pytest.fixture
def alone(tmp_path) -> dict[str, torch.Tensor]:
    """The weights of one process that adds two parts up."""
    Trainer(TINY_SPEC, tiny_settings(steps=STEPS, batch_size=6, micro_batches=2), tmp_path / "alone").run()
    return weights(tmp_path / "alone")


def test_parts_add_up_to_the_gradient_of_the_whole_batch(tmp_path, seed):
    """The naive step: the mean of the losses of all samples together, on what the parts drew."""
    settings = tiny_settings(steps=STEPS, batch_size=6, micro_batches=3, seed=seed)
    trainer = Trainer(TINY_SPEC, settings, tmp_path, "new")
    drawn = [trainer._draw(part, *batch) for part, batch in zip(range(3), trainer.batches(), strict=False)]
    whole = tuple(torch.cat(tensors) for tensors in zip(*drawn, strict=True))
    trainer.task.losses(trainer.model, whole)["loss"].backward()
    naive = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.trained["main"].optimizer.zero_grad(set_to_none=False)
    for part in drawn:
        trainer.one_step._gradients(trainer.trained["main"], part, 3)
    for parameter, expected in zip(trainer.model.parameters(), naive, strict=True):
        assert (parameter.grad - expected).abs().max() <= FP32_SUMMED_PARTS * expected.abs().max().clamp_min(1e-4)


def test_two_processes_train_what_one_does(alone, tmp_path):
    result = launch(tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert "process 0 of 2 at 5" in result.stdout and "process 1 of 2 at 5" in result.stdout
    assert_close(weights(tmp_path / "two"), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    (Objective("segmented", 0.5, tau=0.5, layer=1), Objective("layer-skip", 0.3), Objective("separate", 0.3)),
    ids=lambda objective: objective.weak,
)
def test_two_processes_agree_on_weak_signals(objective, tmp_path):
    """Each runs its own weak forwards, beside the module that joins their gradients."""
    settings = tiny_settings(steps=STEPS, batch_size=6, micro_batches=2, objective=objective)
    Trainer(TINY_SPEC, settings, tmp_path / "alone").run()
    result = launch(tmp_path / "two", objective=objective)
    assert result.returncode == 0, result.stderr
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "alone"))


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on_in_two_and_in_one(alone, tmp_path):
    folder = tmp_path / "two"
    assert launch(folder, killed=3).returncode != 0
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 2
    shutil.copytree(folder, tmp_path / "one")
    assert launch(folder, "resume").returncode == 0
    settings = tiny_settings(steps=STEPS, batch_size=6, micro_batches=2)
    Trainer(TINY_SPEC, settings, tmp_path / "one", "resume").run()
    for name in ("two", "one"):
        assert_close(weights(tmp_path / name), alone)


@pytest.mark.slow
def test_a_run_of_two_processes_survives_ten_kills_at_random_moments(alone, tmp_path, seed):
    random, killed, rounds = np.random.default_rng(seed), 0, 0
    while killed < 10:
        folder, rounds, finished = tmp_path / str(rounds), rounds + 1, False
        while not finished:
            start = "resume" if (folder / "run.json").exists() else "new"
            moment = 0.0 if killed >= 10 else random.uniform(0.001, 0.25)
            finished = launch(folder, start, rank=int(random.integers(2)), seconds=moment).returncode == 0
            killed += not finished
        assert_close(weights(folder), alone)


def test_parts_that_cannot_be_shared_are_refused(tmp_path):
    class Three:
        rank, count, device, first = 0, 3, "cpu", True

    with pytest.raises(ValueError, match="3 processes need as many micro_batches or a multiple, got 2"):
        Trainer(TINY_SPEC, tiny_settings(batch_size=6, micro_batches=2), tmp_path / "run", processes=Three())
    assert not (tmp_path / "run").exists()
