"""A run's folder: files appear whole or not at all, and nobody writes into a folder that is not theirs."""

import json
from dataclasses import replace

import pytest
import torch
from training_fixtures import TINY_SPEC, tiny_settings

from segue.training.loop import Trainer
from segue.training.run_folder import FILES, RunFolder


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def finished(tmp_path):
    """The folder of a run of two steps."""
    Trainer(TINY_SPEC, tiny_settings(steps=2), tmp_path / "run").run()
    return tmp_path / "run"


def test_a_run_leaves_exactly_its_four_files(finished):
    assert sorted(contents(finished)) == sorted(FILES)
    record = json.loads((finished / "run.json").read_text())
    assert record["step"] == 2 and record["settings"]["learning_rate"] == tiny_settings().learning_rate


def test_the_state_holds_tensors_and_plain_values_only(finished):
    state = torch.load(finished / "state.pt", weights_only=True)
    assert state.keys() == {"networks", "step", "seconds"}


@pytest.mark.parametrize("writer", ("torch.save", "segue.models.weights.save_file"))
def test_a_save_that_fails_leaves_the_old_files(finished, monkeypatch, writer):
    trainer = Trainer(TINY_SPEC, tiny_settings(steps=9), finished, "resume")
    before = contents(finished)

    def half_written(_content, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(writer, half_written)
    with pytest.raises(OSError, match="disk full"):
        trainer.run(lambda trainer, losses: False)
    after = contents(finished)
    assert after.keys() == before.keys(), "nothing half-written is left"
    assert after["state.pt"] == before["state.pt"]
    if writer != "torch.save":
        assert after["model.safetensors"] == before["model.safetensors"]


def test_a_new_run_refuses_a_folder_that_holds_one(finished):
    before = contents(finished)
    with pytest.raises(ValueError, match=r"already holds model\.safetensors"):
        RunFolder(finished).check(TINY_SPEC, tiny_settings(), {}, "new")
    assert contents(finished) == before


@pytest.mark.parametrize("start", ("new", "fresh"))
def test_files_of_unknown_origin_are_never_overwritten(tmp_path, start):
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"already holds model\.safetensors"):
        RunFolder(tmp_path).check(TINY_SPEC, tiny_settings(), {}, start)
    assert contents(tmp_path) == {"model.safetensors": b"mine"}


def test_a_fresh_run_replaces_a_run_of_the_same_network_only(finished):
    with pytest.raises(ValueError, match="holds a run of tiny-herbarium, not of other"):
        RunFolder(finished).check(replace(TINY_SPEC, name="other"), tiny_settings(), {}, "fresh")
    trainer = Trainer(TINY_SPEC, tiny_settings(steps=3, seed=5), finished, "fresh")
    assert trainer.step == 0 and not (finished / "log.jsonl").exists()
    trainer.run()
    assert json.loads((finished / "run.json").read_text())["settings"]["seed"] == 5


@pytest.mark.parametrize(
    ("spec", "changes", "word"),
    (
        ({}, {"seed": 1}, "seed: 0, not 1"),
        ({}, {"batch_size": 4}, "batch_size: 3, not 4"),
        ({}, {"dropout": tiny_settings().dropout.__class__(0.3)}, "dropout"),
        ({"dim": 64}, {}, "dim: 32, not 64"),
    ),
)
def test_a_run_is_resumed_only_as_itself(finished, spec, changes, word):
    with pytest.raises(ValueError, match=word):
        Trainer(replace(TINY_SPEC, **spec), tiny_settings(**changes), finished, "resume")


def test_length_machine_and_names_may_change(finished):
    names = tuple(map(str, range(TINY_SPEC.num_classes)))
    settings = tiny_settings(steps=3, minutes=1.0, workers=1, checkpoint_every=1)
    assert Trainer(replace(TINY_SPEC, class_names=names), settings, finished, "resume").step == 2


@pytest.mark.parametrize("start", ("new", "fresh", "resume"))
def test_nothing_is_made_where_nothing_can_be(tmp_path, start):
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, OSError), match="file/run"):
        RunFolder(tmp_path / "file" / "run").check(TINY_SPEC, tiny_settings(), {}, start)
    if start == "resume":
        with pytest.raises(ValueError, match="no run in"):
            RunFolder(tmp_path / "absent").check(TINY_SPEC, tiny_settings(), {}, start)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "damage",
    (lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"not a zip file"),
    ids=("truncated", "empty", "text"),
)
def test_a_damaged_state_is_refused_by_name(finished, damage):
    path = finished / "state.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"state\.pt is truncated or not a training state"):
        Trainer(TINY_SPEC, tiny_settings(), finished, "resume")


def test_a_state_that_is_something_else_is_refused(finished):
    torch.save({"model": {}}, finished / "state.pt")
    with pytest.raises(ValueError, match="must hold networks, seconds, step"):
        Trainer(TINY_SPEC, tiny_settings(), finished, "resume")


@pytest.mark.parametrize("text", ("{", "[]", '{"spec": 3, "settings": {}}', '{"settings": {}}'))
def test_a_record_that_describes_no_run_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json does not describe a run"):
        RunFolder(tmp_path).check(TINY_SPEC, tiny_settings(), {}, "resume")
