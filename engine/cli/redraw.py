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
from ..records.provenance import Origin, Record
from ..rules.batch import ParsedRules, parse_rules
from ..rules.rule_text import named_text
from .jobs import recorded_job
from .options import CHECKPOINT_HINTS, DIFFUSERS_HINTS, Output, PromptOptions, RuleOptions, RunOptions, Source
from .sample import DEFAULT_OUT, check_output, draw_grid, print_numbered
from .session import print_warnings


def redraw(path: Path, source: Source, rule: RuleOptions, run: RunOptions, output: Output, text: PromptOptions) -> None:
    """Draw what ``path`` records and write it; with a rule, the same picture by that rule instead.

    ``--model``, ``--weak`` and ``--device`` may say where the same weights are and run, ``--vae`` and ``--adapter`` where these
    are, ``--image`` where the same start picture is.
    """
    refuse_recorded(source, run, output, text)
    refuse_calibration(rule.calibration)
    out, folder = check_output(output, DEFAULT_OUT)
    original, chunk = read_png(path)
    record = read_record(chunk, str(path))
    origin = record.origin
    job = recorded_job(record, recorded_source(source, origin), text.image)
    parsed, plan = record.resolve(job.engine)
    other = rule.text is not None or bool(rule.flags)
    if other:
        parsed = parse_rules(_changed_text(rule, record), job.spec, rule.flags)
        plan = record.plan_of(job.engine, parsed)
        plan.check_samples(len(record.labels))
        record = replace(record, rule=parsed.text, plan=plan.to_dict())
        print_warnings(plan, parsed)
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
        relation = "identical to" if identical else f"the same picture with {parsed.text} as" if other else "differs from"
        print(f"{file}: {relation} {path}, {seconds:.1f} s")


def _changed_text(rule: RuleOptions, record: Record) -> str:
    """The text of the rule that is asked for; flags alone change the recorded one, whose own values of these go."""
    if rule.text is not None:
        return rule.text
    recorded = parse_rules(record.rule)
    if isinstance(recorded, ParsedRules) or len(recorded.parts) > 1:
        flag, what = next(iter(rule.flags)), "rules of samples" if isinstance(recorded, ParsedRules) else "a sum"
        raise ValueError(f"the picture was drawn by {what}, {record.rule}: write the whole rule by -g, not its {flag} alone")
    (part,) = recorded.parts
    return named_text(part.name, [(option, value) for option, value in part.options if option not in rule.flags])


def recorded_source(source: Source, origin: Origin) -> Source:
    """Where the recorded weights are and how they are read: as recorded, or as the options say beside ``--model``."""
    precision: dict[str, Any] = {"dtype": origin.dtype, "linears": origin.linears, "t5": origin.t5}
    precision |= {"vae": source.vae or origin.vae, "models": origin.models}
    precision |= {"adapter": source.adapter or origin.adapter, "adapter_scale": origin.adapter_scale}
    precision |= {"attention": origin.attention, "upscale": origin.upscale}
    if not (source.model or origin.source):
        raise ValueError("the networks of the picture were made in Python: say by --model where these weights are")
    if source.model:
        return replace(source, **precision)
    how: dict[str, Any] = {"family": origin.family, "heads": origin.heads, "branch_head": origin.exit_layer}
    return replace(source, model=origin.source, revision=origin.revision, variant=origin.variant, **how, **precision)


def refuse_calibration(calibration: str | None) -> None:
    """Raise ``ValueError`` for one: the recorded rule names the calls that a calibration chose."""
    if calibration is not None:
        raise ValueError(f"--from takes --calibration from the picture; leave {calibration!r} out")


def refuse_recorded(source: Source, run: RunOptions, output: Output, text: PromptOptions) -> None:
    """Raise ``ValueError`` for an option whose value the record holds."""
    given = asdict(run) | {"dtype": source.dtype, "grid": output.grid}
    given |= {"linears": source.linears, "t5": source.t5, "output": output.kind, "adapter_scale": source.adapter_scale}
    given |= {"attention": source.attention, "upscale": source.upscale}
    given |= {} if source.model else {name: getattr(source, name) for name in (*CHECKPOINT_HINTS, *DIFFUSERS_HINTS)}
    given |= {"columns": output.columns, "zoom": output.zoom} | asdict(text) | {"image": None}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--from takes --{name.replace('_', '-')} from the picture; leave {value!r} out")
