"""Image files of every kind as RGB: what is decided about each is stated here."""

import numpy as np
import pytest
import torch
from PIL import Image

from segue.training.data.image_files import image_size, is_image, read_image
from segue.training.data.unreadable import UnreadableSample


@pytest.fixture
def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def read(image, tmp_path, name="image.png", size=None, **options):
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name, size).permute(1, 2, 0).numpy()


def test_rgb_is_read_as_it_is(noise, tmp_path):
    assert np.array_equal(read(Image.fromarray(noise), tmp_path), noise)
    assert image_size(tmp_path / "image.png") == (9, 14)


def test_grey_is_three_equal_channels(noise, tmp_path):
    grey = noise[:, :, 0]
    assert np.array_equal(read(Image.fromarray(grey), tmp_path), np.stack([grey] * 3, 2))


@pytest.mark.parametrize("kind", ("RGBA", "LA", "P"))
def test_transparency_lies_on_white(kind, noise, tmp_path):
    if kind == "P":
        image = Image.fromarray(noise).quantize(5)
        opaque, clear = np.array(image.convert("RGB")), np.array(image) == 3
        found = read(image, tmp_path, transparency=3)
    else:
        image = Image.fromarray(noise).convert(kind.removesuffix("A"))
        opaque, clear = np.array(image.convert("RGB")), np.zeros(noise.shape[:2], bool)
        clear[2:5, 3:9] = True
        image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        found = read(image, tmp_path)
    assert clear.any() and not clear.all()
    assert (found[clear] == 255).all() and np.array_equal(found[~clear], opaque[~clear])


def test_half_transparency_is_half_white(tmp_path):
    image = Image.new("RGBA", (3, 5), (200, 100, 0, 51))
    assert np.abs(read(image, tmp_path) - np.array([244, 224, 204])).max() <= 1  # c + (255 - c) 4 / 5, rounded


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_as_their_orientation_says(orientation, noise, tmp_path):
    """Undone by NumPy: stored rows and columns as the EXIF standard numbers them."""
    stored = {
        1: noise, 2: noise[:, ::-1], 3: noise[::-1, ::-1], 4: noise[::-1],
        5: noise.swapaxes(0, 1), 6: np.rot90(noise), 7: np.rot90(noise, 2).swapaxes(0, 1), 8: np.rot90(noise, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read(Image.fromarray(np.ascontiguousarray(stored)), tmp_path, exif=exif), noise)
    assert image_size(tmp_path / "image.png") == (9, 14)


@pytest.mark.parametrize("suffix", ("png", "tif", "pgm"))
def test_sixteen_bits_are_rounded_to_eight(suffix, seed, tmp_path):
    wide = np.random.default_rng(seed).integers(0, 65536, (5, 7), dtype=np.uint16)
    wide[0, :2] = 0, 65535
    found = read(Image.fromarray(wide), tmp_path, f"image.{suffix}")
    exact = wide / 65535 * 255
    assert np.abs(found - exact[:, :, None]).max() <= 0.5 + 1e-9  # half of a step of 8 bits
    assert found[0, 0, 0] == 0 and found[0, 1, 0] == 255


def test_of_an_animation_the_first_picture_is_read(noise, tmp_path):
    frames = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    found = read(frames[0], tmp_path, "image.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(found, noise)


@pytest.mark.parametrize(("width", "height"), ((40, 23), (23, 40), (11, 11), (97, 31), (5, 8)))
def test_the_central_square_is_that_of_adm(width, height, seed, tmp_path):
    """Beside it, written again: a ramp keeps its middle, and a size that is there already changes nothing."""
    ramp = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    image = Image.fromarray(np.stack([ramp] * 3, 2).round().astype(np.uint8))
    found = read(image, tmp_path, size=11)
    assert found.shape == (11, 11, 3)
    step = 255 / max(width - 1, 1) * min(width, height) / 11  # of the ramp, a pixel of the square
    assert abs(found[:, 2:-2].mean() - 127.5) <= step  # cut off at most one pixel off the middle
    noise = np.random.default_rng(seed).integers(0, 256, (11, 11, 3), dtype=np.uint8)
    assert np.array_equal(read(Image.fromarray(noise), tmp_path, size=11), noise)


def test_large_images_are_halved_by_boxes_first(seed, tmp_path):
    noise = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    boxes = noise.reshape(6, 4, 6, 4, 3).astype(float).mean((1, 3))
    found = read(Image.fromarray(noise), tmp_path, size=6)
    assert np.abs(found - boxes).max() <= 2  # rounded to whole numbers along rows and columns, twice


@pytest.mark.parametrize("size", (None, 4))
def test_what_is_no_whole_image_is_named(size, noise, tmp_path):
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(noise[:, :, 0].astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.jpg", "text.png", "empty.png", "float.tif", "gone.png"):
        with pytest.raises(UnreadableSample) as caught:
            read_image(tmp_path / name, size)
        assert str(caught.value).count(str(tmp_path / name)) == 1 and "\n" not in str(caught.value)


def test_images_are_told_by_their_names():
    assert [name for name in ("a.JPG", "b/c.webp", "d.txt", "e.npy", "png") if is_image(name)] == ["a.JPG", "b/c.webp"]


def test_pixels_are_unsigned_bytes(noise, tmp_path):
    Image.fromarray(noise).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").dtype == torch.uint8
