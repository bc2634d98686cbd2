"""The demo: real leaves above the same leaves by several rules, marked where a classifier takes one for another species."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from segue.engine.cli.sheets import Row, labelled_sheet
from segue.engine.engine import Engine
from segue.engine.images import latents_to_images
from segue.engine.rules.presets import ParsedRule, parse_rule

from ..quality.judges import short_name
from ..quality.rows import REAL
from ..quality.trial import Trial, pictures_of
from ..scores.judge import Judge
from .measured import Measured

LACKING = "not scored"
SHOWN = ("scale", "weight", "switch", "window", "form", "gain", "lag")  # of the options of a rule
STRIDE, SECOND = 2, 5  # of the species shown: from one genus to the next, and from the first to the second of a genus


@dataclass(frozen=True, eq=False)
class Line:
    """One row of the demo: ``pictures`` [B, 3, H, W] in [-1, 1], and the class that the judge takes each for.

    ``cost`` is nothing for what was not drawn, ``scores`` for what was not scored.
    """

    rule: str
    title: str
    detail: str
    pictures: Tensor
    found: tuple[int, ...]
    cost: str
    scores: Mapping[str, str]

    @property
    def caption(self) -> str:
        """What it costs and what it scores."""
        scores = [f"{title} {text}" for title, text in self.scores.items()] or [LACKING]
        return "  |  ".join([*filter(None, [self.cost]), *scores])


@dataclass(frozen=True)
class Demo:
    """Pictures of ``labels`` by rules on an engine, and of real samples, ``real(labels)``, as one who classifies sees them.

    Every picture is one of those that were scored: of the seed that ``trial`` has for the first sample of its class.
    ``measured`` are the scores, if there are any; ``lacking`` says why there are none.
    """

    engine: Engine
    judge: Judge
    real: Callable[[Tensor], Tensor]
    trial: Trial
    labels: tuple[int, ...]
    measured: Measured | None = None
    lacking: str = ""

    def __post_init__(self):
        if self.judge.logits is None:
            raise ValueError(f"{short_name(self.judge.name)} does not classify: it cannot tell one species from another")

    def real_line(self) -> Line:
        """The row of real samples."""
        pictures = self.real(torch.tensor(self.labels))
        return Line(REAL, "Real leaves", "no network drew them", pictures, self._found(pictures), "", self._scores(REAL))

    def line(self, text: str) -> Line:
        """The row of a rule, which is drawn."""
        rule = parse_rule(text, self.engine.spec)
        seeds, solver = [self.trial.first_seed + label for label in self.labels], self.trial.solver
        run = self.engine.sample(list(self.labels), rule.guidance, steps=self.trial.steps, solver=solver, seeds=seeds)
        pictures, cost = pictures_of(run), f"{run.plan.cost.relative:.2f}x"
        return Line(rule.text, rule.title, _detail(rule), pictures, self._found(pictures), cost, self._scores(rule.text))

    def wrong(self, line: Line) -> list[str]:
        """For every picture the class that it is taken for, if that is another than it should be, or nothing."""
        return [self._mark(asked, found) for asked, found in zip(self.labels, line.found, strict=True)]

    def sheet(self, lines: Sequence[Line], zoom: int | None = None) -> Image.Image:
        """The rows one below the other."""
        rows = [Row(own.title, latents_to_images(own.pictures), own.detail, own.caption, self.wrong(own)) for own in lines]
        headers = [self.engine.spec.class_names[label] for label in self.labels]
        return labelled_sheet(rows, zoom, headers, self.title(), self.note())

    def title(self) -> str:
        """What is shown, and what a frame means."""
        trial, seed = self.trial, self.trial.first_seed
        shown = f"{self.engine.spec.name}  |  {trial.steps} steps, {trial.solver} solver"
        return (
            f"{shown}  |  the same noise in every row, of seed {seed} + the number of the species\n"
            f"red: the classifier {short_name(self.judge.name)} takes the leaf for the species below it"
        )

    def note(self) -> str:
        """What the figures of the rows are."""
        cost = "1.00x: FLOPs of a picture relative to unguided sampling"
        if self.measured is None:
            return f"{cost}\nno accuracy and no FD: {self.lacking}"
        terms = (
            "accuracy: share taken for the species asked for;  FD: Frechet distance to real leaves, per feature, less is better"
        )
        return f"{cost};  {terms}\n{self.measured.footing()}"

    def _scores(self, rule: str) -> dict[str, str]:
        return {} if self.measured is None else self.measured.texts(rule)

    def _found(self, pictures: Tensor) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(self.judge.logits(pictures).argmax(dim=1).tolist())

    def _mark(self, asked: int, found: int) -> str:
        """The name of another class; of one of the same superclass the last word alone, for the first is that of both."""
        names, parents = self.engine.spec.class_names, self.engine.spec.parents
        if found == asked:
            return ""
        return names[found].split()[-1] if parents and parents[found] == parents[asked] else names[found]


def _detail(rule: ParsedRule) -> str:
    """The numbers of a rule and its form, without the layers: the sheet is for those who see a rule for the first time."""
    parts = [{name: dict(part.options)[name] for name in SHOWN if name in dict(part.options)} for part in rule.parts]
    told = ({name: f"{value:g}" if isinstance(value, float | int) else value for name, value in part.items()} for part in parts)
    return " + ".join(", ".join(f"{name} {value}" for name, value in part.items()) for part in told if part)


def default_classes(parents: Sequence[int], each: int = 2) -> tuple[int, ...]:
    """One or two classes of every superclass, other ones of each, so that all kinds of detail are seen."""
    chosen = []
    for place, parent in enumerate(dict.fromkeys(parents)):
        members = [label for label, own in enumerate(parents) if own == parent]
        chosen += sorted({members[(STRIDE * place + step) % len(members)] for step in (0, SECOND)[:each]})
    return tuple(chosen)
