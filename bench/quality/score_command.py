"""``segue score``: from options to rows, and the tables of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.device import resolve_device
from segue.engine.engine import Engine
from segue.engine.files import whole_file
from segue.engine.rules.preset_numbers import DEFAULTS, preset_name
from segue.models.spec import SiTSpec
from segue.training.species import SPECIES

from ..allocator import DEFAULT
from ..readme_block import check_committed, update_block
from ..rows import Row, read_rows
from ..runs import command_line
from ..scores.judge import Judge
from ..suites import UNFINISHED
from ..telemetry import environment
from .judges import CLASSIFIERS, named_judge
from .real_samples import HERBARIUM, RealSamples, real_samples
from .saved_pictures import SavedPictures
from .saved_scores import score_saved
from .scoring import Scorer
from .tables import agreement_table, confusion_table, quality_tables, score_table
from .time_limit import OutOfTimeError, TimeLimit
from .trial import Trial, networks_of

WITHOUT_WEIGHTS = ("colours", "textures")  # who judges where nobody is named and no classifier knows the classes
BLOCK = "quality"  # the markers of a document that the tables stand between
BATCH = {"cuda": 256}
BATCH_ELSEWHERE = 32


@dataclass(frozen=True)
class Panel:
    """Who judges, beside which real samples; None is the default of the model."""

    judges: Sequence[str] | None = None
    real: str | None = None
    real_count: int | None = None

    def named(self, device, spec: SiTSpec | None) -> tuple[Judge, ...]:
        known = spec is None or tuple(spec.class_names) == SPECIES
        names = self.judges or (CLASSIFIERS if known else WITHOUT_WEIGHTS)
        return tuple(named_judge(name, device) for name in names)

    def samples(self, spec: SiTSpec) -> RealSamples:
        return real_samples(self.real, self.real_count, spec)


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
        print("\n" + "\n\n".join(table for table in tables if table))


def default_rules(engine: Engine) -> list[str]:
    """Unguided sampling, and every rule that the model has numbers for."""
    return ["none", *DEFAULTS.get(preset_name(engine.spec), {})]


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
) -> int:
    """Score rules on a model; ``drawing`` are the fields of a :class:`Trial`.  Returns the exit code."""
    limit = TimeLimit(minutes)
    engine = open_engine(source)
    trial = Trial(**{"batch": default_batch(engine)} | drawing)
    judges, real = panel.named(engine.device, engine.spec), panel.samples(engine.spec)
    where = environment(engine.device, command_line(), DEFAULT)
    scorer = Scorer(engine, judges, real, trial, where, out, effective, limit, report.say)
    code, texts = 0, list(rules or default_rules(engine))
    try:
        scorer.score(texts)
    except OutOfTimeError as error:
        report.say(f"{error}; the same command goes on there")
        code = UNFINISHED
    report.show(scorer.held(texts), engine.spec.class_names)
    return code


def score_pictures(path: Path, panel: Panel, device: str | None, out: Path, report: Report) -> None:
    """Score pictures that exist."""
    where, saved = resolve_device(device), SavedPictures.open(path)
    if panel.real is None and saved.size != (3, 32, 32):
        size = "x".join(map(str, saved.size[1:]))
        raise ValueError(f"pictures of {size} are no leaves of the herbarium: name real samples by --real FILE.npz or FOLDER")
    judges = panel.named(where, None)
    real = real_samples(panel.real or HERBARIUM, panel.real_count, None)
    rows = score_saved(saved, judges, real, environment(where, command_line(), DEFAULT), out, report.say)
    report.show(rows, SPECIES if real.parents else ())


def write_report(out: Path, source: Source | None, into: Path | None) -> None:
    """The tables of the rows that a file holds, of one model if it is named; printed, or between the markers of a file."""
    rows = read_rows(out)
    if source is not None:
        networks = networks_of(open_engine(source))
        rows = [row for row in rows if row.case.startswith(f"{networks}, ")]
    text = quality_tables(rows)
    if not text:
        raise ValueError(f"{out} holds no rows of quality" + (f" of {source.name} with these weights" if source else ""))
    if into is None:
        print(text)
        return
    check_committed(rows)
    updated = update_block(into.read_text(encoding="utf-8"), text, str(into), BLOCK)
    with whole_file(into) as part:
        part.write_text(updated, encoding="utf-8")
    print(f"wrote {into}")
