"""The model that a server draws with: what it is called, which requests fit it, what each rule costs on it."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from segue.engine.core import EngineCore
from segue.engine.engine import Engine
from segue.engine.labels import check_labels
from segue.engine.planning.plan import Plan
from segue.engine.planning.plan_text import cost_text
from segue.engine.prompts.planning import latent_size
from segue.engine.rules.catalogue import ENTRIES
from segue.engine.rules.presets import ParsedRule, parse_rule
from segue.engine.rules.rule_names import NAMES
from segue.models.bundled import CLASSIFIERS

from .refusals import Refusal, shown
from .schemas import ImageRequest, PlanRequest
from .settings import Settings

DEFAULT_STEPS = 28
AREA = 2  # how much larger than the model's own size a picture may be, where nothing else is said
LONGEST_RANGE = 1000  # of layers or calls in the text of a rule: parsing makes a list of it
KEPT_PLANS = 256
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")


@dataclass(frozen=True)
class Order:
    """What a request asks the scheduler for, all of it checked: ``what`` is a class or a prompt, one picture of each seed."""

    what: int | str
    seeds: tuple[int | None, ...]
    rule: ParsedRule
    plan: Plan
    size: tuple[int, int]  # height and width as the engine takes them
    solver: str | None
    schedule: str | None
    negative_prompt: str | None
    deadline: float | None

    def options(self) -> dict[str, Any]:
        """Keywords of the scheduler's ``submit`` that all pictures share."""
        height, width = self.size
        steps = self.plan.schedule.steps
        how: dict[str, Any] = {"steps": steps, "schedule": self.schedule, "solver": self.solver}
        how |= {"height": height, "width": width, "negative_prompt": self.negative_prompt, "deadline": self.deadline}
        return {name: value for name, value in how.items() if value is not None}

    def pixels(self, factor: int) -> str:
        """The size of the picture as requests write it."""
        return f"{factor * self.plan.width}x{factor * self.plan.height}"


class ServedModel:
    """An engine under the name that requests call it by."""

    def __init__(self, engine: EngineCore, settings: Settings):
        self.engine, self.settings, self.since = engine, settings, int(time.time())
        self.classes = engine.spec if isinstance(engine, Engine) else None
        self.factor = _pixels_per_latent(engine)
        self.own_size = self.factor * engine.spec.height, self.factor * engine.spec.width
        self.most_pixels = settings.max_pixels or AREA * self.own_size[0] * self.own_size[1]
        self._planned = lru_cache(KEPT_PLANS)(self._plan)
        self.default_rule(settings.guidance)

    # --- requests ------------------------------------------------------------------------------------------------------

    def order(self, request: ImageRequest) -> Order:
        """Everything that a request says, checked; raises :class:`Refusal`, ``ValueError`` or ``TypeError``."""
        plan, rule = self.planned(request)
        count = request.n or 1
        if count > self.settings.max_images:
            raise Refusal(400, f"n must be at most {self.settings.max_images}, got {count}", param="n")
        first = request.seed
        seeds = (None,) * count if first is None else tuple((first + place) % (1 << 64) for place in range(count))
        if self.classes is not None and request.negative_prompt is not None:
            said = f"{self.engine.spec.name} is a class-label model and takes no negative_prompt, got"
            raise Refusal(400, f"{said} {shown(request.negative_prompt)}", param="negative_prompt")
        limit, wanted = self.settings.deadline, request.deadline
        deadline = min((seconds for seconds in (limit, wanted) if seconds is not None), default=None)
        height, width = plan.height, plan.width
        size = (height, width) if self.classes is not None else (height * self.factor, width * self.factor)
        how = request.solver, request.schedule, request.negative_prompt, deadline
        return Order(self._subject(request.prompt), seeds, rule, plan, size, *how)

    def planned(self, request: PlanRequest) -> tuple[Plan, ParsedRule]:
        """The plan of a request and its rule in full; raises as :meth:`order`."""
        if request.model is not None and request.model != self.settings.name:
            said = f"there is no model {shown(request.model)} here; there is {self.settings.name!r}"
            raise Refusal(404, said, param="model", code="model_not_found")
        if request.steps is not None and request.steps > self.settings.max_steps:
            raise Refusal(400, f"steps must be at most {self.settings.max_steps}, got {request.steps}", param="steps")
        height, width = self._size(request.size)
        text = request.guidance if request.guidance is not None else self.settings.guidance
        return self._planned(text or "none", request.steps, request.schedule, request.solver, height, width)

    def default_rule(self, text: str | None) -> None:
        """Raise ``ValueError`` unless the rule of requests that name none runs on the model."""
        try:
            self._planned(text or "none", None, None, None, None, None)
        except Refusal as refusal:
            raise ValueError(refusal.message) from None

    def _plan(
        self, text: str, steps: int | None, schedule: str | None, solver: str | None, height: int | None, width: int | None
    ) -> tuple[Plan, ParsedRule]:
        rule = self._rule(text)
        how: dict[str, Any] = {"steps": steps, "schedule": schedule} | ({} if solver is None else {"solver": solver})
        return self.engine.plan(rule.guidance, height=height, width=width, **how), rule

    def _rule(self, text: str) -> ParsedRule:
        """A rule for one picture, that reads no files of the server's."""
        check_ranges(text)
        rule = parse_rule(text, self.engine.spec)
        check_served(rule, text)
        return rule

    def _size(self, text: str | None) -> tuple[int | None, int | None]:
        """``WIDTHxHEIGHT`` in pixels as a latent size; the model's own for ``auto`` and for none."""
        if text is None or text == "auto":
            return None, None
        match = _SIZE.fullmatch(text)
        if not match:
            raise Refusal(400, f"size is WIDTHxHEIGHT in pixels, or auto, got {shown(text)}", param="size")
        width, height = map(int, match.groups())
        if width * height > self.most_pixels:
            raise Refusal(400, f"size must be at most {self.most_pixels} pixels in all, got {shown(text)}", param="size")
        try:
            size = latent_size(self.engine.spec, self.factor, height, width)
            self.engine.spec.check_size(*size)
        except ValueError as error:
            raise Refusal(400, f"size {shown(text)} cannot be drawn: {error}", param="size") from None
        return size

    def _subject(self, prompt: int | str) -> int | str:
        """A class by its number, or a prompt."""
        if self.classes is None:
            if isinstance(prompt, int) or not prompt.strip():
                raise Refusal(400, f"prompt is a text, got {shown(prompt)}", param="prompt")
            return prompt
        wanted = int(prompt) if isinstance(prompt, str) and prompt.strip().isdecimal() and len(prompt) < 10 else prompt
        try:
            found = check_labels([wanted], self.classes)
        except ValueError as error:
            message = str(error) if len(str(wanted)) <= 80 else f"{self.classes.name} has no class {shown(wanted)}"
            raise Refusal(400, message, param="prompt") from None
        if len(found) > 1:
            classes = ", ".join(str(label) for label in found)
            raise Refusal(400, f"{shown(prompt)} names {len(found)} classes, {classes}: choose one", param="prompt")
        return found[0]

    # --- what it tells of itself -----------------------------------------------------------------------------------------

    def entry(self) -> dict[str, Any]:
        """The model in a list of models, as OpenAI's API has it."""
        return {"id": self.settings.name, "object": "model", "created": self.since, "owned_by": "segue"}

    def described(self) -> dict[str, Any]:
        """The entry, and under ``segue`` what a page needs to offer: classes, sizes, rules with their costs, limits."""
        height, width = self.own_size
        spec, settings = self.engine.spec, self.settings
        names = () if self.classes is None else self.classes.class_names
        told = {
            "network": spec.name,
            "takes": "prompt" if self.classes is None else "class",
            "classes": list(names) or ([] if self.classes is None else list(map(str, range(self.classes.num_classes)))),
            "size": f"{width}x{height}",
            "guidance": settings.guidance or "none",
            "steps": DEFAULT_STEPS,
            "max_steps": settings.max_steps,
            "max_images": settings.max_images,
            "rules": self.rules,
        }
        return self.entry() | {"segue": told}

    @cached_property
    def rules(self) -> list[dict[str, Any]]:
        """The named rules that run on the model, planned at the usual steps."""
        return list(self._runnable())

    def _runnable(self) -> Iterator[dict[str, Any]]:
        for name, named in NAMES.items():
            if named.correction:
                continue
            try:
                plan, rule = self._planned(name, None, None, None, None, None)
            except (ValueError, Refusal):
                continue  # it needs numbers or networks that are not here
            yield {"name": name, "title": named.title, "formula": ENTRIES[name].formula} | plan_told(plan, rule)


