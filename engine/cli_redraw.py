"""``segue sample --from``: a picture drawn again from the record inside its file."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from PIL import ImageChops

from .cli_options import Output, RuleOptions, RunOptions, Source
from .cli_sample import DEFAULT_OUT, check_output, draw_grid, picture_name
from .cli_session import draw, open_engine
from .images import read_png, save_png
from .provenance import Record, parameters_text


def redraw(path: Path, source: Source, rule: RuleOptions, run: RunOptions, output: Output) -> None:
    """Draw what ``path`` records and write it; ``--model`` and ``--device`` may say where the same weights are and run."""
    _refuse_options(source, rule, run, output)
    out, folder = check_output(output, DEFAULT_OUT)
    original, chunk = read_png(path)
    record = Record.from_dict(chunk, str(path))
    origin = record.origin
    model, family = (source.model, source.family) if source.model else (origin.source, origin.family)
    engine = open_engine(Source(model, family, source.device, origin.dtype))
    _, plan = record.resolve(engine)
    if engine.device.type != origin.device:
        print(
            f"warning: drawn on {origin.device} before and on {engine.device.type} now; roundings may differ", file=sys.stderr
        )
    images, seconds = draw(engine, plan, record.labels, record.seeds, record.max_batch)
    if record.index is None:
        image, name = draw_grid(images, record, engine.spec), "grid.png"
    else:
        image = images[record.index]
        name = picture_name(engine.spec, record.labels[record.index], record.seeds[record.index])
    identical = image.size == original.size and ImageChops.difference(image, original).getbbox() is None
    file = out / name if folder else out
    file.parent.mkdir(parents=True, exist_ok=True)
    save_png(image, file, parameters_text(record, engine.spec.class_names), record.to_dict())
    if output.json:
        print(json.dumps({"files": [str(file)], "identical": identical, "seconds": round(seconds, 3)} | record.to_dict()))
    else:
        print(f"{file}: {'identical to' if identical else 'differs from'} {path}, {seconds:.1f} s")


def _refuse_options(source: Source, rule: RuleOptions, run: RunOptions, output: Output) -> None:
    """Raise ``ValueError`` for an option whose value the record holds."""
    given = asdict(run) | {"guidance": rule.text, "dtype": source.dtype, "grid": output.grid} | rule.flags
    given |= {"columns": output.columns, "zoom": output.zoom}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--from takes --{name.replace('_', '-')} from the picture; leave {value!r} out")
