"""``segue compare --from``: a sheet of several rules drawn again from the record inside its file."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import ImageChops

from ..files import NewFiles
from ..images import read_png
from ..numeric_input import counting_number, real_number
from ..records.prompt_record import read_record
from ..records.provenance import FORMAT, SHEET, Origin, Record
from .compare import DEFAULT_SHEET, draw_sheet, sheet_row, write_sheet
from .jobs import Job, recorded_job
from .options import Output, PromptOptions, RunOptions, Source
from .redraw import recorded_source, refuse_recorded
from .sample import check_output, print_numbered


def redraw_sheet(
    path: Path, rules: Sequence[str] | None, source: Source, run: RunOptions, output: Output, text: PromptOptions
) -> None:
    """Draw what the sheet ``path`` records, with the seconds that it records, and write it.

    ``--model``, ``--weak``, ``--device``, ``--vae`` and ``--image`` may say where the same things are.
    """
    if rules:
        raise ValueError(f"--from takes --rule from the sheet; leave {rules[0]!r} out")
    refuse_recorded(source, run, output, text)
    out, folder = check_output(output, DEFAULT_SHEET)
    if folder:
        raise ValueError(f"a comparison is one PNG file, got {out}")
    original, chunk = read_png(path)
    sheet, records = _records_of(chunk, str(path))
    origin = records[0].origin
    jobs = _jobs(records, source, text.image)
    job = jobs[0]
    device = job.engine.device.type
    if device != origin.device:
        print(f"warning: drawn on {origin.device} before and on {device} now; roundings may differ", file=sys.stderr)
    # a row that does not hold is refused before any is drawn
    resolved = [record.resolve(own.engine) for record, own in zip(records, jobs, strict=True)]
    rows = []
    for own, (rule, plan), entry in zip(jobs, resolved, sheet["rules"], strict=True):
        images, _, drawn, _ = own.draw(plan, title=entry["title"])
        rows.append(sheet_row(rule, images, drawn, entry))
    made = draw_sheet(job, rows, resolved[0][1], sheet["zoom"])
    new = NewFiles(output.force)
    file, beside = write_sheet(new, out, made, sheet)
    print_numbered(new)
    same = made.size == original.size and ImageChops.difference(made.convert("RGB"), original).getbbox() is None
    if output.json:
        print(json.dumps({"files": [str(file), str(beside)], "identical": same} | sheet))
    else:
        print(f"{file}: {'identical to' if same else 'differs from'} {path}")


def _jobs(records: Sequence[Record], source: Source, image: Path | None) -> list[Job]:
    """The job of every row: one for all rows of the same networks."""
    opened: list[tuple[Origin, Job]] = []
    for record in records:
        if all(record.origin != origin for origin, _ in opened):
            own = source if record.origin.adapter is not None else replace(source, adapter=None)
            opened.append((record.origin, recorded_job(record, recorded_source(own, record.origin), image)))
    return [next(job for origin, job in opened if origin == record.origin) for record in records]


def _records_of(chunk: Any, name: str) -> tuple[dict[str, Any], list[Record]]:
    """The record of a sheet, and that of each of its rows.  Raises ``ValueError`` for a file that has none."""
    sheet = chunk.get(SHEET) if isinstance(chunk, dict) else None
    if sheet is None:
        raise ValueError(f"{name} is no sheet of several rules; segue sample --from draws a picture again")
    try:
        common = {key: value for key, value in sheet.items() if key not in ("rules", "zoom", "total_seconds")}
        rows = [
            {"format": FORMAT, "index": 0, "layout": None}
            | common
            | {key: entry[key] for key in ("rule", "plan", "origin") if key != "origin" or key in entry}
            for entry in sheet["rules"]
        ]
        for entry in sheet["rules"]:
            _ = entry["title"], real_number(entry["seconds"], "its seconds must be numbers")
        counting_number(sheet["zoom"], "its zoom")
        if not rows:
            raise ValueError("it has no rules")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} holds no record that can be redrawn: {error}") from None
    return sheet, [read_record(row, name) for row in rows]
