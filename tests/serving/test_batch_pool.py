"""A worker of the pool without its cluster: what dies before it can draw is given up, as what dies while it draws."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

from segue.engine.cli.options import Source
from segue.serving.batch_drawing import MOST_ATTEMPTS, Drawing
from segue.serving.batch_folder import BatchFolder
from segue.serving.batch_ray import OUTCOME, REFUSAL, SHARD, Pool, Worker
from segue.serving.batch_requests import RowRequest
from segue.serving.batch_shards import Shard

SHARDS = [Shard((RowRequest(id, 1, "none", 7, 2),), frozenset((id,))) for id in ("r0", "r1")]
# a process of the pool, which an operating system kills while it opens the model
KILLED = """
import os, pickle, signal, sys
from segue.serving import batch_drawing
from segue.serving.batch_ray import Worker
batch_drawing.open_served = lambda source: os.kill(os.getpid(), signal.SIGKILL)
drawing, batch = pickle.loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(pickle.dumps(Worker(drawing, os.getcwd())(batch)))
"""


@pytest.fixture
def drawing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # workers go where paths start from
    return Drawing(tmp_path / "made", Source("large.safetensors"), 1)


def batch(shard):
    return {SHARD: [pickle.dumps(shard)]}


def test_processes_that_die_while_they_open_the_model_end_the_command(drawing):
    given = pickle.dumps((drawing, batch(SHARDS[0])))

    def ends():
        return subprocess.run([sys.executable, "-c", KILLED], input=given, capture_output=True, check=False)

    with BatchFolder(drawing.out).begin():
        for _ in range(MOST_ATTEMPTS):
            assert (ended := ends()).returncode == -signal.SIGKILL, ended.stderr.decode()
        ended = ends()
    assert ended.returncode == 0, ended.stderr.decode()
    (refusal,) = pickle.loads(ended.stdout)[REFUSAL]
    assert refusal.startswith("3 processes in turn died while they opened large.safetensors")
    with BatchFolder(drawing.out).begin():
        assert list(drawing.out.joinpath("shards").iterdir()) == []  # the same command again counts anew


def test_openings_that_succeed_are_not_counted(drawing, monkeypatch):
    """Of a pool that loses processes now and then, in the middle of one batch or between batches."""
    drawn = []
    monkeypatch.setattr(Drawing, "open", lambda _: drawn.append)
    with BatchFolder(drawing.out).begin():
        for _ in range(2 * MOST_ATTEMPTS):
            assert Worker(drawing, os.getcwd())(batch(SHARDS[1]))[REFUSAL] == [""]
    assert drawn == [SHARDS[1]] * 2 * MOST_ATTEMPTS


@pytest.mark.parametrize("error", (ValueError("begun with others"), OSError("no disk"), torch.OutOfMemoryError("no\nmemory")))
def test_what_keeps_a_worker_from_drawing_is_a_sentence_for_all_that_it_is_given(drawing, monkeypatch, error):
    opened = []

    def fails(_):
        opened.append(error)
        raise error

    monkeypatch.setattr(Drawing, "open", fails)
    with BatchFolder(drawing.out).begin():
        worker = Worker(drawing, os.getcwd())
        told = [worker(batch(shard)) for shard in SHARDS]
    assert told == [{OUTCOME: [b""], REFUSAL: [" ".join(str(error).split())]}] * 2 and opened == [error]


@pytest.mark.parametrize("given", ({"cpus": -1.0}, {"gpus": -0.5}, {"cpus": float("inf")}, {"gpus": float("nan")}))
def test_a_worker_has_so_many_of_a_machine(given):
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name} of a worker must be a number from 0, got {value}"):
        Pool(**given)
    assert Pool(cpus=0.0, gpus=0.0).cpus == 0
