"""``segue score``: from options to rows, and the tables of them."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.device import resolve_device
from segue.engine.engine import Engine
from segue.engine.rules.presets import calibrated_rule, default_rules, parse_rule
from segue.models.bundled import CLASSIFIERS
from segue.training.data.leaves import SIZE
from segue.training.data.species import SPECIES

from ..allocator import DEFAULT
from ..rows import Row
from ..runs import command_line
from ..scores.judge import Judge
from ..scores.units import EFFECTIVE
from ..suites import UNFINISHED
from ..telemetry import environment
from .judges import named_judge
from .real_samples import HERBARIUM, RealSamples, real_samples
from .saved_pictures import SavedPictures
from .saved_scores import score_saved
from .scoring import Scorer
from .tables import agreement_table, confusion_table, score_table
from .time_limit import OutOfTimeError, TimeLimit
from .trial import Trial
from .tuning import UNGUIDED

WITHOUT_WEIGHTS = ("colours", "textures")  # who judges where nobody is named and no classifier knows the classes
BATCH = {"cuda": 256}
BATCH_ELSEWHERE = 32


@dataclass(frozen=True)
class Panel:
    """Who judges, beside which real samples; None is the default of the model."""

    judges: Sequence[str] | None = None
    real: str | None = None
    real_count: int | None = None

    def named(self, device: torch.device, leaves: bool) -> tuple[Judge, ...]:
        """The judges; of ``leaves`` those that know them, where nobody is named."""
        names = self.judges or (tuple(CLASSIFIERS) if leaves else WITHOUT_WEIGHTS)
        return tuple(named_judge(name, device) for name in names)

    def of_model(self, engine: Engine) -> tuple[tuple[Judge, ...], RealSamples]:
        """The judges and the real samples for what a model draws."""
        return self.named(engine.device, draws_leaves(engine)), self.samples(engine)

    def samples(self, engine: Engine) -> RealSamples:
        """The real samples for what a model draws."""
        return real_samples(self.real, self.real_count, engine.spec)

    def of_pictures(self, saved: SavedPictures, device: torch.device) -> tuple[tuple[Judge, ...], RealSamples]:
        """The judges and the real samples for pictures: leaves of the herbarium, unless others are named."""
        if self.real is None and saved.size != (3, SIZE, SIZE):
            size = "x".join(map(str, saved.size[1:]))
            raise ValueError(
                f"pictures of {size} are no leaves of the herbarium: name real samples by --real FILE.npz or FOLDER"
            )
        leaves = self.real in (None, HERBARIUM)
        return self.named(device, leaves), real_samples(self.real or HERBARIUM, self.real_count, None)


@dataclass(frozen=True)
class Report:
    """What is printed: JSON rows, or tables with so many mistakes of each rule."""

    json: bool = False
    confusions: int = 0

    def __post_init__(self):
        if self.confusions < 0:
            raise ValueError(f"confusion must be at least 0, got {self.confusions}")

    def say(self, text: str) -> None:
        """A line while the work goes on; none where machines read."""
        if not self.json:
            print(text, flush=True)

    def show(self, rows: Sequence[Row], names: Sequence[str] = ()) -> None:
        if self.json:
            print(json.dumps([asdict(row) for row in rows]))
            return
        tables = [score_table(rows), agreement_table(rows)]
        tables += [confusion_table(rows, self.confusions, names)] if self.confusions else []
        if any(tables):
            print("\n" + "\n\n".join(table for table in tables if table))


def draws_leaves(engine: Engine) -> bool:
    """Whether a model's classes are the species of the herbarium, which its classifiers know."""
    return tuple(engine.spec.class_names) == SPECIES


def default_texts(engine: Engine, say: Callable[[str], None]) -> list[str]:
    """The rules that the model has numbers for, without those that need a network which the engine does not hold."""
    return possible(default_rules(engine.spec), engine, say)


def possible(names: Iterable[str], engine: Engine, say: Callable[[str], None]) -> list[str]:
    """Those of ``names`` that the engine's networks allow; the others are named with the reason."""
    texts = []
    for name in names:
        try:
            engine.plan(parse_rule(name, engine.spec).guidance)
        except ValueError as error:
            say(f"{name} is left out: {error}")
        else:
            texts.append(name)
    return texts


def equal_cfg(rows: Sequence[Row]) -> list[str]:
    """CFG at the effective scale of every rule that is another: what it must beat to be more than a stronger guidance."""
    scales = {row.variant: row.value for row in rows if row.metric == EFFECTIVE}
    others = [scale for rule, scale in scales.items() if rule != UNGUIDED and plain_scale(rule) is None]
    return list(dict.fromkeys(f"cfg:scale={scale:.2f}".rstrip("0").rstrip(".") for scale in others if scale > 1.005))


def plain_scale(rule: str) -> float | None:
    """The scale of a rule that is CFG and nothing else; None where it has a window, another term or a correction."""
    found = re.fullmatch(r"cfg:scale=([\d.]+)", rule)
    return None if found is None else float(found[1])


def default_batch(engine: Engine) -> int:
    """As many samples at once as a device takes well."""
    return BATCH.get(engine.device.type, BATCH_ELSEWHERE)


def score_model(
    source: Source,
    rules: Sequence[str] | None,
    panel: Panel,
    drawing: dict,
    out: Path,
    minutes: float | None,
    effective: bool,
    report: Report,
    beside_cfg: bool = False,
    calibration: str | None = None,
) -> int:
    """Score rules on a model; ``drawing`` are the fields of a :class:`Trial`.  Returns the exit code.

    ``beside_cfg``: also CFG at the effective scale of every rule; ``calibration``: also the rule that it is of, calibrated.
    """
    limit = TimeLimit(minutes)
    if beside_cfg and not effective:
        raise ValueError("--beside-cfg goes by effective scales: leave --no-effective-scale out")
    engine = open_engine(source)
    trial = Trial(**{"batch": default_batch(engine)} | drawing)
    judges, real = panel.of_model(engine)
    where = environment(engine.device, command_line(), DEFAULT)
    scorer = Scorer(engine, judges, real, trial, where, out, effective, limit, report.say)
    defaults = () if source.adapter else default_texts(engine, report.say)  # an adapter holds the guidance
    code, texts = 0, list(rules or (UNGUIDED, *defaults))
    if calibration is not None:
        calibrated = calibrated_rule(calibration)
        trial.plan(engine, calibrated)  # refuses other weights, another schedule, another solver
        texts.append(calibrated.text)
    floor = scorer.score_real()
    try:
        scorer.score(texts)
        if beside_cfg:
            texts += equal_cfg(scorer.held(texts))
            scorer.score(texts)
    except OutOfTimeError as error:
        report.say(f"{error}; the same command goes on there")
        code = UNFINISHED
    report.show([*floor, *scorer.held(texts)], engine.spec.class_names)
    report.say(f"\nrows in {out}")
    return code


def score_pictures(path: Path, panel: Panel, device: str | None, out: Path, report: Report) -> None:
    """Score pictures that exist."""
    where, saved = resolve_device(device), SavedPictures.open(path)
    judges, real = panel.of_pictures(saved, where)
    rows = score_saved(saved, judges, real, environment(where, command_line(), DEFAULT), out, report.say)
    report.show(rows, SPECIES if real.parents else ())
    report.say(f"\nrows in {out}")
