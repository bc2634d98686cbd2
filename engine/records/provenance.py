"""What a picture records about how it was made, and the way back from the record to the picture."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ..adapters.upscaling import Upscaler
from ..adapters.vae import Decoder
from ..core import EngineCore
from ..planning.compile import plan_part
from ..planning.plan import Plan
from ..planning.plan_text import plan_dict
from ..planning.schedule import Schedule
from ..planning.solver_rows import Solver
from ..rules.batch import ParsedRules, parse_rules
from ..rules.presets import ParsedRule
from ..saved_files import VAE
from .known_fingerprints import known_fingerprint

FORMAT, SHEET = 1, "sheet"  # the key of a record of several rules
LATER = ("max_sequence_length", "planned")  # fields that records of this format need not have
PLACES = ("source", "models", "vae", "adapter")  # fields of an origin that say where networks were read from
PLAN_KEYS = ("schedule", "schedule_sigmas", "solver", "height", "width", "sigmas", "weights", "solver_rows")


@dataclass(frozen=True)
class Origin:
    """The networks of a picture: where they were loaded from, how, and what they were.

    ``source`` is empty for networks that were made in Python; ``models`` says where further networks came from, by name.
    ``vae_weights`` is the fingerprint of the VAE that made pictures of a class-label model's latents, each of which is
    ``pixels_per_latent`` wide; ``vae`` is where it came from, None for that of the pipeline ``source``.  ``adapter`` is
    what was merged into the weights; ``attention`` how blocks attended where that was asked for;
    ``upscale`` what made the pictures larger, of weights ``upscale_weights``.
    """

    source: str
    family: str | None
    model: str
    weights: str
    device: str
    dtype: str
    linears: str = "native"
    heads: int | None = None
    exit_layer: int | None = None
    revision: str | None = None
    variant: str | None = None
    t5: bool = True
    models: Mapping[str, str] = field(default_factory=dict)
    vae: str | None = None
    vae_weights: str | None = None
    pixels_per_latent: int = 1
    adapter: str | None = None
    adapter_scale: float | None = None
    attention: str | None = None
    upscale: str | None = None
    upscale_weights: str | None = None

    @classmethod
    def of(cls, engine: EngineCore, source: str, family: str | None = None, **how: Any) -> "Origin":
        """That of an engine; ``how`` its model was read, as :meth:`Engine.from_pretrained` was told."""
        dtype = str(engine.dtype).removeprefix("torch.")
        weights, device = known_fingerprint(engine.models), engine.device.type
        return cls(source, family, engine.spec.name, weights, device, dtype, engine.linears, **how)

    @property
    def identity(self) -> dict[str, Any]:
        """What the networks are, wherever they were read from: their weights say it."""
        return {name: value for name, value in vars(self).items() if name not in PLACES}

    def with_decoder(self, decoder: Decoder | None) -> "Origin":
        """This with what makes the pictures."""
        if decoder is None:
            return self
        return replace(self, vae_weights=known_fingerprint({VAE: decoder.vae}), pixels_per_latent=decoder.factor)

    def with_upscaler(self, upscaler: Upscaler | None) -> "Origin":
        """This with what makes the pictures larger."""
        if upscaler is None:
            return self
        pixels = self.pixels_per_latent * upscaler.factor
        return replace(self, upscale=upscaler.name, upscale_weights=upscaler.weights, pixels_per_latent=pixels)

    def check_upscaler(self, upscaler: Upscaler | None) -> None:
        """Raise ``ValueError`` unless an enhancer of these weights made the pictures larger."""
        if upscaler is not None and upscaler.weights != self.upscale_weights:
            raise ValueError(
                f"the picture was enlarged by weights {self.upscale_weights}, but {upscaler.name} has {upscaler.weights}"
            )

    def check_decoder(self, decoder: Decoder | None) -> None:
        """Raise ``ValueError`` unless this VAE, or none, made the pictures."""
        found = None if decoder is None else known_fingerprint({VAE: decoder.vae})
        if found != self.vae_weights:
            by = "without a VAE" if self.vae_weights is None else f"by a VAE of weights {self.vae_weights}"
            raise ValueError(f"the picture was made {by}, but there is {'none' if found is None else f'one of {found}'}")


@dataclass(frozen=True)
class Record:
    """How pictures were made: enough to make them again, pixel for pixel, on the same kind of machine.

    ``labels`` and ``seeds`` are those of the batches that were run; ``index`` picks the one picture in them, or is None
    where the file shows all of them in a grid, ``layout`` being its columns and zoom.
    """

    origin: Origin
    rule: str
    plan: Mapping[str, Any]
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    max_batch: int
    index: int | None = None
    layout: tuple[int, int] | None = None
    planned: Plan | None = field(default=None, repr=False, compare=False)  # what ``plan`` tells of; not written

    def to_dict(self) -> dict:
        """Plain numbers and strings."""
        record = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "planned"}
        versions = {"segue": version("segue"), "torch": torch.__version__, "python": platform.python_version()}
        return {"format": FORMAT, "versions": versions} | record | {"origin": vars(self.origin)}

    @classmethod
    def from_dict(cls, record: Any, name: str) -> "Record":
        """The record of the file ``name``; ``ValueError`` if it is not one that this version can redraw."""
        try:
            if SHEET in record:
                raise ValueError("it is a sheet of several rules, which segue compare --from draws again")
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']!r}, not {FORMAT}")
            values = {
                field.name: record[field.name] for field in fields(cls) if field.name in record or field.name not in LATER
            }
            made = cls(**values | {"origin": Origin(**record["origin"])})
            made._check()
            return made
        except KeyError as error:
            raise ValueError(f"{name} holds no record that can be redrawn: it lacks {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} holds no record that can be redrawn: {error}") from None

    def _check(self) -> None:
        """Raise ``ValueError`` or ``KeyError`` for what no picture of ours can hold; the engine checks the values."""
        for name in ("labels", "seeds"):
            values = getattr(self, name)
            if not isinstance(values, list) or not all(type(value) is int for value in values) or not values:
                raise ValueError(f"its {name} are {values!r}")
        if len(self.labels) != len(self.seeds) or type(self.max_batch) is not int or self.max_batch < 1:
            raise ValueError(f"{len(self.labels)} labels, {len(self.seeds)} seeds and batches of {self.max_batch!r} do not fit")
        if self.index is not None and self.index not in range(len(self.labels)):
            raise ValueError(f"its index {self.index!r} is out of range")
        if self.index is None and not (isinstance(self.layout, list) and len(self.layout) == 2):
            raise ValueError(f"its layout is {self.layout!r}")
        for key in PLAN_KEYS:
            _ = self.plan[key]

    def part(self, index: int) -> "Record":
        """The record of one picture of a run: the batch it was drawn in and its place there."""
        first = index // self.max_batch * self.max_batch
        batch = slice(first, first + self.max_batch)
        labels, seeds = self.labels[batch], self.seeds[batch]
        rule, plan = parse_rules(self.rule).part(batch).text, self.plan
        if self.planned is not None and self.planned.samples:
            plan = _part_of(self.planned, first, self.max_batch)
        return replace(self, rule=rule, plan=plan, labels=labels, seeds=seeds, index=index - first)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return tuple(self.plan[side] * self.origin.pixels_per_latent for side in ("width", "height"))

    def shown_labels(self) -> list[int]:
        """The labels of the pictures in the file: of one, or of all in a grid."""
        return list(self.labels) if self.index is None else [self.labels[self.index]]

    def described(self, names: tuple[str, ...]) -> str:
        """What the file shows; ``names`` are those of the model's classes."""
        return ", ".join(dict.fromkeys(names[label] if names else f"class {label}" for label in self.shown_labels()))

    def further_parameters(self) -> dict[str, Any]:
        """Pairs of the ``parameters`` chunk beyond those of every picture."""
        return {}

    def solver(self) -> str | Solver:
        """The solver of the run."""
        return self.plan["solver"]

    def plan_of(self, engine: EngineCore, rule: ParsedRule | ParsedRules) -> Plan:
        """The plan of a rule on the noise levels, by the solver and in the size that are recorded."""
        recorded = self.plan
        schedule = Schedule(tuple(recorded["schedule_sigmas"]), recorded["schedule"])
        size = {"height": recorded["height"], "width": recorded["width"]}
        return engine.plan(rule.guidance, schedule=schedule, solver=self.solver(), **size)

    def resolve(self, engine: EngineCore) -> tuple[ParsedRule | ParsedRules, Plan]:
        """The rule and the plan on an engine; ``ValueError`` if its weights or its plan are not those recorded."""
        weights = known_fingerprint(engine.models)
        if weights != self.origin.weights:
            raise ValueError(f"the picture was drawn by weights {self.origin.weights}, but {self.origin.source} has {weights}")
        rule, recorded = parse_rules(self.rule), self.plan
        plan = self.plan_of(engine, rule)
        for table, found in {"sigmas": plan.sigmas, "weights": plan.weights, "solver_rows": plan.table}.items():
            if not _same_numbers(found, recorded[table]):
                raise ValueError(
                    f"this version of Segue resolves the {table} of {self.rule!r} differently from the recorded plan"
                )
        return rule, plan


