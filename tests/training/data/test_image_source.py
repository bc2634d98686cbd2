"""Images as samples: range, mirrors, sizes, and files that change while a run goes on."""

import pytest
import torch
from image_sets import write_images

from segue.training.data.image_folder import read_image_folder
from segue.training.data.image_source import ImageSource
from segue.training.data.source import batch_loader
from segue.training.data.unreadable import UnreadableSample

NAMES = tuple(f"{name}/{number}.png" for name in "abc" for number in range(3))


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path, NAMES)


def source(folder, **options) -> ImageSource:
    return ImageSource("noise", read_image_folder(folder), **options)


def pixels_of(images, name) -> torch.Tensor:
    return torch.from_numpy(images[name]).permute(2, 0, 1).double() / 127.5 - 1


def test_samples_are_the_pixels_from_minus_one_to_one(images, tmp_path, seed):
    ours = source(tmp_path)
    assert ours.shape == (3, 7, 11)
    x0, labels = ours.batch(0, len(NAMES), seed)
    seen = set()
    for sample, label in zip(x0, labels, strict=True):
        (name,) = [name for name in NAMES if torch.allclose(sample.double(), pixels_of(images, name), atol=1e-6)]  # fp32
        assert ours.class_names[label] == name[0]
        seen.add(name)
    assert seen == set(NAMES) and x0.dtype == torch.float32


def test_every_second_image_is_mirrored_by_chance(images, tmp_path, seed):
    plain, mirrored = source(tmp_path), source(tmp_path, flip=True)
    count = 40 * len(NAMES)
    ours, theirs = mirrored.batch(0, count, seed)[0], plain.batch(0, count, seed)[0]
    turned = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(ours, theirs, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)])
    assert (turned ^ kept).all()
    assert abs(turned.double().mean() - 0.5) < 5 * 0.5 / count**0.5  # five standard deviations of a fair coin


def test_a_size_cuts_all_images_and_without_one_all_must_be_alike(images, tmp_path):
    write_images(tmp_path, ("b/wide.png", "c/wide.png"), size=(30, 7))
    assert source(tmp_path, size=5).shape == (3, 5, 5)
    with pytest.raises(ValueError, match=r"2 of 11 images .* 7 x 11 .*'a/0.png' \('b/wide.png', 'c/wide.png'\); give a size"):
        source(tmp_path)


@pytest.mark.parametrize("workers", (0, 1))
def test_a_file_that_spoils_later_is_named_in_one_sentence(workers, images, tmp_path):
    ours = source(tmp_path)
    (tmp_path / "b" / "1.png").write_bytes(b"gone bad")
    with pytest.raises(UnreadableSample) as caught:
        next(iter(batch_loader(ours, len(NAMES), workers=workers)))
    assert str(caught.value).startswith(f"{tmp_path / 'b' / '1.png'} cannot be read as an image") and "\n" not in str(
        caught.value
    )


def test_a_file_of_another_size_later_is_named(images, tmp_path):
    ours = source(tmp_path)
    write_images(tmp_path, ("b/1.png",), size=(4, 4))
    with pytest.raises(UnreadableSample, match=r"b/1.png has \[4, 4\] pixels now, not \[7, 11\]"):
        ours.batch(0, len(NAMES), 0)


def test_files_are_read_when_their_turn_comes(images, tmp_path, monkeypatch):
    ours, read = source(tmp_path, size=5), []
    monkeypatch.setattr(
        "segue.training.data.image_source.read_image", lambda path, size: read.append(path) or torch.zeros(3, 5, 5)
    )
    ours.batch(0, 4, 0)
    assert len(read) == len(set(read)) == 4


def test_a_fingerprint_tells_how_images_are_seen(images, tmp_path):
    kinds = [source(tmp_path, **options).fingerprint() for options in ({}, {"size": 5}, {"size": 7}, {"flip": True})]
    assert all(first != second for number, first in enumerate(kinds) for second in kinds[:number])
    assert str(tmp_path) not in str(kinds)


@pytest.mark.parametrize(
    ("options", "error"), (({"size": 0}, ValueError), ({"size": 2.5}, TypeError), ({"flip": 1}, TypeError))
)
def test_bad_options_are_refused(options, error, images, tmp_path):
    (name,) = options
    with pytest.raises(error, match=name):
        source(tmp_path, **options)
