"""Pictures side by side: a captioned grid, and a sheet with one labelled row per rule."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, FAINT = (244, 243, 240), (38, 38, 40), (112, 110, 106)
MARGIN, GAP, ROW_GAP = 18, 6, 16
ROW_TEXT, HEADER_TEXT, SMALLEST_TEXT = 16, 12, 8
COMFORTABLE = 96  # pixels: small pictures are enlarged to about this
WIDEST = 8  # pictures per row of a grid


class Row(NamedTuple):
    """One row of a sheet: its name, its pictures, a remark after the name and one at the right edge."""

    label: str
    images: Sequence[Image.Image]
    detail: str = ""
    measure: str = ""


def default_zoom(image: Image.Image) -> int:
    """The whole factor that brings a small picture to a comfortable size; 1 for large ones."""
    return max(1, round(COMFORTABLE / image.width))


def default_columns(count: int) -> int:
    """Columns of a grid whose rows are about equally full."""
    rows = -(-count // WIDEST)
    return -(-count // rows)


def picture_grid(
    images: Sequence[Image.Image], captions: Sequence[str] = (), columns: int | None = None, zoom: int | None = None
) -> Image.Image:
    """Pictures of one size row by row, each enlarged ``zoom`` times without smoothing, a line of text under each."""
    zoom = zoom or default_zoom(images[0])
    columns = columns or default_columns(len(images))
    cell = _cell(images[0], zoom)
    font = _fitting_font(captions, HEADER_TEXT, cell[0])
    band = _line(font) + 2 if captions else 0
    rows = -(-len(images) // columns)
    sheet = _blank(columns * (cell[0] + GAP) - GAP, rows * (cell[1] + band + GAP) - GAP)
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left = MARGIN + i % columns * (cell[0] + GAP)
        top = MARGIN + i // columns * (cell[1] + band + GAP)
        sheet.paste(_enlarged(image, zoom), (left, top))
        if captions:
            caption = _clipped(captions[i], font, cell[0])
            draw.text((left + cell[0] // 2, top + cell[1] + 2), caption, FAINT, font, anchor="ma")
    return sheet


def labelled_sheet(
    rows: Sequence[Row | tuple[str, Sequence[Image.Image]]],
    zoom: int | None = None,
    headers: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Rows of pictures of one size, each under its label; ``headers`` name the columns (words one above the other)."""
    made = [Row(*row) for row in rows]
    zoom = zoom or default_zoom(made[0].images[0])
    cell = _cell(made[0].images[0], zoom)
    columns = max(len(row.images) for row in made)
    label_font, header_font = _font(ROW_TEXT), _fitting_font([w for h in headers for w in h.split()], HEADER_TEXT, cell[0])
    small = _font(HEADER_TEXT + 1)
    band = _line(label_font) + 6
    header_height = max((len(header.split()) for header in headers), default=0) * _line(header_font) + GAP
    title_height = _line(small) + GAP if title else 0
    width = max(
        columns * (cell[0] + GAP) - GAP, int(small.getlength(title)) + 1, *(_row_width(row, label_font, small) for row in made)
    )
    sheet = _blank(width, title_height + header_height + len(made) * (band + cell[1] + ROW_GAP) - ROW_GAP)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    draw.text((MARGIN, top), title, FAINT, small)
    top += title_height
    for column, header in enumerate(headers):
        centre = MARGIN + column * (cell[0] + GAP) + cell[0] // 2
        draw.multiline_text(
            (centre, top), "\n".join(header.split()), FAINT, header_font, anchor="ma", align="center", spacing=2
        )
    top += header_height
    for row in made:
        _draw_row_label(draw, row, top, width, label_font, small)
        for column, image in enumerate(row.images):
            sheet.paste(_enlarged(image, zoom), (MARGIN + column * (cell[0] + GAP), top + band))
        top += band + cell[1] + ROW_GAP
    return sheet


def _draw_row_label(draw: ImageDraw.ImageDraw, row: Row, top: int, width: int, font, small) -> None:
    """Name and remark at the left on one baseline, the measure at the right."""
    baseline = top + _line(font) - 1
    draw.text((MARGIN, baseline), row.label, INK, font, anchor="ls")
    draw.text((MARGIN + font.getlength(row.label) + 2 * GAP, baseline), row.detail, FAINT, small, anchor="ls")
    draw.text((MARGIN + width, baseline), row.measure, FAINT, small, anchor="rs")


def _row_width(row: Row, font, small) -> int:
    texts = font.getlength(row.label) + sum(small.getlength(text) + 4 * GAP for text in (row.detail, row.measure) if text)
    return int(texts) + 1


def _font(size: int):
    return ImageFont.load_default(size)


def _fitting_font(texts: Sequence[str], size: int, width: int):
    """The largest font, from ``size`` down, in which every text fits into ``width`` pixels."""
    while size > SMALLEST_TEXT and any(_font(size).getlength(text) > width for text in texts):
        size -= 1
    return _font(size)


def _clipped(text: str, font, width: int) -> str:
    """``text``, or as much of it as fits into ``width`` pixels with dots after it."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _line(font) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent


def _cell(image: Image.Image, zoom: int) -> tuple[int, int]:
    return image.width * zoom, image.height * zoom


def _enlarged(image: Image.Image, zoom: int) -> Image.Image:
    return image.resize(_cell(image, zoom), Image.Resampling.NEAREST)


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), BACKGROUND)
