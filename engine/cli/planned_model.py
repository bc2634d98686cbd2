"""A model as its plans need it: the specs of its networks, and the scheduler of an SD3."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from segue.models.attention_kind import spec_with_attention
from segue.models.fingerprint import rounded_fingerprint
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.spec import ModelSpec
from segue.models.weights import load_model

from ..core import resolve_plan
from ..planning.plan import Plan
from ..prompts.planning import latent_size, resolve_prompt_plan
from ..prompts.saved_pipeline import SavedSD3
from ..rules.batch import RulesLike
from ..rules.calibration import Calibration, read_calibration
from ..rules.presets import parse_rule
from ..sources import local_source
from .jobs import refuse_prompts
from .options import CHECKPOINT_HINTS, DEFAULT_SOLVER, DIFFUSERS_HINTS, PromptOptions, RunOptions, Source
from .session import further_specs, published_spec, reading_of, refuse_options

NO_PROMPT = PromptOptions()
SD3_SCHEDULE = "shift"  # that of every published SD3's scheduler, for one that has none beside it


@dataclass(frozen=True)
class PlannedModel:
    """``specs`` by network; ``saved`` is what takes prompts, None for a model of classes."""

    specs: Mapping[str, ModelSpec]
    saved: SavedSD3 | None = None

    @classmethod
    def of(cls, source: Source, calibration: str | None = None) -> "PlannedModel":
        """A published size such as ``SiT-XL/2-512``, a saved SD3, or a checkpoint.

        Raises ``ValueError`` for options that say nothing here, and for the ``calibration`` of other weights.
        """
        name, published = source.name, published_spec(source.name)
        made = None if calibration is None else read_calibration(calibration)
        saved = None if published else SavedSD3.read(local_source(name, reading_of(source), weights=False))
        if made is not None and (saved or published):
            raise ValueError(f"a calibration is of the weights of a model of classes, and {name} is none")
        if saved is not None:
            refuse_options(source, CHECKPOINT_HINTS, f"{source.model} states what it is")
            refuse_options(source, ("attention",), f"{source.model} is no DiT or SiT")
            return cls({"main": saved.spec} | further_specs(source), saved)
        if published:
            refuse_options(source, (*CHECKPOINT_HINTS, *DIFFUSERS_HINTS), f"{name} is a published size")
        specs = {"main": published} if published else _read_specs(source, made)
        if source.attention is not None:
            specs = {name: spec_with_attention(spec, source.attention) for name, spec in specs.items()}
        main = specs["main"]
        return cls(specs, SavedSD3(main) if isinstance(main, MMDiTSpec) else None)

    @property
    def main(self) -> ModelSpec:
        return self.specs["main"]

    def plan(self, guidance: RulesLike, run: RunOptions, text: PromptOptions = NO_PROMPT) -> Plan:
        """The plan of a rule; raises ``ValueError``, of options for prompts too where the model takes none."""
        saved = self.saved
        if saved is None:
            refuse_prompts(self.main, text)
            return resolve_plan(self.specs, guidance, run.steps, run.schedule, run.solver or DEFAULT_SOLVER)
        schedule = SD3_SCHEDULE if saved.scheduler is None and run.schedule is None else run.schedule
        size = latent_size(saved.spec, saved.factor, text.height, text.width)
        return resolve_prompt_plan(self.specs, saved.scheduler, guidance, run.steps, schedule, run.solver, *size)


def _read_specs(source: Source, calibration: Calibration | None) -> dict[str, ModelSpec]:
    """The specs of the networks of a checkpoint and of those that are named beside it."""
    how: dict[str, Any] = {"heads": source.heads, "exit_layer": source.branch_head, "variant": source.variant}
    model, others = load_model(local_source(source.name, reading_of(source)), source.family, **how)
    held = {"main": model} | others
    if calibration is None:
        return {name: network.spec for name, network in held.items()} | further_specs(source)
    held |= {name: load_model(local_source(path), source.family)[0] for name, path in source.further.items()}
    calibration.check_model(model.spec.name, rounded_fingerprint(_used(calibration, held)))
    return {name: network.spec for name, network in held.items()}


def _used(calibration: Calibration, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of ``networks`` that a calibrated rule runs on."""
    names = ("main", *(term.branch.model for term in parse_rule(calibration.rule).guidance.terms))
    return {name: networks[name] for name in dict.fromkeys(names) if name in networks}
