"""Pixels are those of the latents, sheets show them unaltered, and files appear whole or not at all."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from segue.engine.cli.sheets import (
    BACKGROUND,
    GAP,
    MARGIN,
    MARKED,
    Row,
    default_columns,
    default_zoom,
    labelled_sheet,
    picture_grid,
)
from segue.engine.files import check_writable, whole_file
from segue.engine.images import latents_to_images, read_png, save_png


def pictures(count: int, width: int = 5, height: int = 7) -> list[Image.Image]:
    """Random pictures that hold no background colour."""
    generator = np.random.default_rng(count)
    return [Image.fromarray(generator.integers(0, 200, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def enlarged(image: Image.Image, zoom: int) -> np.ndarray:
    return np.asarray(image).repeat(zoom, 0).repeat(zoom, 1)


def test_latents_become_the_nearest_pixels():
    levels = torch.linspace(-1, 1, 256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    (image,) = latents_to_images(levels)
    assert np.array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))
    outside = torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert np.asarray(latents_to_images(outside)[0])[0, :, 0].tolist() == [0, 255]
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    assert latents_to_images(red)[0].getpixel((0, 0)) == (255, 0, 0)


def test_numbers_that_are_not_finite_are_no_black_picture():
    latents = torch.zeros(4, 3, 2, 2)
    latents[1, 0, 0, 0], latents[3, 2, 1, 1] = float("nan"), float("inf")
    with pytest.raises(FloatingPointError, match="the numbers of sample 1, 3 are not all finite"):
        latents_to_images(latents)


def test_latents_of_a_vae_are_no_pixels():
    with pytest.raises(ValueError, match="4 channels are not pixels"):
        latents_to_images(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(("count", "columns", "zoom"), [(1, None, 3), (5, 2, 1), (11, None, 2), (4, 4, 4)])
def test_a_grid_holds_every_picture_in_reading_order(count, columns, zoom):
    images = pictures(count)
    sheet = np.asarray(picture_grid(images, columns=columns, zoom=zoom))
    columns = columns or default_columns(count)
    for i, image in enumerate(images):
        top, left = MARGIN + i // columns * (7 * zoom + GAP), MARGIN + i % columns * (5 * zoom + GAP)
        assert np.array_equal(sheet[top : top + 7 * zoom, left : left + 5 * zoom], enlarged(image, zoom))
    rows = -(-count // columns)
    assert sheet.shape == (rows * (7 * zoom + GAP) - GAP + 2 * MARGIN, columns * (5 * zoom + GAP) - GAP + 2 * MARGIN, 3)


def test_captions_stay_inside_the_sheet_and_off_the_pictures():
    images = pictures(6, 20, 20)
    captions = ["a caption that is far too long for a small picture"] * 6
    plain, captioned = (np.asarray(picture_grid(images, texts, columns=3, zoom=2)) for texts in ((), captions))
    assert captioned.shape[1] == plain.shape[1]
    for i, image in enumerate(images):
        left = MARGIN + i % 3 * (40 + GAP)
        column = captioned[:, left : left + 40]
        assert any(np.array_equal(column[top : top + 40], enlarged(image, 2)) for top in range(len(column) - 39))
    gaps = captioned[:, MARGIN + 40 : MARGIN + 40 + GAP]  # between the first two columns: text of neither
    assert (gaps == BACKGROUND).all()
    assert (captioned[-MARGIN:] == BACKGROUND).all()


@pytest.mark.parametrize("headers", [(), ("Acerites alba", "class 3", "a b c")])
def test_a_sheet_holds_every_picture_of_every_row(headers):
    rows = [Row("first", pictures(3), "with a detail", "1.0 s"), Row("second rule of a longer name", pictures(3)[::-1])]
    sheet = np.asarray(labelled_sheet(rows, 3, headers, "a title"))
    tops = []
    for row in rows:
        found = [
            top
            for top in range(len(sheet) - 20)
            if all(
                np.array_equal(sheet[top : top + 21, left : left + 15], enlarged(image, 3))
                for image, left in zip(row.images, range(MARGIN, 1000, 15 + GAP), strict=False)
            )
        ]
        assert len(found) == 1
        tops += found
    assert tops[0] < tops[1]
    border = np.concatenate([sheet[:MARGIN].reshape(-1, 3), sheet[:, -MARGIN:].reshape(-1, 3)])
    assert (border == BACKGROUND).all()  # long labels widen the sheet


def test_a_sheet_frames_the_marked_pictures_and_no_other():
    images = pictures(4, 30, 30)
    rows = [
        Row("first", images, marks=("", "like a fern", "", "")),
        Row("second", images),
        Row("third", images, marks=[""] * 4),
    ]
    sheet = np.asarray(labelled_sheet(rows, 1, title="one\ntwo", note="below"))
    framed = []
    for top, left in np.argwhere((sheet == enlarged(images[0], 1)[0, 0]).all(-1)).tolist():
        if np.array_equal(sheet[top : top + 30, left : left + 30], enlarged(images[0], 1)):
            columns = range(left, left + 4 * (30 + GAP), 30 + GAP)
            for x, own in zip(columns, images, strict=True):
                assert np.array_equal(sheet[top : top + 30, x : x + 30], enlarged(own, 1))
            around = [np.r_[sheet[top - 2 : top, x - 2 : x + 32].reshape(-1, 3), sheet[top : top + 30, x - 2]] for x in columns]
            framed.append([bool((edge == MARKED).all()) for edge in around])
            assert [bool((edge == MARKED).any()) for edge in around] == framed[-1]
    assert framed == [[False, True, False, False], [False] * 4, [False] * 4]
    assert (sheet[-MARGIN:] == BACKGROUND).all() and (sheet[:, -MARGIN:] == BACKGROUND).all()


def test_small_pictures_are_enlarged_and_rows_are_balanced():
    assert [default_zoom(Image.new("RGB", (width, 9))) for width in (1, 32, 64, 256, 1024)] == [96, 3, 2, 1, 1]
    assert [default_columns(count) for count in (1, 5, 8, 9, 12, 24, 25)] == [1, 5, 8, 5, 6, 8, 7]


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_png_gives_back_its_pixels_and_its_record(tmp_path):
    record = {"rule": "cfg:scale=3", "sigmas": [1.0, 1 / 3, 0.0], "name": "Ä ß"}
    save_png(pictures(1)[0], tmp_path / "a.png", "first line\nSteps: 3", record)
    image, read = read_png(tmp_path / "a.png")
    assert np.array_equal(np.asarray(image), np.asarray(pictures(1)[0]))
    assert json.loads(json.dumps(record)) == read
    assert Image.open(tmp_path / "a.png").info["parameters"] == "first line\nSteps: 3"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_fails_half_way_leaves_the_one_before(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(RuntimeError), whole_file(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_trying_a_place_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "folder", folder=True)
    check_writable(tmp_path / "new" / "a.png", folder=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for path, folder in ((tmp_path / "file" / "inner" / "a.png", False), (tmp_path / "file", True), (tmp_path, False)):
        with pytest.raises(OSError, match="cannot write to"):
            check_writable(path, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
