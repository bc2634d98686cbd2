"""Pictures as the bytes of a file: a PNG carries how it was made, as those of ``segue sample`` do, but no path."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from segue.engine.images import save_png
from segue.engine.records.provenance import PLACES, Record, parameters_text
from segue.models.bundled import BUNDLED

from .refusals import Refusal, shown
from .schemas import ImageRequest

PNG = "png"
QUALITY = 90  # of jpeg and webp where a request says nothing
QUALITY_VALUE = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
    if kind_of(request) != PNG:
        return encoded(run.images[0], request)
    data, record = io.BytesIO(), public_record(run.record().part(0))
    names = getattr(run.plan.spec, "class_names", ())
    save_png(run.images[0], data, parameters_text(record, names), record.to_dict())
    return data.getvalue()


def public_record(record: Record) -> Record:
    """A record whose networks come from names, not from paths of this machine."""
    told = {place: getattr(record.origin, place) for place in PLACES}
    public = {place: _public(value) for place, value in told.items()}
    return replace(record, origin=replace(record.origin, **public))


def _public(place: Any) -> Any:
    if isinstance(place, Mapping):
        return {name: _public(value) for name, value in place.items()}
    return public_name(place) if place else place


@cache  # as it is at the first answer: a file that is gone later was a file all the same
def public_name(source: str) -> str:
    """What others call a model: its name or hub id, but of a file or folder on this machine the last part alone."""
    path = Path(source)
    if source in BUNDLED or not (path.exists() or path.is_absolute() or not HUB_ID.fullmatch(source)):
        return source
    return path.resolve().name if path.is_dir() else path.resolve().stem


def wants_file(accept: str, request: ImageRequest) -> bool:
    """Whether the header ``Accept`` prefers the picture itself to JSON; raises :class:`.refusals.Refusal`.

    One that names neither gets JSON, unless it asks for pictures of other kinds.
    """
    accepted, made = _accepted(accept), f"image/{kind_of(request)}"
    picture, told = _quality(accepted, made), _quality(accepted, "application/json")
    if picture <= told:
        if not told and any(kind.startswith("image/") and quality for kind, quality in accepted.items()):
            said = f"the picture is {made}, and the header Accept asks for {shown(accept)}"
            raise Refusal(406, said, param="output_format")
        return False
    if request.stream or (request.n or 1) > 1:
        what = "a stream" if request.stream else f"n {request.n}"
        raise Refusal(400, f"the header Accept asks for one picture as it is, and the request for {what}")
    return True


def _accepted(accept: str) -> dict[str, float]:
    """The media ranges of a header ``Accept`` and the quality of each (RFC 9110, 12.5.1), 1 where it cannot be read."""
    found = {}
    for part in accept.lower().split(","):
        kind, *options = map(str.strip, part.split(";"))
        given = [option.removeprefix("q=") for option in options if option.startswith("q=")]
        found[kind] = float(given[0]) if given and QUALITY_VALUE.fullmatch(given[0]) else 1.0
    return found


def _quality(accepted: Mapping[str, float], kind: str) -> float:
    """How welcome a media type is: as the most specific range that holds it says."""
    ranges = kind, f"{kind.partition('/')[0]}/*", "*/*"
    return next((accepted[one] for one in ranges if one in accepted), 0.0)
