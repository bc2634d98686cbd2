"""Samples into one file: those that the engine draws, none lost and none twice, whatever ends the process, in any shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import save_tiny
from tiny_dit import dit_vae, tiny_dit_pipeline
from typer.testing import CliRunner

from segue import Engine, parse_rule
from segue.__main__ import app
from segue.engine.images import latents_to_images

RUN = ("-g", "cfg:scale=2", "--steps", "2", "--seeds", "40", "--max-batch", "4", "--count", "11")
# kills itself as an operating system would, at the third time that it asks for data to be on the disk: a batch's pictures are
# there, their labels are not
KILLED = """
import os, signal
from segue.__main__ import main
sync, calls = os.fsync, []
def fsync(file):
    sync(file)
    calls.append(file)
    if len(calls) == 5:  # after the file that it was begun with and its folder: pixels, labels, pixels
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def segue(model, tmp_path, monkeypatch):
    """Runs ``segue sample`` in an empty folder; ``--model`` is the tiny one unless the arguments name another."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        given = [] if "--model" in arguments or "--from" in arguments else ["--model", str(model)]
        result = CliRunner().invoke(app, ["sample", *map(str, arguments), *given])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


@pytest.fixture
def drawn(monkeypatch):
    """The seeds of every batch that is drawn."""
    batches, sample = [], Engine.sample

    def noted(engine, labels, *arguments, seeds, **options):
        batches.append(list(seeds))
        return sample(engine, labels, *arguments, seeds=seeds, **options)

    monkeypatch.setattr(Engine, "sample", noted)
    return batches


def test_the_file_holds_what_the_engine_draws_of_the_classes_in_turn(segue, model, tmp_path):
    summary = json.loads(segue(*RUN, "--classes", "0,3,4", "--out", "made.npz", "--json").stdout)
    engine, labels = Engine.from_pretrained(model, device="cpu"), [(0, 3, 4)[i % 3] for i in range(11)]
    rule = parse_rule("cfg:scale=2", engine.spec).guidance
    latents = engine.sample(labels, rule, steps=2, seeds=40, schedule="native", max_batch=4).latents
    with np.load(tmp_path / "made.npz") as found:
        assert (
            np.array_equal(found["arr_0"], np.stack([np.asarray(one) for one in latents_to_images(latents)]))
            and found["arr_1"].tolist() == labels
        )
    assert (summary["whole"], summary["drawn"], summary["rule"], summary["first_seed"]) == (True, 11, "cfg:scale=2", 40)
    assert summary["weights"] and "11 samples in made.npz" in segue(*RUN, "--classes", "0,3,4", "--out", "made.npz").stdout


def test_a_killed_run_goes_on_without_losing_or_repeating_a_sample(segue, model, tmp_path, drawn):
    command = [sys.executable, "-c", KILLED, "sample", *RUN, "--out", "made.npz", "--model", str(model)]
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert ended.returncode == -9, ended.stderr.decode()
    sizes = [(tmp_path / f"made.npz.{part}").stat().st_size for part in ("pixels", "labels")]
    assert sizes == [8 * 3 * 8 * 12, 4 * 8] and not (tmp_path / "made.npz").exists()
    assert "7 samples drawn" in segue(*RUN, "--out", "made.npz").stdout
    assert drawn == [[44, 45, 46, 47], [48, 49, 50]]
    segue(*RUN, "--out", "whole.npz")
    assert (tmp_path / "made.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("made*")) == ["made.npz", "made.npz.json"]


def test_an_interruption_exits_with_130_and_the_same_command_goes_on(segue, tmp_path, drawn, monkeypatch):
    noted = Engine.sample

    def stops(engine, *arguments, **options):
        if drawn:
            raise KeyboardInterrupt
        return noted(engine, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "sample", stops)
        segue(*RUN, "--out", "made.npz", code=130)
    segue(*RUN, "--out", "made.npz")
    assert sorted(seed for batch in drawn for seed in batch) == list(range(40, 51))


@pytest.mark.parametrize("order", [(0, 1), (2, 0, 1)])
def test_shards_make_the_file_that_one_process_makes(segue, tmp_path, drawn, order):
    world = len(order)
    for rank in order:
        said = segue(*RUN, "--out", "made.npz", "--rank", rank, "--world", world).stdout
        assert (tmp_path / "made.npz").exists() == (rank == order[-1])
        assert f"shard {rank} of {world} is written" in said or rank == order[-1]
    assert sorted(seed for batch in drawn for seed in batch) == list(range(40, 51)) and max(map(len, drawn)) == 4
    segue(*RUN, "--out", "whole.npz")
    assert (tmp_path / "made.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_force_begins_anew(segue, tmp_path):
    segue(*RUN, "--out", "made.npz")
    other = [argument if argument != "40" else "90" for argument in RUN]
    assert "begun with first_seed 40, and cannot go on with 90" in segue(*other, "--out", "made.npz", code=2).stderr
    segue(*other, "--out", "made.npz", "--force")
    segue(*other, "--out", "whole.npz")
    assert (tmp_path / "made.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_vae_makes_the_pictures(segue, tmp_path):
    tiny_dit_pipeline(seed=3).save_pretrained(tmp_path / "pipeline")
    dit_vae(8).save_pretrained(tmp_path / "vae")
    common = (
        "--model",
        "pipeline",
        "--vae",
        "vae",
        "-g",
        "cfg:scale=3",
        "--classes",
        "2,5",
        "--steps",
        "2",
        "--max-batch",
        "2",
    )
    segue(*common, "--count", "2", "--out", "made.npz")
    segue(*common, "--out", "pictures", "--no-grid")
    expected = np.stack([np.asarray(Image.open(path)) for path in sorted(Path("pictures").glob("0*.png"))])
    with np.load("made.npz") as found:
        assert np.array_equal(found["arr_0"], expected) and found["arr_1"].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "made.npz"), "how many samples go into made.npz? give --count"),
        (("--out", "made.npz", "--count", "0"), "a file holds at least one sample, got 0"),
        (("--out", "made.npz", "--count", "5", "--rank", "2", "--world", "2"), "got rank 2 of world 2"),
        (("--out", "made.npz", "--count", "5", "--rank", "1"), "got rank 1 of world 1"),
        (("--out", "made.npz", "--count", "5", "--seeds", "1,2"), "count up from one number, got '1,2'"),
        (("--out", "made.npz", "--count", "5", "--seeds", str(2**64 - 3)), "a seed must lie in [0, 2^64)"),
        (("--out", "made.npz", "--count", "5", "--max-batch", "0"), "max-batch must be at least 1, got 0"),
        (("--out", "made.npz", "--count", "5", "--columns", "3"), "--columns 3 is for pictures in a folder"),
        (("--out", "made.npz", "--count", "5", "--output", "latent"), "--output latent is for pictures in a folder"),
        (
            ("--out", "made.npz", "--count", "5", "--force", "--world", "2"),
            "would remove what the other 1 shards write",
        ),
        (("--out", "made.npz", "--count", "5", "--prompt", "a leaf"), "takes no prompt"),
        (("--out", "made.npz", "--count", "5", "--classes", "9"), "class 9 is out of range"),
        (("--out", "made.npz", "--count", "5", "-g", "magic"), "unknown guidance rule 'magic'"),
        (("--rank", "0"), "--rank 0 is for samples that go into one file: give --out FILE.npz"),
        (("--out", "made.png", "--world", "2"), "--world 2 is for samples that go into one file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_before_any_work(segue, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr(Engine, "sample", None)
    result = segue(*arguments, code=2)
    assert said in result.stderr and result.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_samples_that_are_not_finite_are_refused(segue, tmp_path, monkeypatch):
    sample = Engine.sample

    def broken(engine, *arguments, **options):
        run = sample(engine, *arguments, **options)
        run.latents[0, 0, 0, 0] = torch.nan
        return run

    monkeypatch.setattr(Engine, "sample", broken)
    assert "the numbers of sample 0 are not all finite" in segue(*RUN, "--out", "made.npz", code=1).stderr
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("made")], "nothing of it is in the way of the next"
    monkeypatch.setattr(Engine, "sample", sample)
    segue("-g", "none", *RUN[2:], "--out", "made.npz")
