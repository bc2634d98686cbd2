"""Pictures as the base64 of a file: a PNG carries how it was made, as those of ``segue sample`` do."""

import base64
import io
from typing import Any

from PIL import Image

from .schemas import ImageRequest

PNG = "png"
QUALITY = 90  # of jpeg and webp where a request says nothing


def encoded(image: Image.Image, kind: str, quality: int | None = None) -> str:
    """The base64 of a picture without a record."""
    data = io.BytesIO()
    options = {} if kind == PNG else {"quality": QUALITY if quality is None else quality}
    image.save(data, format=kind, **options)
    return base64.b64encode(data.getvalue()).decode()


def encoded_run(run: Any, request: ImageRequest) -> str:
    """The base64 of the one picture of a finished run, in the format that was asked for."""
    kind = request.output_format or PNG
    if kind == PNG:
        return base64.b64encode(run.png()).decode()
    return encoded(run.images[0], kind, request.output_compression)
