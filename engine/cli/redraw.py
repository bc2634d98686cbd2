"""``segue sample --from``: a picture drawn again from the record inside its file."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import ImageChops

from ..files import NewFiles
from ..images import read_png
from ..records.pictures import picture_name, write_picture
from ..records.prompt_record import read_record
from ..records.provenance import Origin
from .jobs import recorded_job
from .options import CHECKPOINT_HINTS, DIFFUSERS_HINTS, Output, PromptOptions, RuleOptions, RunOptions, Source
from .sample import DEFAULT_OUT, check_output, draw_grid, print_numbered


def redraw(path: Path, source: Source, rule: RuleOptions, run: RunOptions, output: Output, text: PromptOptions) -> None:
    """Draw what ``path`` records and write it.

    ``--model``, ``--weak`` and ``--device`` may say where the same weights are and run, ``--vae`` where the same VAE is,
    ``--image`` where the same start picture is.
    """
    _refuse_options(source, rule, run, output, text)
    out, folder = check_output(output, DEFAULT_OUT)
    original, chunk = read_png(path)
    record = read_record(chunk, str(path))
    origin = record.origin
    job = recorded_job(record, _recorded_source(source, origin), text.image)
    _, plan = record.resolve(job.engine)
    device = job.engine.device.type
    if device != origin.device:
        print(f"warning: drawn on {origin.device} before and on {device} now; roundings may differ", file=sys.stderr)
    images, seconds, *_ = job.draw(plan)
    if record.index is None:
        image, name = draw_grid(images, record, job.names), "grid.png"
    else:
        image = images[record.index]
        name = picture_name(job.names, record.labels[record.index], record.seeds[record.index])
    identical = image.size == original.size and ImageChops.difference(image, original).getbbox() is None
    new = NewFiles(output.force)
    file = write_picture(new, out / name if folder else out, image, record, job.names)
    print_numbered(new)
    if output.json:
        print(json.dumps({"files": [str(file)], "identical": identical, "seconds": round(seconds, 3)} | record.to_dict()))
    else:
        print(f"{file}: {'identical to' if identical else 'differs from'} {path}, {seconds:.1f} s")


def _recorded_source(source: Source, origin: Origin) -> Source:
    """Where the recorded weights are and how they are read: as recorded, or as the options say beside ``--model``."""
    precision: dict[str, Any] = {"dtype": origin.dtype, "linears": origin.linears, "t5": origin.t5}
    precision |= {"vae": source.vae or origin.vae, "models": origin.models}
    if not (source.model or origin.source):
        raise ValueError("the networks of the picture were made in Python: say by --model where these weights are")
    if source.model:
        return replace(source, **precision)
    how: dict[str, Any] = {"family": origin.family, "heads": origin.heads, "branch_head": origin.exit_layer}
    return replace(source, model=origin.source, revision=origin.revision, variant=origin.variant, **how, **precision)


def _refuse_options(source: Source, rule: RuleOptions, run: RunOptions, output: Output, text: PromptOptions) -> None:
    """Raise ``ValueError`` for an option whose value the record holds."""
    given = asdict(run) | {"guidance": rule.text, "dtype": source.dtype, "grid": output.grid}
    given |= {f"exit_{name}" if name == "layer" else name: value for name, value in rule.flags.items()}
    given |= {"linears": source.linears, "t5": source.t5, "output": output.kind}
    given |= {} if source.model else {name: getattr(source, name) for name in (*CHECKPOINT_HINTS, *DIFFUSERS_HINTS)}
    given |= {"columns": output.columns, "zoom": output.zoom} | asdict(text) | {"image": None}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--from takes --{name.replace('_', '-')} from the picture; leave {value!r} out")
