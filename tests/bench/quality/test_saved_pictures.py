"""Pictures that exist: read as they were written, with the labels of their file or records, and scored like drawn ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from segue.bench.quality.real_samples import RealSamples, leaves, real_samples
from segue.bench.quality.saved_pictures import SavedPictures
from segue.bench.quality.saved_scores import score_saved
from segue.bench.rows import read_rows
from segue.bench.scores.extractors import colour_statistics
from segue.bench.scores.judge import Judge
from segue.engine.cli.npz_file import NpzFile, Shard
from segue.engine.images import latents_to_images, save_png
from segue.training.data.herbarium import Herbarium
from segue.training.data.species import SPECIES


def logits(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.mean(dim=(2, 3)) @ torch.eye(3)


JUDGE = Judge("colours", colour_statistics, logits)


def drawn(seed: int, count: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 6, 10, generator=generator) * 2 - 1, torch.randint(0, 3, (count,), generator=generator)


def to_pixels(pictures: torch.Tensor) -> np.ndarray:
    return np.stack([np.asarray(image) for image in latents_to_images(pictures)])


def as_read(pictures: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(to_pixels(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


def write_npz(path, pictures, labels):
    file = NpzFile(path, Shard(len(pictures)), *pictures.shape[2:], {})
    file.append(to_pixels(pictures), labels)
    file.finish()


def write_folder(folder, pictures, labels, record=True):
    folder.mkdir()
    for index, (image, label) in enumerate(zip(latents_to_images(pictures), labels.tolist(), strict=True)):
        path = folder / f"{index:03d}.png"
        if record:
            save_png(image, path, "", {"labels": [9, label, 9], "index": 1})
        else:
            image.save(path)


@pytest.mark.parametrize("kind", ["npz", "npz of numpy", "folder"])
def test_what_was_written_is_read_with_its_labels(tmp_path, monkeypatch, seed, kind):
    monkeypatch.setattr("segue.bench.quality.saved_pictures.AT_ONCE", 7)
    (pictures, labels), path = drawn(seed), tmp_path / "made.npz"
    if kind == "folder":
        path = tmp_path / "made"
        write_folder(path, pictures, labels)
        save_png(latents_to_images(pictures)[0], path / "grid.png", "", {"labels": labels.tolist(), "index": None})
    elif kind == "npz":
        write_npz(path, pictures, labels)
    else:
        np.savez_compressed(path, to_pixels(pictures), labels.numpy())
    saved = SavedPictures.open(path)
    assert (saved.count, saved.size, saved.labels) == (23, (3, 6, 10), tuple(labels.tolist()))
    for _ in range(2):  # as often as wanted
        assert [len(batch) for batch in saved] == [7, 7, 7, 2]
        assert torch.equal(torch.cat(list(saved)), as_read(pictures))
    few = saved.first(9)
    assert torch.equal(torch.cat(list(few)), as_read(pictures[:9])) and few.labels == tuple(labels.tolist()[:9])


def test_the_name_follows_the_content(tmp_path, seed):
    names = []
    for folder, shift in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / folder / "made.npz"
        write_npz(path, *drawn(seed + shift))
        names.append(SavedPictures.open(path).name)
    assert names[0] == names[1] != names[2] and all(name.startswith("made.npz ") for name in names)


@pytest.mark.parametrize("labelled", [True, False])
def test_scores_are_those_of_the_pictures_and_are_not_found_twice(tmp_path, environment, seed, labelled, monkeypatch):
    (pictures, labels), (real, _) = drawn(seed), drawn(seed + 1, 40)
    write_folder(tmp_path / "made", pictures, labels, record=labelled)
    saved, out, said = SavedPictures.open(tmp_path / "made"), tmp_path / "rows.jsonl", []
    beside = RealSamples("40 made up", 40, (3, 6, 10), lambda: real.split(11), (0, 0, 1))
    rows = score_saved(saved, [JUDGE], beside, environment, out, said.append)
    known = labels if labelled else None
    expected = JUDGE.scores(as_read(pictures), known, beside.features(JUDGE), (0, 0, 1) if labelled else ())
    assert {row.metric.removesuffix(" by colours"): row.value for row in rows} == pytest.approx(
        {name: interval.value for name, interval in expected.items()}, abs=1e-6
    )
    assert ("accuracy by colours" in {row.metric for row in rows}) == labelled and len(said) == 1
    monkeypatch.setattr(Judge, "view", None)  # who would look again would fail
    assert score_saved(saved, [JUDGE], beside, environment, out, said.append) == rows == read_rows(out)


def test_leaves_are_of_a_stream_of_their_own_and_as_many_as_asked_for():
    found = leaves(503)
    batches = list(found.batches())
    assert [len(batch) for batch in batches] == [500, 3] and f"503 leaves of {len(SPECIES)} species" == found.name
    assert torch.equal(batches[0], Herbarium().batch(0, 500, 40_009)[0])
    assert not torch.equal(batches[0], Herbarium().batch(0, 500, 0)[0])
    with pytest.raises(ValueError, match="must be a positive whole number, got 0"):
        leaves(0)


def test_real_samples_of_a_file_are_its_first(tmp_path, seed):
    pictures, labels = drawn(seed)
    write_npz(tmp_path / "real.npz", pictures, labels)
    found = real_samples(str(tmp_path / "real.npz"), 9, None)
    assert found.count == 9 and found.name.startswith("9 of real.npz ")
    assert torch.equal(torch.cat(list(found.batches())), as_read(pictures[:9]))
    with pytest.raises(ValueError, match="holds 23 pictures, and 24 are asked for"):
        real_samples(str(tmp_path / "real.npz"), 24, None)


def npz(path, **arrays):
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, r"there are no pictures .*made\.npz"),
        (lambda path: path.write_bytes(b"no archive"), r"made\.npz is no \.npz archive, or a damaged one"),
        (lambda path: npz(path, mu=np.zeros(3)), r"holds no pictures arr_0; it holds: mu\.npy"),
        (lambda path: npz(path, arr_0=np.zeros((2, 4, 4, 3))), r"must be uint8 pictures \[N, H, W, 3\], got float64"),
        (lambda path: npz(path, arr_0=np.zeros((2, 3, 4, 4), np.uint8)), r"of shape \[2, 3, 4, 4\]"),
        (
            lambda path: npz(path, arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.zeros(3, np.int64)),
            "holds 2 pictures and 3 labels",
        ),
        (lambda path: path.mkdir(), "holds no PNG files of single pictures"),
    ],
)
def test_what_holds_no_pictures_is_refused(tmp_path, make, said):
    make(tmp_path / "made.npz")
    with pytest.raises((ValueError, OSError), match=said):
        SavedPictures.open(tmp_path / "made.npz")


def test_pictures_of_two_sizes_and_other_files_are_refused(tmp_path):
    (tmp_path / "two").mkdir()
    for name, size in (("a.png", (5, 5)), ("b.png", (5, 6))):
        Image.new("RGB", size).save(tmp_path / "two" / name)
    with pytest.raises(ValueError, match=r"of one size, got 5x5 and 5x6 in .*b\.png"):
        SavedPictures.open(tmp_path / "two")
    (tmp_path / "a.txt").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"an \.npz file or a folder of PNG files, got .*a\.txt"):
        SavedPictures.open(tmp_path / "a.txt")


def test_too_few_pictures_and_missing_classes_are_refused(tmp_path, environment, seed):
    beside = RealSamples("40 made up", 40, (3, 6, 10), lambda: drawn(1, 40)[0].split(40))
    for count, label, said in ((9, 0, "at least 10 pictures, got 9"), (12, 5, "3 classes apart, and a picture is of class 5")):
        pictures, _ = drawn(seed, count)
        write_npz(tmp_path / f"{count}.npz", pictures, torch.full((count,), label))
        with pytest.raises(ValueError, match=said):
            score_saved(SavedPictures.open(tmp_path / f"{count}.npz"), [JUDGE], beside, environment, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
