"""``segue sample``: pictures into a folder, each with the record it can be drawn again from."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..files import NewFiles
from ..records.pictures import check_place, picture_name, write_picture
from ..records.provenance import Record
from ..rules.batch import parse_rules
from .jobs import captions, open_job
from .latents import wants_pictures, write_latents
from .options import Output, PromptOptions, RuleOptions, RunOptions, Source
from .session import choose_rule, print_warnings
from .sheets import default_columns, default_zoom, picture_grid

DEFAULT_OUT = Path("out")


def draw_pictures(source: Source, rule: RuleOptions, run: RunOptions, output: Output, text: PromptOptions) -> None:
    """Check everything, then draw, then write."""
    pictures = wants_pictures(output)
    out, folder = check_output(output, DEFAULT_OUT)
    if not (pictures or folder):
        raise ValueError(f"latents are written into a folder, got the file {out}")
    job = open_job(source, run, text, pictures=pictures)
    parsed = choose_rule(rule, job.spec, source)
    plan = job.plan(parsed, run)
    check_fit(out, folder, len(job.labels), output)
    print_warnings(plan, parsed)
    if text.negative_prompt and not plan.needs_negative:
        print(f"warning: {parsed.text} has no unconditional branch: the negative prompt changes nothing", file=sys.stderr)
    drawn = job.draw(plan, bool(run.check_finite))
    record, new = job.record(parsed, drawn.plan), NewFiles(output.force)
    if pictures:
        files = write_pictures(drawn.images, record, job.names, out, folder, output, new)
    else:
        names = [picture_name(job.names, *sample) for sample in zip(record.labels, record.seeds, strict=True)]
        files = write_latents(drawn.latents, record, names, out, new)
    print_numbered(new)
    if output.json:
        summary = {"files": [str(file) for file in files], "seconds": round(drawn.seconds, 3)} | record.to_dict()
        print(json.dumps(summary))
        return
    cost, count = drawn.plan.cost, len(drawn.latents)
    told = f"{cost.evaluations} evaluations per picture, {cost.relative:.2f}x unguided, {drawn.seconds:.1f} s"
    told += f", enlarged {job.upscaler}" if job.upscaler is not None else ""
    print(f"{parsed.title} ({parsed.text}): {told}")
    all_in = f", all in {files[-1]}" if pictures and len(files) > count else ""
    print(f"{counted(count, 'picture' if pictures else 'latent')} in {out}{all_in}")


def counted(count: int, thing: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{count} {thing}{'s' * (count != 1)}"


def check_output(output: Output, default: Path) -> tuple[Path, bool]:
    """Where to write and whether that is a folder; ``ValueError`` or ``OSError`` if nothing can be written there."""
    out = output.out or default
    return out, check_place(out, output.out is not None, output.force)


def print_numbered(new: NewFiles) -> None:
    """Say which files have a number, and why."""
    if new.numbered:
        others = "" if len(new.numbered) == 1 else f" and {len(new.numbered) - 1} more"
        way = "another picture of this run" if new.replace else "a file of other content (--force writes over those of before)"
        print(f"warning: {new.numbered[0]}{others} got a number: {way} has the name", file=sys.stderr)


def check_fit(out: Path, folder: bool, count: int, output: Output) -> None:
    """Raise ``ValueError`` for several pictures in one file without a grid."""
    if not folder and count > 1 and output.grid is False:
        raise ValueError(f"{count} pictures without a grid need a folder, got the file {out}")


def write_pictures(
    images: list[Image.Image],
    record: Record,
    names: tuple[str, ...],
    out: Path,
    folder: bool,
    output: Output,
    new: NewFiles,
) -> list[Path]:
    """Write the pictures of a run, and their grid; returns the files."""
    files = []
    if folder or len(images) == 1:
        for index, image in enumerate(images):
            part = record.part(index)
            file = out / picture_name(names, record.labels[index], record.seeds[index]) if folder else out
            files.append(write_picture(new, file, image, part, names))
    if len(images) > 1 and output.grid is not False:
        layout = (output.columns or default_columns(len(images)), output.zoom or default_zoom(images[0]))
        whole = replace(record, layout=layout)
        file = out / "grid.png" if folder else out
        files.append(write_picture(new, file, draw_grid(images, whole, names), whole, names))
    return files


def draw_grid(images: list[Image.Image], record: Record, names: tuple[str, ...]) -> Image.Image:
    """The captioned grid of a run."""
    columns, zoom = record.layout
    return picture_grid(images, captions(names, record.labels, record.seeds, parse_rules(record.rule)), columns, zoom)
