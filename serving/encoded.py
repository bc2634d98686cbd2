"""Pictures as the bytes of a file: a PNG carries how it was made, as those of ``segue sample`` do."""

import io
from typing import Any

from PIL import Image

from .refusals import Refusal, shown
from .schemas import ImageRequest

PNG = "png"
QUALITY = 90  # of jpeg and webp where a request says nothing


def kind_of(request: ImageRequest) -> str:
    """The format that a request asks for."""
    return request.output_format or PNG


def encoded(image: Image.Image, request: ImageRequest) -> bytes:
    """The file of a picture without a record, in the format that is asked for."""
    data, kind = io.BytesIO(), kind_of(request)
    quality = QUALITY if request.output_compression is None else request.output_compression
    image.save(data, format=kind, **({} if kind == PNG else {"quality": quality}))
    return data.getvalue()


def encoded_run(run: Any, request: ImageRequest) -> bytes:
    """The file of the one picture of a finished run, in the format that is asked for."""
    return run.png() if kind_of(request) == PNG else encoded(run.images[0], request)


def wants_file(accept: str, request: ImageRequest) -> bool:
    """Whether the header ``Accept`` asks for the picture itself instead of JSON; raises :class:`.refusals.Refusal`."""
    if not accept.startswith("image/"):
        return False
    if accept not in ("image/*", made := f"image/{kind_of(request)}"):
        raise Refusal(406, f"the picture is {made}, and the header Accept asks for {shown(accept)}", param="output_format")
    if request.stream or (request.n or 1) > 1:
        what = "a stream" if request.stream else f"n {request.n}"
        raise Refusal(400, f"the header Accept asks for one picture as it is, and the request for {what}")
    return True
