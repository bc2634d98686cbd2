"""How long rules take beside unguided sampling: batches drawn in turn, as rows of a suite of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.engine.engine import Engine
from segue.engine.rules.presets import parse_rule

from ..quality.time_limit import TimeLimit
from ..quality.trial import networks_of
from ..quality.tuning import UNGUIDED
from ..rows import Environment, Row, append_rows, make_row, read_rows
from ..timing import interleave, paired_ratio, timer_for

SUITE, RATIO = "rule times", "time relative to unguided"
ROUNDS = 5


@dataclass(frozen=True)
class RuleTimes:
    """Times of rules on an engine by batches of ``batch`` samples of ``steps`` steps."""

    engine: Engine
    steps: int
    solver: str
    batch: int
    environment: Environment
    path: Path

    @property
    def case(self) -> str:
        """What is timed: the networks, how they draw."""
        return f"{networks_of(self.engine)}, batch {self.batch}, {self.steps} steps, {self.solver}"

    @property
    def _dtype(self) -> str:
        return str(self.engine.dtype).removeprefix("torch.")

    def measure(self, rules: Sequence[str], limit: TimeLimit) -> None:
        """Add a row for every one of ``rules`` that the file lacks; each is drawn in turn with unguided samples."""
        held = {row.key for row in read_rows(self.path)} if self.path.exists() else set()
        for rule in rules:
            if rule != UNGUIDED and (SUITE, self.case, rule, RATIO, self._dtype, self.environment.device) not in held:
                guided = self.engine.plan(parse_rule(rule, self.engine.spec).guidance, self.steps, solver=self.solver)
                with limit.piece(f"time of {rule}", (ROUNDS + 1) * self.batch * (guided.calls + guided.cost.evaluations)):
                    append_rows(self.path, [self._row(rule)])

    def _row(self, rule: str) -> Row:
        labels = [index % self.engine.spec.num_classes for index in range(self.batch)]

        def draw(text: str) -> None:
            guidance = parse_rule(text, self.engine.spec).guidance
            self.engine.sample(labels, guidance, steps=self.steps, solver=self.solver, seeds=list(range(self.batch)))

        variants = {text: lambda text=text: draw(text) for text in (UNGUIDED, rule)}
        seconds = interleave(variants, timer_for(self.engine.device), ROUNDS)
        statistic = paired_ratio(seconds[rule], seconds[UNGUIDED])
        return make_row(self.environment, SUITE, self.case, rule, RATIO, "x", statistic, self._dtype)
