"""``--data``: what a path holds is told by its content, and what fits nothing or several is refused."""

import json

import numpy as np
import pytest
from image_sets import write_images, write_latents

from segue.training.data.herbarium import Herbarium
from segue.training.data.image_source import ImageSource
from segue.training.data.latent_source import LatentSource
from segue.training.data.open_source import describe, open_images, open_source

FLAT = ("cat/1.png", "cat/2.png", "dog/1.png")
TREE = ("x/cat/1.png", "x/dog/1.png", "y/ant/1.png")


def test_each_kind_is_told_by_what_is_there(tmp_path):
    write_images(tmp_path / "folder", TREE)
    write_images(tmp_path / "table", ("1.png", "2.png"))
    (tmp_path / "table" / "labels.csv").write_text("file,class\n1.png,cat\n2.png,dog\n")
    write_latents(tmp_path / "latents" / "vae-sd", {"a.npy": 0, "b.npy": 1})
    write_images(tmp_path / "latents" / "images", ("a.png", "b.png"))
    write_images(tmp_path / "edm", ("00000/1.png", "00000/2.png"))
    (tmp_path / "edm" / "dataset.json").write_text(json.dumps({"labels": [["00000/1.png", 2], ["00000/2.png", 0]]}))
    found = {name: open_source(tmp_path / name) for name in ("folder", "latents", "edm", "table/labels.csv")}
    assert {name: type(source) for name, source in found.items()} == {
        "folder": ImageSource,
        "latents": LatentSource,
        "edm": ImageSource,
        "table/labels.csv": ImageSource,
    }
    assert describe(found["folder"])[0] == "folder: 3 images of 3 classes in 2 superclasses, 3 x 7 x 11"
    assert describe(found["latents"])[0] == "latents: 2 latents of 2 classes, 4 x 5 x 3"
    assert describe(found["edm"])[0] == "edm: 2 images of 3 classes, 3 x 7 x 11" and found["edm"].labels.tolist() == [2, 0]
    assert describe(found["table/labels.csv"])[0] == "labels: 2 images of 2 classes, 3 x 7 x 11"


def test_the_herbarium_is_a_name_and_takes_no_options(tmp_path, monkeypatch):
    assert isinstance(open_source("herbarium"), Herbarium)
    assert describe(open_source("herbarium")) == ["herbarium: endless samples of 48 classes in 6 superclasses, 3 x 32 x 32"]
    with pytest.raises(ValueError, match="drawn as it is; size=64 does not apply"):
        open_source("herbarium", size=64)
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "herbarium", FLAT)
    with pytest.raises(ValueError, match=r"write ./herbarium"):
        open_source("herbarium")
    assert open_source("./herbarium").num_classes == 2


def test_options_reach_the_source(tmp_path):
    write_images(tmp_path, TREE)
    source = open_source(tmp_path, size=5, flip=True, tier="0")
    assert (source.shape, source.parents, source.flip) == ((3, 5, 5), (), True)


def test_options_that_do_not_apply_are_refused(tmp_path):
    write_latents(tmp_path, {"a.npy": 0})
    with pytest.raises(ValueError, match=r"holds latents.*flip=True does not apply"):
        open_source(tmp_path, flip=True)
    with pytest.raises(ValueError, match="tier must be at least 0, got -1"):
        open_source(tmp_path, tier=-1)
    with pytest.raises(TypeError, match="tier"):
        open_source(tmp_path, tier=True)
    with pytest.raises(TypeError, match="unexpected keyword"):
        open_source(tmp_path, crop=3)


def images_and_latents(folder):
    write_images(folder, FLAT)
    write_latents(folder / "more", {"a.npy": 0})


def images_and_table(folder):
    write_images(folder, ("images/1.png",))
    (folder / "labels.csv").write_text("image,class\nimages/1.png,cat\n")


def images_of_edm(folder):
    write_images(folder / "images", ("00000/1.png", "00001/2.png"))
    (folder / "images" / "dataset.json").write_text("{}")


def latents_without_labels(folder):
    (folder / "vae-sd").mkdir()
    np.save(folder / "vae-sd" / "a.npy", np.zeros((8, 2, 2), np.float32))


def table_alone(folder):
    (folder / "labels.csv").write_text("image,class\n../1.png,cat\n")


@pytest.mark.parametrize(
    ("make", "words"),
    (
        (lambda folder: None, "holds no data.*it has nothing"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "holds no data.*'notes.txt'"),
        (images_and_latents, r"holds latents \(more/a.npy\) and images \(cat/1.png\); give one"),
        (images_and_table, r"holds images \(images/1.png\) and a table of images \(labels.csv\)"),
        (images_of_edm, "give its folder, .*images"),
        (latents_without_labels, "has no dataset.json"),
        (table_alone, "give the table itself"),
    ),
)
def test_folders_that_fit_nothing_or_several_are_refused(make, words, tmp_path):
    make(tmp_path)
    with pytest.raises((ValueError, OSError), match=words):
        open_source(tmp_path)


def test_other_files_and_nothing_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere' is no file or folder; data is herbarium"):
        open_source("nowhere")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="no CSV or TSV"):
        open_source(tmp_path / "set.zip")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"no columns of images.*it has a, b"):
        open_source(tmp_path / "bad.csv")


def test_images_alone_are_encoded(tmp_path):
    write_latents(tmp_path, {"a.npy": 0})
    with pytest.raises(ValueError, match="holds latents, not image files"):
        open_images(tmp_path)
