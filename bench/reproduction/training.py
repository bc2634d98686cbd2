"""``segue reproduce training``: every objective from one checkpoint, equal in steps, sampled with and without guidance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.engine.cli.options import Source as ModelSource
from segue.engine.cli.session import open_engine
from segue.engine.engine import Engine
from segue.engine.rules.presets import parse_rule
from segue.training.data.source import Source
from segue.training.starting_weights import StartingWeights, starting_weights

from ..allocator import DEFAULT
from ..quality.origins import SUITE as ORIGIN
from ..quality.origins import TRAINED, Origin
from ..quality.real_samples import RealSamples
from ..quality.rows import held_rows
from ..quality.score_command import default_batch
from ..quality.scoring import Scorer
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import Trial, networks_of
from ..quality.tuning import UNGUIDED
from ..rows import Environment, Row, append_rows, check_writable, read_rows
from ..runs import command_line
from ..scores.judge import Judge
from ..suites import UNFINISHED
from ..telemetry import environment
from ..training_cost import SUITE as COST
from .durations import rows_and_durations, timed
from .inference import show
from .objective_runs import ObjectiveRun, Training
from .page import check_folder
from .training_page import COMMAND, TITLE, training_content

GUIDED = ("cfg",)  # by the numbers of the model that all start from


@dataclass(frozen=True)
class Scoring:
    """How a network is scored: by whom, beside what, of how many samples, into which file; ``base`` is what all start from."""

    base: Engine
    judges: tuple[Judge, ...]
    real: RealSamples
    trial: Trial
    environment: Environment
    path: Path
    limit: TimeLimit = field(default_factory=TimeLimit)
    echo: Callable[[str], None] = print

    def scorer(self, engine: Engine) -> Scorer:
        """That of one network."""
        common = {"limit": self.limit, "echo": self.echo, "effective": True, "beside": self.base}
        return Scorer(engine, self.judges, self.real, self.trial, self.environment, self.path, **common)

    def opened(self, path: Path) -> Engine:
        """The engine of an exported network, as the base runs."""
        device = str(self.base.device)
        return open_engine(ModelSource(str(path), device=device, dtype=str(self.base.dtype).removeprefix("torch.")))

    def keep(self, origin: Origin) -> None:
        """Tell the file what a network came of, once."""
        if (ORIGIN, origin.networks) not in {(row.suite, row.case) for row in held_rows(self.path).values()}:
            append_rows(self.path, [origin.row(self.environment)])

    @property
    def tail(self) -> str:
        """What every case ends with: how samples are drawn, and what they are compared with."""
        return self.trial.case(self.base, self.real.name).removeprefix(f"{networks_of(self.base)}, ")


def origin_of(run: ObjectiveRun, training: Training, engine: Engine, base: Engine) -> Origin:
    """What the network of a run came of."""
    settings = training.settings_of(run)
    facts: dict[str, Any] = {
        "seed": run.seed,
        "weight": run.objective.weight,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seconds_per_step": training.seconds_per_step(run),
        "device": settings.device,
    }
    return Origin(networks_of(engine), networks_of(base), TRAINED, run.weak, settings.steps, facts)


def built_in_rules(runs: Sequence[ObjectiveRun]) -> list[str]:
    """CFG at the scale that each objective builds in: what plain training is guided by for a fair comparison."""
    scales = {run.objective.effective_scale for run in runs} - {1.0}
    return [f"cfg:scale={scale:.3g}" for scale in sorted(scales)]


def train_and_score(
    runs: Sequence[ObjectiveRun], training: Training, begun: StartingWeights, scoring: Scoring, guided: Sequence[str]
) -> int:
    """Train all runs, then score them: unguided, then by the rules ``guided``, then plain training at every built-in scale.

    Returns the exit code; raises ``KeyboardInterrupt`` at Ctrl-C.  What was done is kept, and the next call goes on.
    """
    engines: dict[ObjectiveRun, Engine] = {}
    try:
        for run in runs:
            engines[run] = scoring.opened(training.train(run, begun, scoring.limit, scoring.echo))
            scoring.keep(origin_of(run, training, engines[run], scoring.base))
        scorers = [scoring.scorer(engine) for engine in (scoring.base, *engines.values())]
        for texts in ([UNGUIDED], list(guided)):
            for scorer in scorers:
                scorer.score(texts)
        plain = engines.get(ObjectiveRun("none", 0))
        if plain is not None:
            scoring.scorer(plain).score(built_in_rules(runs))
    except OutOfTimeError as error:
        scoring.echo(f"{error}; the same command goes on there")
        return UNFINISHED
    return 0


def reproduce_training(
    start: str,
    source: Source,
    runs: Sequence[ObjectiveRun],
    settings: dict[str, Any],
    scores: "ScoreOptions",
    out: Path,
    folder: Path,
    minutes: float | None,
    into: Path | None,
    echo: Callable[[str], None] = print,
) -> int:
    """Train and score what is missing within ``minutes``, write the page or print it; returns the exit code."""
    limit = TimeLimit(minutes)
    check_writable(out)
    training = Training(start, source, settings, folder)
    for run in runs:
        training.settings_of(run)
    begun = begun_from(training)
    base = open_engine(ModelSource(start, device=settings["device"], dtype="float32"))
    where = environment(base.device, command_line(), DEFAULT)
    check_folder(into, where)
    trial = Trial(**{"batch": default_batch(base)} | scores.drawing)
    judges, real = scores.judged(base)
    scoring = Scoring(base, judges, real, trial, where, out, limit, echo)
    scoring.scorer(base)  # its refusals belong to the beginning
    guided = [parse_rule(text, base.spec).text for text in scores.guided]
    timed_as = f"{COMMAND} {networks_of(base)}"
    with timed(out, where, timed_as):
        code = train_and_score(runs, training, begun, scoring, guided)
    rows, costs = rows_and_durations(out, timed_as), cost_rows(scores.costs)
    content = training_content(rows, networks_of(base), scoring.tail, guided, costs, scores.command)
    show(content, into, COMMAND, TITLE, echo)
    return code


def begun_from(training: Training) -> StartingWeights:
    """The start of all runs, with a head where the checkpoint has none, for the objectives that read one."""
    begun = training.weights()
    if begun.spec.exits:
        return begun
    return starting_weights(training.start, training.source, exit_layer=max(1, begun.spec.depth // 3))


@dataclass(frozen=True)
class ScoreOptions:
    """What the command was told of scores: fields of a :class:`Trial`, who judges, rules, and where costs were measured."""

    drawing: dict[str, Any]
    judged: Callable[[Engine], tuple[tuple[Judge, ...], RealSamples]]
    guided: Sequence[str] = GUIDED
    costs: Path | None = None
    command: str = f"segue reproduce {COMMAND}"


def cost_rows(path: Path | None) -> list[Row]:
    """The rows of ``segue bench training`` that a file holds."""
    return [row for row in read_rows(path) if row.suite == COST] if path is not None and path.exists() else []