def check_ranges(text: str) -> None:
    """Raise :class:`Refusal` for the text of a rule that takes long to read."""
    for first, last in _RANGE.findall(text):
        if max(len(first), len(last)) > len(str(LONGEST_RANGE)) or int(last) - int(first) > LONGEST_RANGE:
            raise Refusal(400, f"a range of a rule is at most {LONGEST_RANGE} long, got {shown(f'{first}-{last}')}")


def check_served(rule: ParsedRule, text: str) -> None:
    """Raise :class:`Refusal` unless a rule is for one picture, and reads no files of the server's."""
    for part in rule.parts:
        classifier = dict(part.options).get("classifier")
        if classifier is not None and classifier not in CLASSIFIERS:
            said = f"a classifier here is one of {', '.join(CLASSIFIERS)}, got {shown(classifier)}"
            raise Refusal(400, said, param="guidance")
    if rule.guidance.samples is not None:
        raise Refusal(400, f"a request has one rule with one of each number, got {shown(text)}", param="guidance")


def check_rule(text: str | None) -> None:
    """Raise ``ValueError`` for a default rule that no model can serve; what depends on the model, the model says."""
    try:
        check_ranges(text or "none")
        try:
            rule = parse_rule(text or "none")
        except ValueError:
            return
        check_served(rule, text or "none")
    except Refusal as refusal:
        raise ValueError(refusal.message) from None


def plan_told(plan: Plan, rule: ParsedRule) -> dict[str, Any]:
    """A plan in short: its rule in full, its cost, and which branches run when."""
    names = list(map(str, plan.branches))
    runs = [{"calls": run.stop - run.start, "branches": [names[branch] for branch in run.live]} for run in plan.runs]
    return {
        "guidance": rule.text,
        "steps": plan.schedule.steps,
        "calls": plan.calls,
        "evaluations": plan.cost.evaluations,
        "relative_cost": round(plan.cost.relative, 4),
        "cost": cost_text(plan),
        "runs": runs,
        "notes": [*rule.notes, *plan.warnings],
    }


def _pixels_per_latent(engine: Any) -> int:
    """How wide a latent of an engine is in its pictures."""
    if isinstance(engine, Engine):
        return 1 if engine.decoder is None else engine.decoder.factor
    return engine.pipe.vae_scale_factor
