"""``segue sample``: pictures into a folder, each with the record it can be drawn again from."""

import json
import re
from pathlib import Path

from PIL import Image

from segue.models.spec import SiTSpec

from .cli_options import DEFAULT_MODEL, Output, RuleOptions, RunOptions, Source
from .cli_session import captions, choose_rule, choose_samples, draw, make_plan, open_engine, print_warnings
from .files import check_writable
from .images import save_png
from .plan_text import plan_dict
from .provenance import Origin, Record, parameters_text
from .sheets import default_columns, default_zoom, picture_grid

DEFAULT_OUT = Path("out")
OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def draw_pictures(source: Source, rule: RuleOptions, run: RunOptions, output: Output, prompt: str | None) -> None:
    """Check everything, then draw, then write."""
    out, folder = check_output(output, DEFAULT_OUT)
    engine = open_engine(source)
    spec = engine.spec
    if prompt is not None:
        raise ValueError(f"{spec.name} is a class-label model and takes no prompt, got {prompt!r}; choose with --classes")
    parsed = choose_rule(rule, spec)
    plan = make_plan(engine, parsed, run)
    labels, seeds = choose_samples(spec, run)
    check_fit(out, folder, len(labels), output)
    print_warnings(plan, parsed)
    images, seconds = draw(engine, plan, labels, seeds, run.max_batch, bool(run.check_finite))
    max_batch = min(run.max_batch or len(labels), len(labels))
    origin = Origin.of(engine, source.model or DEFAULT_MODEL, source.family)
    record = Record(origin, parsed.text, plan_dict(plan), tuple(labels), tuple(seeds), max_batch)
    files = write_pictures(images, record, spec, out, folder, output)
    if output.json:
        summary = {"files": [str(file) for file in files], "seconds": round(seconds, 3)} | record.to_dict()
        print(json.dumps(summary))
    else:
        cost = plan.cost
        print(f"{parsed.title}: {cost.evaluations} evaluations per picture, {cost.relative:.2f}x unguided, {seconds:.1f} s")
        print(f"{len(images)} picture{'s' * (len(images) != 1)} in {out}" + (f", all in {files[-1]}" if len(files) > 1 else ""))


def check_output(output: Output, default: Path) -> tuple[Path, bool]:
    """Where to write and whether that is a folder; ``ValueError`` or ``OSError`` if nothing can be written there."""
    out = output.out or default
    if out.suffix.lower() in OTHER_FORMATS:
        raise ValueError(f"pictures are written as PNG, which carries their record, got {out}")
    folder = out.suffix.lower() != ".png"
    check_writable(out, folder)
    return out, folder


def check_fit(out: Path, folder: bool, count: int, output: Output) -> None:
    """Raise ``ValueError`` for several pictures in one file without a grid."""
    if not folder and count > 1 and output.grid is False:
        raise ValueError(f"{count} pictures without a grid need a folder, got the file {out}")


def write_pictures(
    images: list[Image.Image], record: Record, spec: SiTSpec, out: Path, folder: bool, output: Output
) -> list[Path]:
    """Write the pictures of a run, and their grid; returns the files."""
    out_folder = out if folder else out.parent
    out_folder.mkdir(parents=True, exist_ok=True)
    files = []
    if folder or len(images) == 1:
        for index, image in enumerate(images):
            part = record.part(index)
            files.append(out / picture_name(spec, record.labels[index], record.seeds[index]) if folder else out)
            save_png(image, files[-1], parameters_text(part, spec.class_names), part.to_dict())
    if len(images) > 1 and output.grid is not False:
        layout = (output.columns or default_columns(len(images)), output.zoom or default_zoom(images[0]))
        whole = Record(record.origin, record.rule, record.plan, record.labels, record.seeds, record.max_batch, layout=layout)
        files.append(out / "grid.png" if folder else out)
        save_png(draw_grid(images, whole, spec), files[-1], parameters_text(whole, spec.class_names), whole.to_dict())
    return files


def draw_grid(images: list[Image.Image], record: Record, spec: SiTSpec) -> Image.Image:
    """The captioned grid of a run."""
    columns, zoom = record.layout
    return picture_grid(images, captions(spec, record.labels, record.seeds), columns, zoom)


def picture_name(spec: SiTSpec, label: int, seed: int) -> str:
    """``003-acerites-dentata-seed7.png``."""
    title = spec.class_names[label] if spec.class_names else ""
    slug = "-".join(re.findall(r"[a-z0-9]+", title.lower()))[:40]
    return "-".join(filter(None, (f"{label:03d}", slug, f"seed{seed}"))) + ".png"
