"""Pictures side by side: a captioned grid, and a sheet with one labelled row per rule."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, FAINT, MARKED = (244, 243, 240), (38, 38, 40), (112, 110, 106), (196, 43, 28)
MARGIN, GAP, ROW_GAP = 18, 6, 16
ROW_TEXT, HEADER_TEXT, SMALLEST_TEXT = 16, 12, 8
FRAME = 2  # pixels around a marked picture, in the gap
COMFORTABLE = 96  # pixels: small pictures are enlarged to about this
WIDEST = 8  # pictures per row of a grid


class Row(NamedTuple):
    """One row of a sheet: its name, its pictures, a remark after the name and one at the right edge.

    ``marks``: for each picture the words under it, which is then framed, or nothing.
    """

    label: str
    images: Sequence[Image.Image]
    detail: str = ""
    measure: str = ""
    marks: Sequence[str] = ()


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
    note: str = "",
) -> Image.Image:
    """Rows of pictures of one size, each under its label; ``headers`` name the columns (words one above the other).

    ``title`` and ``note`` are lines of text above and below everything.
    """
    made = [Row(*row) for row in rows]
    layout = _Layout(made, zoom or default_zoom(made[0].images[0]), headers, title, note)
    sheet = _blank(layout.width, layout.height)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    _draw_lines(draw, title, top, layout.small)
    top += _text_height(title, layout.small)
    for column, header in enumerate(headers):
        words, place = "\n".join(header.split()), (layout.left(column) + layout.cell[0] // 2, top)
        draw.multiline_text(place, words, FAINT, layout.header_font, anchor="ma", align="center", spacing=2)
    top += layout.header_height
    for row in made:
        _draw_row(sheet, draw, row, top, layout)
        top += layout.row_height
    _draw_lines(draw, note, top - layout.gap + 2 * GAP, layout.small)
    return sheet


class _Layout:
    """Fonts and sizes of a labelled sheet, in pixels."""

    def __init__(self, rows: Sequence[Row], zoom: int, headers: Sequence[str], title: str, note: str):
        self.zoom, self.cell = zoom, _cell(rows[0].images[0], zoom)
        self.label_font, self.small = _font(ROW_TEXT), _font(HEADER_TEXT + 1)
        self.header_font = _fitting_font([word for header in headers for word in header.split()], HEADER_TEXT, self.cell[0])
        marks = [mark for row in rows for mark in row.marks if mark]
        self.mark_font = _fitting_font(marks, HEADER_TEXT, self.cell[0])
        self.band = _line(self.label_font) + 6
        mark_band = _line(self.mark_font) + FRAME if marks else 0
        self.gap = GAP if marks else ROW_GAP  # words below pictures keep the rows apart
        self.row_height = self.band + self.cell[1] + mark_band + self.gap
        self.header_height = max((len(header.split()) for header in headers), default=0) * _line(self.header_font) + GAP
        lines = [int(self.small.getlength(line)) + 1 for text in (title, note) for line in text.splitlines()]
        pictures = self.left(max(len(row.images) for row in rows)) - GAP - MARGIN
        self.width = max(pictures, *lines, *(_row_width(row, self.label_font, self.small) for row in rows))
        texts = sum(_text_height(text, self.small) for text in (title, note))
        self.height = texts + self.header_height + len(rows) * self.row_height - self.gap

    def left(self, column: int) -> int:
        """Where a column begins."""
        return MARGIN + column * (self.cell[0] + GAP)


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, top: int, layout: _Layout) -> None:
    """Label, pictures, and the marks of some of them."""
    _draw_row_label(draw, row, top, layout.width, layout.label_font, layout.small)
    for column, image in enumerate(row.images):
        sheet.paste(_enlarged(image, layout.zoom), (layout.left(column), top + layout.band))
    for column, mark in enumerate(row.marks):
        if mark:
            _draw_mark(draw, mark, (layout.left(column), top + layout.band), layout.cell, layout.mark_font)


def _draw_mark(draw: ImageDraw.ImageDraw, mark: str, corner: tuple[int, int], cell: tuple[int, int], font) -> None:
    """A frame around the picture at ``corner``, and the words under it."""
    (left, top), (width, height) = corner, cell
    draw.rectangle((left - FRAME, top - FRAME, left + width + FRAME - 1, top + height + FRAME - 1), outline=MARKED, width=FRAME)
    draw.text((left + width // 2, top + height + FRAME), _clipped(mark, font, width), MARKED, font, anchor="ma")


def _draw_lines(draw: ImageDraw.ImageDraw, text: str, top: int, font) -> None:
    for index, line in enumerate(text.splitlines()):
        draw.text((MARGIN, top + index * _line(font)), line, FAINT, font)


def _text_height(text: str, font) -> int:
    return len(text.splitlines()) * _line(font) + 2 * GAP if text else 0


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
