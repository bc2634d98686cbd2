"""``segue reproduce distilled``: an adapter beside the exact rule: cost, scores, distance of finished samples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.engine import Engine
from segue.engine.rules.presets import parse_rule
from segue.engine.running.progress import progress_bar

from ..allocator import DEFAULT
from ..calibration.finished import distances
from ..quality.origins import DISTILLED, Origin
from ..quality.real_samples import RealSamples
from ..quality.rows import held_rows
from ..quality.score_command import default_batch
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import Trial, networks_of
from ..quality.tuning import UNGUIDED
from ..rows import Row, append_rows, check_writable, make_row
from ..runs import command_line
from ..scores.judge import Judge
from ..suites import UNFINISHED
from ..telemetry import environment
from ..timing import Statistic
from .distilled_page import COMMAND, DISTANCE, SUITE, TITLE, distilled_content
from .durations import rows_and_durations, timed
from .inference import show
from .page import check_folder
from .training import Scoring

HELD_OUT = 700_000  # first seed of the finished samples that distances are of


@dataclass(frozen=True)
class Distances:
    """Finished samples of ``trial`` by an exact rule, and how far others of the same noise are from them."""

    base: Engine
    adapted: Engine
    rule: str
    trial: Trial

    @property
    def case(self) -> str:
        """What is measured: the networks, the rule, the samples."""
        trial = self.trial
        drawn = f"{trial.samples} samples from seed {trial.first_seed}, {trial.steps} steps, {trial.solver}"
        return f"{networks_of(self.base)}, {self.rule}, {drawn}"

    @property
    def variants(self) -> dict[str, tuple[Engine, str]]:
        """Who is compared with the exact rule: unguided samples, and those of the adapter."""
        return {UNGUIDED: (self.base, UNGUIDED), networks_of(self.adapted): (self.adapted, UNGUIDED)}

    def measure(self, variants: dict[str, tuple[Engine, str]]) -> dict[str, Tensor]:
        """The relative distances ``|x - x_exact| / |x_exact|`` [samples] of each."""
        calls = sum(self.trial.plan(engine, parse_rule(rule, engine.spec)).calls for engine, rule in variants.values())
        calls += self.trial.plan(self.base, parse_rule(self.rule, self.base.spec)).calls
        found: dict[str, list[Tensor]] = {name: [] for name in variants}
        with progress_bar("distances", calls * self.trial.batches) as advance:
            for labels, seeds in self.trial.parts(self.base.spec.num_classes):
                exact = self._finished(self.base, self.rule, labels, seeds, advance)
                for name, (engine, rule) in variants.items():
                    found[name].append(distances(self._finished(engine, rule, labels, seeds, advance), exact))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _finished(self, engine: Engine, rule: str, labels: list[int], seeds: list[int], advance: Callable[[], None]) -> Tensor:
        """Latents [B, C H W] fp64 on the host."""
        guidance = parse_rule(rule, engine.spec).guidance
        options = {"steps": self.trial.steps, "solver": self.trial.solver, "callback": lambda info: advance()}
        return engine.sample(labels, guidance, seeds=seeds, **options).latents.double().cpu().flatten(1)


def reproduce_distilled(
    source: Source,
    rule: str | None,
    drawing: dict,
    distances: dict,
    judged: Callable[[Engine], tuple[tuple[Judge, ...], RealSamples]],
    out: Path,
    minutes: float | None,
    into: Path | None,
    echo: Callable[[str], None] = print,
) -> int:
    """Score and measure what is missing within ``minutes``, write the page or print it; returns the exit code.

    ``source`` names an adapter; ``rule`` None is what that says it stands for.  ``drawing`` and ``distances`` are fields of a
    :class:`Trial`.  Raises ``ValueError`` before any work.
    """
    limit = TimeLimit(minutes)
    check_writable(out)
    adapted = open_engine(source)
    base = open_engine(replace(source, adapter=None, adapter_scale=None))
    stated = adapted.adapted.rule if adapted.adapted is not None else ""
    if not (rule or stated):
        raise ValueError(f"the adapter {source.adapter} does not say which rule it stands for: name it by -g")
    exact = parse_rule(rule or stated, base.spec).text
    where = environment(base.device, command_line(), DEFAULT)
    check_folder(into, where)
    batch = {"batch": default_batch(base)}
    judges, real = judged(base)
    scoring = Scoring(base, judges, real, Trial(**batch | drawing), where, out, limit, echo)
    far = Distances(base, adapted, exact, Trial(**batch | distances))
    plain, guided = scoring.scorer(base), scoring.scorer(adapted)
    timed_as = f"{COMMAND} {networks_of(adapted)}"
    code = 0
    with timed(out, where, timed_as):
        scoring.keep(Origin(networks_of(adapted), networks_of(base), DISTILLED, exact, 0, {"adapter": str(source.adapter)}))
        try:
            plain.score([UNGUIDED, exact])
            guided.score([UNGUIDED])
            append_rows(out, missing_distances(far, out, where, limit))
        except OutOfTimeError as error:
            echo(f"{error}; the same command goes on there")
            code = UNFINISHED
    rows = rows_and_durations(out, timed_as)
    content = distilled_content(rows, networks_of(base), networks_of(adapted), exact, scoring.tail, far.case, _command(source))
    show(content, into, COMMAND, TITLE, echo)
    return code


def missing_distances(far: Distances, path: Path, where, limit: TimeLimit) -> list[Row]:
    """Rows of those that the file lacks: the median, and the 20th and 80th percentile of the samples."""
    held = {(row.suite, row.case, row.variant) for row in held_rows(path).values()}
    wanted = {name: each for name, each in far.variants.items() if (SUITE, far.case, name) not in held}
    if not wanted:
        return []
    limit.check(DISTANCE, 0.0)
    found = far.measure(wanted)
    dtype = str(far.base.dtype).removeprefix("torch.")
    return [
        make_row(where, SUITE, far.case, name, DISTANCE, "relative", Statistic.of(values.numpy()), dtype)
        for name, values in found.items()
    ]


def _command(source: Source) -> str:
    return f"segue reproduce {COMMAND} --model {source.name} --adapter {source.adapter}"
