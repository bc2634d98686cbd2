"""``segue plan``: who runs when and what it costs."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from segue.models.attention_kind import spec_with_attention
from segue.models.fingerprint import rounded_fingerprint
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.spec import ModelSpec
from segue.models.weights import load_model

from ..core import resolve_plan
from ..planning.plan import Plan
from ..planning.plan_text import COLUMNS, cost_lines, heading, legend, plan_dict, run_cells
from ..prompts.planning import latent_size, resolve_prompt_plan
from ..prompts.saved_pipeline import SavedSD3
from ..rules.batch import ParsedRules
from ..rules.calibration import Calibration, read_calibration
from ..rules.presets import ParsedRule, parse_rule
from ..sources import local_source
from .jobs import refuse_prompts
from .options import (
    CHECKPOINT_HINTS,
    DEFAULT_SOLVER,
    DIFFUSERS_HINTS,
    PromptOptions,
    RuleOptions,
    RunOptions,
    Source,
)
from .session import choose_rule, further_specs, published_spec, reading_of, refuse_options

SD3_SCHEDULE = "shift"  # that of every published SD3's scheduler, for one that has none beside it


def show_plan(source: Source, rule: RuleOptions, run: RunOptions, text: PromptOptions, as_json: bool) -> None:
    name = source.name
    saved = None if published_spec(name) else SavedSD3.read(local_source(name, reading_of(source), weights=False))
    if saved is not None:
        refuse_options(source, CHECKPOINT_HINTS, f"{source.model} states what it is")
        refuse_options(source, ("attention",), f"{source.model} is no DiT or SiT")
    calibration = None if rule.calibration is None else read_calibration(rule.calibration)
    if calibration is not None and (saved is not None or published_spec(name)):
        raise ValueError(f"a calibration is of the weights of a model of classes, and {name} is none")
    specs = find_specs(source, calibration) if saved is None else {"main": saved.spec} | further_specs(source)
    if saved is None and isinstance(specs["main"], MMDiTSpec):
        saved = SavedSD3(specs["main"])
    parsed = choose_rule(rule, specs["main"], source)
    if saved is None:
        refuse_prompts(specs["main"], text)
        plan = resolve_plan(specs, parsed.guidance, run.steps, run.schedule, run.solver or DEFAULT_SOLVER)
    else:
        schedule = SD3_SCHEDULE if saved.scheduler is None and run.schedule is None else run.schedule
        size = latent_size(saved.spec, saved.factor, text.height, text.width)
        plan = resolve_prompt_plan(specs, saved.scheduler, parsed.guidance, run.steps, schedule, run.solver, *size)
    if as_json:
        print(json.dumps({"rule": parsed.text, "notes": list(parsed.notes)} | plan_dict(plan)))
    else:
        _print_plan(plan, parsed)


def find_specs(source: Source, calibration: Calibration | None = None) -> Mapping[str, ModelSpec]:
    """The specs of a model and of its guidance networks; a published size such as ``SiT-XL/2-512`` needs no weights.

    Raises ``ValueError`` for the ``calibration`` of other weights.
    """
    name = source.name
    published = published_spec(name)
    if published:
        refuse_options(source, (*CHECKPOINT_HINTS, *DIFFUSERS_HINTS), f"{name} is a published size")
        return _attending({"main": published}, source)
    how: dict[str, Any] = {"heads": source.heads, "exit_layer": source.branch_head, "variant": source.variant}
    model, others = load_model(local_source(name, reading_of(source)), source.family, **how)
    if calibration is not None:
        others = others | {own: load_model(local_source(path), source.family)[0] for own, path in source.further.items()}
        held = {"main": model} | others
        calibration.check_model(model.spec.name, rounded_fingerprint(_used(calibration, held)))
    specs = {"main": model.spec} | {network: other.spec for network, other in others.items()} | further_specs(source)
    return _attending(specs, source)


def _attending(specs: Mapping[str, ModelSpec], source: Source) -> Mapping[str, ModelSpec]:
    """``specs`` with the attention that the options ask for."""
    if source.attention is None:
        return specs
    return {name: spec_with_attention(spec, source.attention) for name, spec in specs.items()}


def _used(calibration: Calibration, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of ``networks`` that a calibrated rule runs on."""
    names = ("main", *(term.branch.model for term in parse_rule(calibration.rule).guidance.terms))
    return {name: networks[name] for name in dict.fromkeys(names) if name in networks}


def _print_plan(plan: Plan, rule: ParsedRule | ParsedRules) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        last = name == COLUMNS[-1]
        table.add_column(name, justify="left" if last else "right", no_wrap=not last)
    for cells in run_cells(plan):
        table.add_row(*cells)
    for line in (heading(plan), f"rule: {rule.text}", *(f"note: {note}" for note in rule.notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for line in (*legend(plan), *cost_lines(plan), *(f"warning: {warning}" for warning in plan.warnings)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
