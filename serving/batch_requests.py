"""What is drawn for each row of a table: everything that the row and the command leave open is settled before any work."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, cast

from segue.engine.cli.options import PromptOptions, RuleOptions, RunOptions, Source
from segue.engine.cli.planned_model import PlannedModel
from segue.engine.cli.session import choose_rule, refuse_options
from segue.engine.labels import parse_labels
from segue.engine.numeric_input import check_seed, whole_number
from segue.engine.planning.plan import Plan
from segue.engine.prompts.encoding import check_prompts
from segue.engine.rules.batch import ParsedRules
from segue.engine.running.program_key import ProgramKey
from segue.models.spec import SiTSpec

from .batch_table import LABEL, PROMPT, Row
from .error_text import one_line
from .opening import check_drawing

KEPT_SETTINGS = 4096  # distinct rules with their steps and sizes whose plans are looked up, not made again
DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits
Group = tuple  # equal for rows that may share every step of a batch at no cost to any


@dataclass(frozen=True)
class RowRequest:
    """The picture of a row.  ``guidance`` has all its numbers; ``height`` and ``width`` are pixels, None the model's own."""

    id: str
    what: int | str  # a class by number, or a prompt
    guidance: str
    seed: int
    steps: int
    negative_prompt: str = ""
    solver: str | None = None
    schedule: str | None = None
    height: int | None = None
    width: int | None = None

    @property
    def digest(self) -> str:
        """Equal for rows of the same picture; the id is not in it."""
        text = json.dumps(self.told(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]

    def told(self) -> dict[str, Any]:
        """What is drawn, under the names of columns."""
        drawn = {name: value for name, value in asdict(self).items() if name not in ("id", "what")}
        return {LABEL if isinstance(self.what, int) else PROMPT: self.what} | drawn


@dataclass(frozen=True)
class Failure:
    """A row without a picture, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Defaults:
    """What the command says for rows that say nothing; the seed of row ``i`` is ``first_seed + i``."""

    guidance: str | None = None
    steps: int | None = None
    solver: str | None = None
    schedule: str | None = None
    first_seed: int = 0
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None

    def of(self, row: Row) -> Mapping[str, Any]:
        """The values of a row, with these where it has none."""
        settled = {name: value for name, value in vars(self).items() if name != "first_seed" and value is not None}
        return settled | {"seed": self.first_seed + row.number} | dict(row.values)


@dataclass(frozen=True)
class Settled:
    """A table before any work: ``requests`` of rows that can be drawn, each with its group, and ``failures`` of the others.

    ``oddities`` are notes and warnings of plans, ``model`` what draws.
    """

    model: str
    rows: tuple[Row, ...]
    requests: tuple[tuple[RowRequest, Group], ...]
    failures: tuple[Failure, ...] = ()
    oddities: tuple[str, ...] = ()

    @property
    def wanted(self) -> dict[str, RowRequest]:
        """The requests by id."""
        return {request.id: request for request, _ in self.requests}


@dataclass(frozen=True)
class _Settings:
    """What rows often share: the rule in full, the steps, what is odd about the plan, and with whom it may be drawn."""

    guidance: str
    steps: int
    oddities: tuple[str, ...]
    group: Group


class Requests:
    """Rows made into requests for one model, which is known by its specs alone.

    ``oddities`` are notes and warnings of the plans so far.  Raises ``ValueError`` or ``OSError`` for a model that draws
    nothing, and for options that say nothing of it.
    """

    def __init__(self, source: Source, defaults: Defaults):
        self.source, self.defaults = source, defaults
        self.model = PlannedModel.of(source)
        self.oddities: dict[str, None] = {}
        check_drawing(source, self.model.saved)
        refuse_options(source, ("upscale",), "a table is drawn at the model's own size")
        self._settings = lru_cache(KEPT_SETTINGS)(self._settle)
        if self.model.saved is None:
            self._refuse_prompt_defaults()

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.model.main.name

    def _refuse_prompt_defaults(self) -> None:
        for name in ("negative_prompt", "height", "width"):
            if (value := getattr(self.defaults, name)) is not None:
                raise ValueError(f"{self.name} is a class-label model and takes no {name.replace('_', ' ')}, got {value!r}")

    def settle(self, rows: Sequence[Row]) -> "Settled":
        """The requests of rows that can be drawn, and why the others cannot."""
        requests, failures = [], []
        for row in rows:
            try:
                requests.append(self.of(row))
            except (ValueError, TypeError) as error:
                failures.append(Failure(row.id, one_line(error)))
        return Settled(self.name, tuple(rows), tuple(requests), tuple(failures), tuple(self.oddities))

    def of(self, row: Row) -> tuple[RowRequest, Group]:
        """The request of a row and its group.  Raises ``ValueError`` or ``TypeError`` in one sentence."""
        values = self.defaults.of(row)
        what = self._prompt(values) if self.model.saved is not None else self._label(values)
        seed = check_seed(_whole(values, "seed"))
        steps, height, width = (_whole(values, name) if name in values else None for name in ("steps", "height", "width"))
        rule, solver, schedule = (
            _text(values, name) if name in values else None for name in ("guidance", "solver", "schedule")
        )
        settings = self._settings(rule, solver, schedule, steps, height, width)
        self.oddities |= dict.fromkeys(settings.oddities)
        negative = _text(values, "negative_prompt") if "negative_prompt" in values else ""
        request = RowRequest(row.id, what, settings.guidance, seed, settings.steps, negative, solver, schedule, height, width)
        return request, settings.group

    def _label(self, values: Mapping[str, Any]) -> int:
        spec = cast(SiTSpec, self.model.main)
        for name in (PROMPT, "negative_prompt", "height", "width"):
            if name in values:
                raise ValueError(f"{spec.name} is a class-label model and takes no {name}, got {values[name]!r}")
        if LABEL not in values:
            raise ValueError(f"{spec.name} draws classes, and the row has no {LABEL}")
        value = values[LABEL]
        text = value if isinstance(value, str) else str(_whole(values, LABEL))
        labels = parse_labels(text, spec.num_classes, spec.class_names, spec.name)
        if len(labels) != 1:
            raise ValueError(f"a row is one picture of one class, and {text!r} names {len(labels)}")
        return labels[0]

    def _prompt(self, values: Mapping[str, Any]) -> str:
        name = self.model.main.name
        if LABEL in values:
            raise ValueError(f"{name} draws from prompts and has no classes, got {LABEL} {values[LABEL]!r}")
        if PROMPT not in values:
            raise ValueError(f"{name} draws from prompts, and the row has none")
        return check_prompts([_text(values, PROMPT)])[0]

    def _settle(
        self,
        guidance: str | None,
        solver: str | None,
        schedule: str | None,
        steps: int | None,
        height: int | None,
        width: int | None,
    ) -> _Settings:
        rule = choose_rule(RuleOptions(guidance, {}), self.model.main, self.source)
        if isinstance(rule, ParsedRules) or rule.guidance.samples is not None:
            raise ValueError(f"a row has one rule with one of each number, got {guidance!r}")
        text = PromptOptions(height=height, width=width)
        plan = self.model.plan(rule.guidance, RunOptions(steps, solver, schedule), text)
        return _Settings(rule.text, plan.schedule.steps, (*rule.notes, *plan.warnings), _group(plan, solver, schedule))


def _group(plan: Plan, solver: str | None, schedule: str | None) -> Group:
    """Rows of one group run the same branches at the same calls of the same levels; scales and other numbers may differ."""
    alone = replace(ProgramKey.of(plan, 1), shared=True)
    return (solver, schedule, plan.schedule.steps, alone, plan.live)


def _whole(values: Mapping[str, Any], name: str) -> int:
    """A whole number: of text too, and of a float without a fraction, which data frames make of columns with gaps."""
    value, requirement = values[name], f"{name} must be a whole number"
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _parsed(value, requirement) if isinstance(value, str) else whole_number(value, requirement)


def _parsed(text: str, requirement: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{requirement}, got {text!r}") from None


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, got {value!r}")
    return value.strip() if name != PROMPT else value
