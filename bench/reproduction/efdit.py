"""``segue reproduce efdit``: larger pictures, ProbSparse attention and tiered labels, each beside what it replaces."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from segue.engine.engine import Engine
from segue.engine.rules.presets import ParsedRule, parse_rule
from segue.models.attention_kind import FULL_ATTENTION, PROBSPARSE
from segue.models.classifiers import load_classifier
from segue.models.spectrum import enlarge, radial_spectrum
from segue.training.data.herbarium import Herbarium

from ..allocator import DEFAULT
from ..quality.judges import named_judge
from ..quality.rows import RowForm, held_rows, metric_by
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import networks_of
from ..rows import Environment, Row, append_rows, check_writable
from ..runs import command_line
from ..scores.detail import HighFrequencies, Quarters
from ..scores.extractors import features_of
from ..scores.judge import Judge
from ..scores.units import FRECHET
from ..suites import UNFINISHED
from ..telemetry import environment
from .efdit_page import COMMAND, LARGER, REAL_LEAVES, SPARSE, SPECTRUM, TIERED, TIMED, TITLE, efdit_content
from .efdit_runs import fine_tuned, tiered_and_flat
from .efdit_spectrum import draw_spectrum, pictured
from .efdit_times import TIMED_PARTS, TIMES, attention_times
from .inference import show
from .page import check_folder

PARTS = ("upscaling", "attention", "time", "tiers")
ENLARGED = ("enhancer", "bicubic", "zero-padding")
JUDGE, CPU = "herbarium-judge", torch.device("cpu")
REAL_SEED = 77  # of the stream of real leaves; trainings here have seeds of their own, from 0
AT_ONCE = 48
PICTURED = 192  # samples of which a picture of spectra shows the mean: four of every species
TIER_RULE = "cfg"  # of the small networks with tiered and flat labels, which have no early-exit head


@dataclass(frozen=True)
class EFDiTOptions:
    """``samples`` from ``first_seed``, ``steps`` steps each, by ``rule``; ``tuning`` and ``training`` are training steps."""

    samples: int = 960
    first_seed: int = 200_000
    steps: int = 28
    rule: str = "sgg-exit"
    tuning: int = 300
    training: int = 1_000
    seeds: int = 3
    parts: tuple[str, ...] = PARTS

    def __post_init__(self):
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"unknown part {part!r}; there are: {', '.join(PARTS)}")
        for name, least in (("samples", 20), ("steps", 1), ("tuning", 1), ("training", 1), ("seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def variants(self) -> dict[str, tuple[str, ...]]:
        """What is scored of each kind of case."""
        attention = [FULL_ATTENTION, PROBSPARSE, *(f"{kind}, {self.tuning} steps" for kind in (FULL_ATTENTION, PROBSPARSE))]
        pairs = [f"{kind}, seed {seed}" for seed in range(self.seeds) for kind in ("tiered", "flat")]
        return {LARGER: ENLARGED, SPARSE: tuple(attention), TIERED: tuple(pairs)}

    def drawn(self, rule: ParsedRule) -> str:
        """What a case ends with: how its samples are drawn, with all numbers of the rule."""
        return f"{self.samples} samples from seed {self.first_seed}, {self.steps} steps, {rule.text}"


@dataclass
class EFDiT:
    """What is measured goes into ``out`` as rows, part by part; what is there already is left."""

    options: EFDiTOptions
    where: Environment
    out: Path
    runs: Path
    limit: TimeLimit
    echo: Callable[[str], None]
    figures: Path | None = None
    held: dict = field(default_factory=dict)

    @property
    def picture(self) -> Path | None:
        """Where the spectra are drawn; None where nothing is."""
        return None if self.figures is None else self.figures / SPECTRUM

    @cached_property
    def base(self) -> Engine:
        """The network that draws, or that those which draw are made of; its numbers are those of the rules."""
        return Engine.from_pretrained("herbarium", device=CPU)

    @cached_property
    def judge(self) -> Judge:
        """Who sees pictures of 32 pixels."""
        return named_judge(JUDGE, CPU)

    @cached_property
    def real(self) -> Tensor:
        """The judge's features [M, F] of real leaves of 32 pixels, four for every sample."""
        return features_of(real_leaves(4 * self.options.samples, 32, REAL_SEED), self.judge.features)

    @cached_property
    def rules(self) -> dict[str, ParsedRule]:
        """By what samples are drawn, for each kind of case."""
        rule, tiers = (parse_rule(text, self.base.spec) for text in (self.options.rule, TIER_RULE))
        return {LARGER: rule, SPARSE: rule, TIERED: tiers}

    @property
    def drawn(self) -> dict[str, str]:
        """What the cases of each kind end with."""
        return {kind: self.options.drawn(rule) for kind, rule in self.rules.items()}

    def form(self, kind: str, networks: str, parents: tuple[int, ...] = ()) -> RowForm:
        return RowForm(self.where, f"{kind}, {networks}, {self.drawn[kind]}", "float32", parents)

    @property
    def larger_form(self) -> RowForm:
        """That of larger pictures."""
        return self.form(LARGER, networks_of(self.base))

    def missing(self, form: RowForm, variant: str, judge: Judge, metric: str = FRECHET) -> bool:
        """Whether the file lacks that score."""
        return form.key(variant, metric_by(metric, judge.name)) not in self.held

    def keep(self, rows: list[Row]) -> None:
        append_rows(self.out, rows)
        for row in rows:
            self.echo(str(row))

    def draw(self, engine: Engine, kind: str, count: int) -> tuple[Tensor, Tensor]:
        """The first ``count`` samples [N, C, H, W] in [-1, 1] and their labels, all classes in turn."""
        o, made = self.options, []
        labels = torch.arange(count) % engine.spec.num_classes
        for first in range(0, count, AT_ONCE):
            self.limit.check(f"samples of {engine.spec.name}", 0.0)
            part = labels[first : first + AT_ONCE].tolist()
            made.append(engine.sample(part, self.rules[kind].guidance, steps=o.steps, seeds=o.first_seed + first).latents.cpu())
        return torch.cat(made).clamp(-1, 1), labels

    def upscaling(self) -> None:
        """Frechet distances at twice the size, and a picture of the spectra of the first :data:`PICTURED` samples."""
        form, judges = self.larger_form, larger_judges()
        made: dict[str, Tensor] = {}
        if any(self.missing(form, variant, judge) for variant in ENLARGED for judge in judges):
            made = self.larger(self.options.samples)
            real = real_leaves(4 * self.options.samples, self.larger_size[0], REAL_SEED)
            for judge in judges:
                seen = features_of(real, judge.features)
                for variant, pictures in made.items():
                    self.keep(form.judged(variant, judge, judge.view(pictures), None, seen))
        if self.picture is not None and not pictured(self.picture, form.case):
            count = min(PICTURED, self.options.samples)
            made = made or self.larger(count)
            self.picture.parent.mkdir(parents=True, exist_ok=True)
            spectra = {name: radial_spectrum(pictures[:count]) for name, pictures in made.items()}
            draw_spectrum(self.picture, form.case, count, spectra)

    @property
    def larger_size(self) -> tuple[int, int]:
        """That of the base's samples, twice."""
        return 2 * self.base.spec.height, 2 * self.base.spec.width

    def larger(self, count: int) -> dict[str, Tensor]:
        """The first ``count`` samples [N, C, 2 H, 2 W] by the enhancer and by the plain ways, and as many other real leaves."""
        small, _ = self.draw(self.base, LARGER, count)
        made = {
            "enhancer": self.base.upscaler(2)(small),
            "bicubic": F.interpolate(small, size=self.larger_size, mode="bicubic"),
            "zero-padding": enlarge(small, *self.larger_size),
            REAL_LEAVES: real_leaves(count, self.larger_size[0], REAL_SEED + 1),
        }
        return {name: pictures.clamp(-1, 1) for name, pictures in made.items()}

    def attention(self) -> None:
        """The judge's scores of full and of ProbSparse attention, each before and after equal steps of fine-tuning with it."""
        form = self.form(SPARSE, networks_of(self.base))
        kinds = (FULL_ATTENTION, PROBSPARSE)
        as_it_is = [partial(Engine.from_pretrained, "herbarium", device=CPU, attention=kind) for kind in kinds]
        opened: list[Callable[[], Engine]] = [*as_it_is, *(partial(self._fine_tuned, kind) for kind in kinds)]
        for variant, engine in zip(self.options.variants[SPARSE], opened, strict=True):
            if self.missing(form, variant, self.judge):
                pictures, labels = self.draw(engine(), SPARSE, self.options.samples)
                self.keep(form.judged(variant, self.judge, self.judge.view(pictures), labels, self.real))

    def _fine_tuned(self, attention: str) -> Engine:
        path = fine_tuned(self.runs, attention, self.options.tuning, self.limit, self.echo)
        return Engine.from_pretrained(path, device=CPU)

    def time(self) -> None:
        """Ratios of ProbSparse over full attention at 1024 tokens of the width of DiT-XL, interleaved."""
        form = RowForm(self.where, TIMED, "float32")
        if not all(form.key(TIMES, metric) in self.held for metric in TIMED_PARTS):
            self.keep([form.row(TIMES, metric, "ratio", found) for metric, found in attention_times().items()])

    def tiers(self) -> None:
        """Accuracy of species and genus of networks with a tiered and with a flat embedding, of few images a species."""
        o = self.options
        form = self.form(TIERED, f"{o.training} training steps", Herbarium.parents)
        for name, path in tiered_and_flat(self.runs, o.training, o.seeds, self.limit, self.echo):
            if self.missing(form, name, self.judge):
                pictures, labels = self.draw(Engine.from_pretrained(path(), device=CPU), TIERED, o.samples)
                self.keep(form.judged(name, self.judge, self.judge.view(pictures), labels, self.real))


