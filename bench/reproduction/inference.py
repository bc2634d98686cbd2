"""``segue reproduce inference``: every rule at its own best numbers, CFG at its effective scale beside it, SGG's switch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.engine.cli.options import Source
from segue.engine.cli.session import open_engine
from segue.engine.engine import Engine

from ..allocator import DEFAULT
from ..quality.judges import named_judge
from ..quality.real_samples import RealSamples
from ..quality.score_command import WITHOUT_WEIGHTS, Panel, default_batch, draws_leaves, equal_cfg
from ..quality.scoring import Scorer
from ..quality.time_limit import OutOfTimeError, TimeLimit
from ..quality.trial import networks_of
from ..quality.tune_command import Budget, Roles
from ..quality.tuning import UNGUIDED
from ..rows import Row, check_writable
from ..runs import command_line
from ..scores.judge import Judge
from ..suites import UNFINISHED
from ..telemetry import environment
from .durations import SUITE, rows_and_durations, timed
from .inference_page import COMMAND, TITLE, inference_content
from .page import Content, check_folder, write_page
from .rule_list import SEGMENTED, SWITCHES, OwnRule, comparable, own_rule, switched
from .scored_rules import ScoredRules
from .switch_picture import draw_switch

LEAF_JUDGES = ("herbarium-judge", "efficientnet-lite0")
PICTURE = "inference-switch.png"


@dataclass(frozen=True)
class Comparison:
    """Rules by name on one model: who searches their numbers, who judges them, and the switches of SGG."""

    engine: Engine
    names: Sequence[str]
    searching: Scorer
    judging: Scorer
    switches: Sequence[float] = SWITCHES

    def run(self) -> tuple[list[OwnRule], list[str], int]:
        """Score all that is missing; the rules whose numbers are known, the rules of the switch, and the exit code.

        In this order: every rule at its own numbers, CFG at the effective scale of each, SGG over its switch.
        """
        own, code = self.own()
        segmented = next((rule.text for rule in own if rule.name == SEGMENTED), None)
        moved = [] if segmented is None else switched(segmented, self.engine, self.switches)
        texts = [rule.text for rule in own]
        try:
            self.judging.score(texts)
            self.judging.score(equal_cfg(self.judging.held(texts)))
            self.judging.score(moved)
        except OutOfTimeError as error:
            self.judging.echo(f"{error}; the same command goes on there")
            code = UNFINISHED
        return own, moved, code

    def own(self) -> tuple[list[OwnRule], int]:
        """The rules whose numbers are known or were found in time, and the exit code."""
        found, code = [], 0
        for name in self.names:
            try:
                found.append(own_rule(name, self.engine, self.searching))
            except OutOfTimeError as error:
                self.judging.echo(f"{name}: {error}; the same command goes on there")
                code = UNFINISHED
        return found, code

    def rows(self) -> list[Row]:
        """All rows of the case, and the durations of the command."""
        case = self.judging.form.case
        every = rows_and_durations(self.judging.path, duration_of(self.engine))
        return [row for row in every if (row.case, row.dtype) == (case, self.judging.form.dtype) or row.suite == SUITE]


def duration_of(engine: Engine) -> str:
    """What durations of this command are kept under, model by model."""
    return f"{COMMAND} {networks_of(engine)}"


def reproduce_inference(
    source: Source,
    roles: Roles,
    real: RealSamples | None,
    budget: Budget,
    switches: Sequence[float],
    out: Path,
    minutes: float | None,
    into: Path | None,
    page: str,
    command: str,
    echo: Callable[[str], None] = print,
) -> int:
    """Score what is missing within ``minutes``, write ``into/PAGE.md`` or print it; returns the exit code.

    ``real`` None: those of ``roles``.  ``command`` is what scores one more rule.  Raises ``ValueError`` before any work.
    """
    limit = TimeLimit(minutes)
    for level in switches:
        if not 0 < level < 1:
            raise ValueError(f"a switch is a noise level inside (0, 1), got {level:g}")
    check_writable(out)
    engine = open_engine(source)
    where = environment(engine.device, command_line(), DEFAULT)
    check_folder(into, where)
    search, trial = budget.trials(default_batch(engine))
    asked = default_roles(roles, engine)
    chooser, judges = asked.named(engine)
    if asked is not roles:  # who judges here by default is not whom segue score asks by default
        command = " ".join([command, *(f"--judge {name}" for name in asked.panel.judges or ())])
    samples = roles.panel.samples(engine) if real is None else real
    common = {"real": samples, "environment": where, "path": out, "limit": limit, "echo": echo}
    names = comparable(engine, echo)
    searching = Scorer(engine, (chooser,), trial=search, **common)
    judging = Scorer(engine, judges, trial=trial, effective=True, **common)
    comparison = Comparison(engine, names, searching, judging, switches)
    with timed(out, where, duration_of(engine)):
        judging.score_real()
        own, moved, code = comparison.run()
    finish(comparison, own, moved, into, page, command, echo)
    return code


def default_roles(roles: Roles, engine: Engine) -> Roles:
    """Who judges where nobody is named: one who knows leaves and one who knows pictures, or features without weights."""
    if roles.panel.judges:
        return roles
    judges = LEAF_JUDGES if draws_leaves(engine) else WITHOUT_WEIGHTS[1:]
    return Roles(roles.extractor, Panel(judges, roles.panel.real, roles.panel.real_count))


def judges_of(names: Sequence[str] | None, engine: Engine) -> tuple[Judge, ...]:
    """The judges by name, or the default ones of a model."""
    chosen = names or (LEAF_JUDGES if draws_leaves(engine) else WITHOUT_WEIGHTS[1:])
    return tuple(named_judge(name, engine.device) for name in chosen)


def finish(
    comparison: Comparison,
    own: Sequence[OwnRule],
    moved: Sequence[str],
    into: Path | None,
    page: str,
    command: str,
    echo: Callable[[str], None],
) -> None:
    """Write the page and its picture, or print it."""
    rows, case, picture = comparison.rows(), comparison.judging.form.case, None
    if into is not None:
        beside = {rule.name: rule.text for rule in own if rule.name in (UNGUIDED, "cfg")}
        name = PICTURE.replace(COMMAND, page)
        into.mkdir(parents=True, exist_ok=True)
        picture = name if draw_switch(into / name, ScoredRules.of(rows), moved, beside) else None
    unsearched = [name for name in comparison.names if name not in {rule.name for rule in own}]
    content = inference_content(rows, own, moved, command, picture, case, unsearched)
    show(content, into, page, TITLE, echo)


def show(content: Content, into: Path | None, page: str, title: str, echo: Callable[[str], None]) -> None:
    """The content in the page of a folder, or printed."""
    if into is None:
        echo(content.text())
        return
    for path in write_page(into, page, title, content):
        echo(f"wrote {path}")
