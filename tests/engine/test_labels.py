"""Classes by name, in Python as on the command line: species, genera, and the synonyms of a saved or live pipeline."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_dit import tiny_dit_pipeline
from tiny_models import tiny_sit
from typer.testing import CliRunner

from segue import Engine
from segue.__main__ import app
from segue.engine.labels import check_labels, parse_labels, saved_class_names
from segue.models.spec import SiTSpec

NAMES = ("Rosa alba", "Rosa nigra", "Acer alba", "Acer nigra", "Tilia alba", "Tilia nigra")
SPEC = tiny_sit(class_names=NAMES).spec
WORDS = {
    0: "tench, Tinca tinca",
    1: "crane",
    2: "Cardigan, Cardigan Welsh corgi",
    3: "cardigan",
    4: "crane",
    5: "great grey owl, great gray owl, Strix nebulosa",
    6: "great white shark",
}
IMAGENET = tuple(WORDS.values())


@given(st.lists(st.sampled_from([*NAMES, "Rosa", "acer", "TILIA", *range(6), "2"]), min_size=1))
def test_names_and_numbers_in_a_list_are_what_each_is_in_text(chosen):
    """The text of the command line, piece by piece, is the oracle; digits in a string are no name."""
    if "2" in chosen:
        with pytest.raises(ValueError, match="has no class '2'"):
            check_labels(chosen, SPEC)
        return
    text = ",".join(map(str, chosen))
    assert check_labels(chosen, SPEC) == check_labels(text, SPEC) == parse_labels(text, 6, NAMES, "tiny")


def test_runs_by_name_are_runs_by_number():
    engine = Engine(tiny_sit(class_names=NAMES), device="cpu")
    named, numbered = (engine.sample(labels, steps=1, seeds=3) for labels in (["Acer alba", "Tilia"], [2, 4, 5]))
    assert named.labels == numbered.labels == (2, 4, 5) == engine.sample("acer alba, Tilia", steps=1).labels
    assert torch.equal(named.latents, numbered.latents)
    x, sigma = torch.ones(3, 4, 6, 10), torch.full((3,), 0.5)
    assert torch.equal(*(engine.denoiser(None, labels)(x, sigma) for labels in (["Acer alba", "Tilia"], [2, 4, 5])))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tench, Tinca tinca", [0]),
        ("Tinca tinca", [0]),
        ("TENCH", [0]),
        ("Cardigan", [2]),
        ("cardigan", [3]),
        ("great gray owl", [5]),
    ],
)
def test_synonyms_are_names(name, label):
    assert check_labels([name], SiTSpec(**vars(SPEC) | {"num_classes": 7, "parents": (), "class_names": IMAGENET})) == label
    assert parse_labels(name, 7, IMAGENET, "DiT") == label


@pytest.mark.parametrize(
    ("name", "message"),
    [("crane", "several classes 'crane': choose 1 or 4"), ("CARDIGAN", "choose 2 or 3"), ("great", "no class 'great'")],
)
def test_a_name_of_several_classes_is_refused_and_a_first_word_is_no_genus_there(name, message):
    with pytest.raises(ValueError, match=message):
        parse_labels(name, 7, IMAGENET, "DiT")


def test_a_pipeline_of_diffusers_brings_its_names(tmp_path):
    """As DiTPipeline resolves them: its own ``get_label_ids`` is the oracle."""
    from diffusers import DiTPipeline

    whole = tiny_dit_pipeline(classes=7)
    pipe = DiTPipeline(whole.transformer, whole.vae, whole.scheduler, id2label=WORDS)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(
        json.dumps(index | {"id2label": {str(key): name for key, name in WORDS.items()}})
    )
    loaded = DiTPipeline.from_pretrained(tmp_path)
    saved, live = Engine.from_pretrained(tmp_path, device="cpu"), Engine.from_pipe(pipe)
    assert saved.spec.class_names == IMAGENET
    for name in ("Tinca tinca", "Strix nebulosa", "Cardigan", "cardigan", "great white shark"):
        for engine in (saved, live):
            assert check_labels([name], engine.spec) == loaded.get_label_ids([name])
    command = ["sample", "--model", str(tmp_path), "--classes", "Tinca tinca", "-g", "none", "--steps", "1"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000-tench-tinca-tinca-seed0.png"]
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"id2label": {"0": "tench"}}))
    with pytest.raises(ValueError, match=r"id2label of .*model_index.json must name classes 0 to 6, got 1 names"):
        saved_class_names(tmp_path, 7)
    assert Engine.from_pipe(whole).spec.class_names == ()
    assert live.spec.class_names[1] == "class 1"  # the pipeline has one crane
