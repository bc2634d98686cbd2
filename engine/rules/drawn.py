"""Conditions that are drawn per sample while a run is under way: at random, or as a classifier sees the sample.

A :class:`Draw` stands where a branch has its condition; the labels themselves live on the device, see
:mod:`segue.engine.running.draws`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ..numeric_input import counting_number, table_number
from .window import EVERYWHERE, Window, as_window

Form = Literal["rival", "cfg-swap", "ag-swap"]
Source = Literal["cond", "weak", "uncond"]
TEMPLATE = "{}"
HOLE = "{}"  # in a template: where the name of a class stands


@dataclass(frozen=True)
class ClassPrompts:
    """Classes of a model that takes prompts: distinct ``names``, and a ``template`` that makes a prompt of one."""

    names: tuple[str, ...]
    template: str = TEMPLATE

    def __post_init__(self):
        names = tuple(part.strip() for part in self.names.split(",")) if isinstance(self.names, str) else tuple(self.names)
        if len(names) < 2 or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError(f"classes of prompts are at least two distinct names, got {names}")
        if not isinstance(self.template, str) or self.template.count(HOLE) != 1:
            raise ValueError(f"a template holds {HOLE} once, where the name of a class stands, got {self.template!r}")
        object.__setattr__(self, "names", names)

    @property
    def prompts(self) -> list[str]:
        """The prompt of every class."""
        return [self.template.replace(HOLE, name) for name in self.names]

    def label_of(self, prompt: str) -> int:
        """The class whose name stands in a prompt: of several the longest.  Raises ``ValueError`` for none."""
        found = [name for name in self.names if name in prompt]
        if not found:
            raise ValueError(f"the prompt {prompt!r} names none of the rule's classes: {', '.join(self.names)}")
        return self.names.index(max(found, key=len))


@dataclass(frozen=True)
class Draw:
    """A condition that is another for every sample and step or call.  ``classes`` are those of a model that takes prompts."""

    classes: ClassPrompts | None = None

    def __post_init__(self):
        if not isinstance(self.classes, ClassPrompts | None):
            raise TypeError(f"classes of a drawn condition are ClassPrompts or None, got {self.classes!r}")

    @property
    def skeleton(self) -> "Draw":
        """What a program is built for: without the numbers that its tables hold."""
        return self

    def needs_schedule(self) -> str:
        """What in it has no meaning at one noise level alone; empty if nothing."""
        return ""


@dataclass(frozen=True)
class RandomCondition(Draw):
    """Any label but the sample's own, by the sample's seed and the number of the step."""

    def __str__(self) -> str:
        return "random label"

    def needs_schedule(self) -> str:
        return "a label that is drawn anew at every step"


COLDEST = 1e-6  # temperature: the likeliest label alone is left long before


@dataclass(frozen=True)
class ClassifierReference(Draw):
    """The label that a classifier takes a sample for instead of its own; a reconstruction, see :func:`.gfcg.GFCG`.

    ``classifier`` is a name, or a callable from clean estimates [B, C, H, W] fp32 to logits [B, classes].
    """

    classifier: str | Callable[..., Any] = ""
    form: Form = "rival"
    gain: float = 0.0
    lag: int = 1
    source: Source = "cond"
    every: int = 1
    interval: Window = EVERYWHERE
    temperature: float = 1.0
    model: str = "weak"

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.classifier) and not (isinstance(self.classifier, str) and self.classifier):
            raise TypeError(f"a classifier is a name, such as 'herbarium-classifier', or a callable, got {self.classifier!r}")
        for name, known in (("form", get_args(Form)), ("source", get_args(Source)), ("lag", (0, 1))):
            if (value := getattr(self, name)) not in known or isinstance(value, bool):
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
        object.__setattr__(self, "gain", _finite("gain", self.gain, 0.0))
        if self.gain and self.form != "ag-swap":
            raise ValueError(
                f"gain is of the form ag-swap, whose weight it raises where labels are swapped, got form {self.form}"
            )
        temperature = _finite("temperature", self.temperature, COLDEST)
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "every", counting_number(self.every, "every"))
        object.__setattr__(self, "interval", as_window(self.interval))
        if not isinstance(self.model, str) or self.model == "main":
            raise ValueError(f"model names the weak network beside the main one, got {self.model!r}")

    @property
    def skeleton(self) -> "ClassifierReference":
        return replace(self, gain=0.0, every=1, interval=EVERYWHERE, temperature=1.0)

    def needs_schedule(self) -> str:
        if self.lag:
            return "a label that was chosen at the call before (lag=1)"
        if self.every > 1:
            return f"a label that is chosen at every {self.every} calls"
        return f"the interval {self.interval}" if self.interval.kind in ("steps", "fraction") else ""

    @property
    def swaps(self) -> bool:
        """Whether the plain reference stands in where the classifier prefers the sample's own label."""
        return self.form != "rival"

    @property
    def classifier_name(self) -> str:
        """For a person to read."""
        if isinstance(self.classifier, str):
            return self.classifier
        return getattr(self.classifier, "__name__", type(self.classifier).__name__)

    def __str__(self) -> str:
        return {"rival": "rival label", "cfg-swap": "rival or uncond", "ag-swap": "rival or own label"}[self.form]


@dataclass(frozen=True)
class Chooser:
    """In the place of a branch's network: the classifier of ``draw``, which chooses labels and adds nothing to the output."""

    draw: ClassifierReference

    def __str__(self) -> str:
        return f"classifier {self.draw.classifier_name}"


def plain_condition(draw: Draw) -> str:
    """The condition that stands in where nothing was chosen: none of CFG's, else the sample's own."""
    return "uncond" if isinstance(draw, ClassifierReference) and draw.form == "cfg-swap" else "cond"


def class_prompts(names: Sequence[str] | str | None, template: str | None) -> ClassPrompts | None:
    """The classes of a rule for prompts.  Raises ``ValueError`` for a template without names."""
    if names is None:
        if template is not None:
            raise ValueError(f"a template makes prompts of classes, and there are none: give classes beside {template!r}")
        return None
    return ClassPrompts(names, TEMPLATE if template is None else template)  # type: ignore[arg-type]


def _finite(name: str, value: Any, low: float) -> float:
    value = table_number(value, name)
    if value < low:
        raise ValueError(f"{name} must be finite and at least {low:g}, got {value:g}")
    return value
