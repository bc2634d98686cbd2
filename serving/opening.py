"""Opening the model that pictures are drawn with, of classes or of prompts, with all that they need."""

from typing import Any

from segue.engine.cli.jobs import check_prompt_source, open_prompt_engine
from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine, reading_of, refuse_size
from segue.engine.prompts.saved_pipeline import SavedSD3
from segue.engine.sources import is_sd3_pipeline, local_source


def check_drawing(source: Source, saved: SavedSD3 | None) -> None:
    """Raise ``ValueError`` or ``OSError`` for what cannot draw, as far as that is known without weights."""
    refuse_size(source.name)
    if saved is not None:
        check_prompt_source(source, saved, is_sd3_pipeline(local_source(source.name, reading_of(source), weights=False)))
        saved.check_vae()


def open_served(source: Source) -> Any:
    """The engine of a model.  Raises ``ValueError`` or ``OSError``."""
    refuse_size(source.name)
    saved = SavedSD3.read(local_source(source.name, reading_of(source), weights=False))
    check_drawing(source, saved)
    return open_engine(source) if saved is None else open_prompt_engine(source)