def larger_judges() -> tuple[Judge, Judge]:
    """Who sees pictures of 64 pixels: random convolutions of their high frequencies, the leaf judge in their quarters."""
    quarters = Judge(f"quarters of {named_judge(JUDGE, CPU).name}", Quarters(load_classifier(JUDGE)))
    return Judge("high frequencies", HighFrequencies()), quarters


def real_leaves(count: int, size: int, seed: int) -> Tensor:
    """New leaves [count, 3, size, size] of all species."""
    source = Herbarium(size)
    parts = [source.batch(index, min(AT_ONCE, count - index * AT_ONCE), seed)[0] for index in range(-(-count // AT_ONCE))]
    return torch.cat(parts)


def reproduce_efdit(
    options: EFDiTOptions,
    out: Path,
    runs: Path,
    minutes: float | None,
    into: Path | None,
    echo: Callable[[str], None] = print,
) -> int:
    """Measure what is missing within ``minutes``, write the page or print it; returns the exit code."""
    check_writable(out)
    where = environment(CPU, command_line(), DEFAULT)
    check_folder(into, where)
    study = EFDiT(options, where, out, runs, TimeLimit(minutes), echo, into, held_rows(out))
    code = 0
    try:
        for part in options.parts:
            getattr(study, part)()
    except OutOfTimeError as error:
        echo(f"{error}; the same command goes on there")
        code = UNFINISHED
    count = 0 if study.picture is None else pictured(study.picture, study.larger_form.case)
    command = shlex.join(["segue", "reproduce", COMMAND, "--out", str(out)])
    content = efdit_content(list(held_rows(out).values()), study.drawn, options.variants, command, count)
    show(content, into, COMMAND, TITLE, echo)
    return code
