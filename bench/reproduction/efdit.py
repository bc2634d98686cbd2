"""``segue reproduce efdit``: larger pictures, ProbSparse attention and tiered labels, each beside what it replaces."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from segue.engine.engine import Engine
from segue.models.classifiers import load_classifier
from segue.models.spectrum import enlarge, radial_spectrum
from segue.training.data.herbarium import Herbarium

from ..allocator import DEFAULT
from ..quality.rows import RowForm, held_rows, metric_by
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..rows import Environment, Row, append_rows, check_writable
from ..runs import command_line
from ..scores.detail import HighFrequencies, Quarters
from ..scores.extractors import features_of
from ..scores.judge import Judge
from ..scores.units import FRECHET, UNITS
from ..suites import UNFINISHED
from ..telemetry import environment
from .efdit_page import COMMAND, LARGER, REAL_LEAVES, SPARSE, SPECTRUM, TIERED, TIMED, TITLE, efdit_content
from .efdit_runs import fine_tuned, tiered_and_flat
from .efdit_spectrum import draw_spectrum
from .efdit_times import attention_times
from .inference import show
from .page import check_folder

PARTS = ("upscaling", "attention", "time", "tiers")
REAL_SEED = 77  # of the stream of real leaves, which no training reads
AT_ONCE = 48


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
    def drawn(self) -> str:
        return f"{self.samples} samples from seed {self.first_seed}, {self.steps} steps, {self.rule}"


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

    def form(self, what: str) -> RowForm:
        return RowForm(self.where, f"{what}, {self.options.drawn}", "float32")

    def missing(self, form: RowForm, variant: str, judge: Judge, metric: str = FRECHET) -> bool:
        """Whether the file lacks that score."""
        return form.key(variant, metric_by(metric, judge.name)) not in self.held

    def keep(self, rows: list[Row]) -> None:
        append_rows(self.out, rows)
        for row in rows:
            self.echo(str(row))

    def draw(self, engine: Engine) -> tuple[Tensor, Tensor]:
        """Samples [N, C, H, W] in [-1, 1] and their labels, all classes in turn."""
        o, made = self.options, []
        labels = torch.arange(o.samples) % engine.spec.num_classes
        for first in range(0, o.samples, AT_ONCE):
            self.limit.check(f"samples of {engine.spec.name}", 0.0)
            part = labels[first : first + AT_ONCE].tolist()
            made.append(engine.sample(part, o.rule, steps=o.steps, seeds=o.first_seed + first).latents.cpu())
        return torch.cat(made).clamp(-1, 1), labels

    def upscaling(self) -> None:
        """Frechet distances at twice the size: the enhancer, bicubic interpolation, zeros in frequency, other real leaves."""
        form, judges = self.form(LARGER), larger_judges()
        wanted = ("enhancer", "bicubic", "zero-padding")
        if not any(self.missing(form, variant, judge) for variant in wanted for judge in judges):
            return
        engine = Engine.from_pretrained("herbarium", device="cpu")
        small, _ = self.draw(engine)
        size = [2 * side for side in small.shape[-2:]]
        made = {
            "enhancer": engine.upscaler(2)(small),
            "bicubic": F.interpolate(small, size=size, mode="bicubic"),
            "zero-padding": enlarge(small, *size),
            REAL_LEAVES: real_leaves(self.options.samples, size[0], REAL_SEED + 1),
        }
        made = {name: pictures.clamp(-1, 1) for name, pictures in made.items()}
        real = real_leaves(4 * self.options.samples, size[0], REAL_SEED)
        for judge in judges:
            seen = features_of(real, judge.features)
            for variant, pictures in made.items():
                self.keep(form.judged(variant, judge, judge.view(pictures), None, seen))
        if self.figures is not None:
            self.figures.mkdir(parents=True, exist_ok=True)
            draw_spectrum(self.figures / SPECTRUM, {name: radial_spectrum(pictures) for name, pictures in made.items()})

    def attention(self) -> None:
        """The judge's scores of full and of ProbSparse attention, before and after fine-tuning with it."""
        form, judge = self.form(SPARSE), leaf_judge()
        variants = {"full": {}, "probsparse": {"attention": "probsparse"}, f"probsparse, {self.options.tuning} steps": {}}
        if not any(self.missing(form, variant, judge) for variant in variants):
            return
        real = features_of(real_leaves(4 * self.options.samples, 32, REAL_SEED), judge.features)
        for variant, options in variants.items():
            if self.missing(form, variant, judge):
                tuned = ", " in variant
                source = fine_tuned(self.runs, self.options.tuning, self.limit, self.echo) if tuned else "herbarium"
                pictures, labels = self.draw(Engine.from_pretrained(source, device="cpu", **options))
                self.keep(form.judged(variant, judge, judge.view(pictures), labels, real))

    def time(self) -> None:
        """Ratios of ProbSparse over full attention at 1024 tokens of the width of DiT-XL, interleaved."""
        form = RowForm(self.where, TIMED, "float32")
        rows = [form.row("probsparse over full", metric, "ratio", found) for metric, found in attention_times().items()]
        self.keep([row for row in rows if form.key(row.variant, row.metric) not in self.held])

    def tiers(self) -> None:
        """Accuracy of species and genus of networks with a tiered and with a flat embedding, of few images a species."""
        o, judge, parents = self.options, leaf_judge(), Herbarium.parents
        for name, path in tiered_and_flat(self.runs, o.training, o.seeds, self.limit, self.echo):
            form = RowForm(self.where, f"{TIERED}, {o.training} steps, {o.drawn}", "float32", parents)
            if self.missing(form, name, judge):
                pictures, labels = self.draw(Engine.from_pretrained(path(), device="cpu"))
                scores = judge.scores(
                    pictures, labels, features_of(real_leaves(4 * o.samples, 32, REAL_SEED), judge.features), parents
                )
                self.keep(
                    [form.interval_row(name, metric_by(m, judge.name), UNITS[m], i, o.samples) for m, i in scores.items()]
                )


def larger_judges() -> tuple[Judge, Judge]:
    """Who sees pictures of 64 pixels: random convolutions of their high frequencies, the leaf judge in their quarters."""
    quarters = Quarters(load_classifier("herbarium-judge"))
    return Judge("high frequencies", HighFrequencies()), Judge("herbarium-judge in quarters", quarters)


def leaf_judge() -> Judge:
    classifier = load_classifier("herbarium-judge")
    return Judge("herbarium-judge", classifier.features, classifier)


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
    where = environment(torch.device("cpu"), command_line(), DEFAULT)
    check_folder(into, where)
    study = EFDiT(options, where, out, runs, TimeLimit(minutes), echo, into, held_rows(out))
    code = 0
    try:
        for part in options.parts:
            getattr(study, part)()
    except OutOfTimeError as error:
        echo(f"{error}; the same command goes on there")
        code = UNFINISHED
    content = efdit_content(list(held_rows(out).values()), options.drawn, f"segue reproduce {COMMAND}")
    show(content, into, COMMAND, TITLE, echo)
    return code