@lru_cache(maxsize=1)
def _part_of(plan: Plan, first: int, count: int) -> dict[str, Any]:
    """What a plan tells of the batch of ``count`` samples that begins with ``first``: the same for all its pictures."""
    return plan_dict(plan_part(plan, slice(first, first + count)))


def _same_numbers(found: np.ndarray, recorded: Any) -> bool:
    """Equal but for the last digits, which differ between machines; both are computed in fp64."""
    recorded = np.array(recorded, dtype=np.float64).reshape(-1)
    return recorded.size == found.size and bool(np.allclose(found.reshape(-1), recorded, rtol=1e-9, atol=1e-12))


def parameters_text(record: Record, names: tuple[str, ...]) -> str:
    """The ``parameters`` chunk that picture browsers show: a description, then ``Key: value`` pairs on one line.

    The keys are those of the AUTOMATIC1111 web UI, so that its readers find steps, sampler, seed and size.
    """
    plan = record.plan
    pairs = {
        "Steps": plan["steps"],
        "Sampler": plan["solver"],
        "Schedule type": plan["schedule"],
        "Guidance": json.dumps(record.rule),
        "Seed": record.seeds[record.index or 0],
        "Size": "{}x{}".format(*record.size),
        "Model hash": record.origin.weights,
        "Model": record.origin.model,
        **record.further_parameters(),
        "Version": f"segue {version('segue')}",
    }
    return record.described(names) + "\n" + ", ".join(f"{key}: {value}" for key, value in pairs.items())
