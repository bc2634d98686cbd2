"""The load bench: each kind of request alone, every server at its limit, then all of them under one and the same load."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from segue.engine.scheduling.lane import RowCount
from segue.engine.scheduling.scheduler import StepScheduler

from ..correctness import full_single, gate
from ..quality.time_limit import OutOfTimeError
from ..rows import Row
from ..session import Session
from ..timing import Statistic, interleave, once
from .arrivals import AT_ONCE, Arrival, Kind, Mix
from .drawings import Drawings
from .open_loop import Answers, Clock, serve
from .percentiles import Percentiles
from .servers import ONE, REQUEST, SERVERS, STEP, open_server
from .settings import LoadSettings
from .tables import (
    AGAINST,
    ALONE,
    AS_CAPTURED,
    LATE,
    LATENCY,
    MOST_SLOWDOWN,
    NAME,
    SATURATION,
    SLOWDOWN,
    TAIL,
    THROUGHPUT,
    USED,
)
from .watched_rows import CapturedRows

ORDER = (REQUEST, STEP, ONE)  # request-level batching says how fast requests come


@dataclass(frozen=True)
class Piece:
    """Rows that are measured together: how to know them in the file, the work, and what measures them."""

    case: str
    variants: tuple[str, ...]
    flops: float
    rows: Callable[[], list[Row]]


@dataclass
class LoadBench:
    """One model under load in a session."""

    session: Session
    drawings: Drawings
    mix: Mix
    load: LoadSettings
    clock: Clock = field(default_factory=Clock)

    def run(self) -> None:
        """Measure what the file lacks, as far as servers draw what the engine draws, and as the time allows."""
        passed = False
        for piece in self.pieces():
            lacking = not self.session.holds(NAME, piece.case, piece.variants)
            if lacking and self.session.has_time(NAME, f"{piece.case} {piece.variants[0]}", piece.flops):
                if not (passed := passed or self._passes()):
                    return
                self.session.attempt(NAME, piece.case, partial(self._measure, piece), piece.flops)

    def _measure(self, piece: Piece) -> None:
        try:
            self.session.commit(piece.rows())
        except OutOfTimeError as error:
            self.session.unfinished += 1
            self.session.echo(f"{NAME} {piece.case} {piece.variants[0]}: not finished, {error}")

    def pieces(self) -> Iterator[Piece]:
        """Everything that is measured, in order."""
        work = {kind: self.drawings.flops(kind) for kind in self.mix.kinds}
        alone = sum(work.values()) * (self.session.settings.repetitions + 1)
        yield Piece(self._alone, tuple(map(str, self.mix.kinds)), alone, self._alone_rows)
        for turn, seed in enumerate(self.load.seeds):
            flops = sum(work[arrival.kind] for arrival in self._arrivals(AT_ONCE, seed))
            for name in ORDER:
                yield Piece(self._at_once(seed), (name,), flops, partial(self._saturation_rows, name, seed))
            first = turn % len(ORDER)  # as in rounds of other suites: none always comes first
            for name in (*ORDER[first:], *ORDER[:first]):
                open_loop = partial(self._open_loop_rows, name, seed)
                yield Piece(self._open_loop(seed), (name,), flops / self.load.rate, open_loop)
            yield Piece(self._open_loop(seed), tuple(AGAINST.values()), 0.0, partial(self._compared_rows, seed))

    # --- names -----------------------------------------------------------------------------------------------------------

    @property
    def _model(self) -> str:
        return self.drawings.workload.model.text

    @property
    def _alone(self) -> str:
        return f"{self._model}, alone"

    def _at_once(self, seed: int) -> str:
        return self.load.at_once(self._model, seed)

    def _open_loop(self, seed: int) -> str:
        return self.load.open_loop(self._model, seed)

    def _arrivals(self, rate: float, seed: int) -> tuple[Arrival, ...]:
        return self.mix.arrivals(self.load.requests, rate, seed)

    def _measured(self, case: str, variant: str, metric: str) -> float:
        """An earlier figure; raises :class:`OutOfTimeError` where there is none yet."""
        value = self.session.value(NAME, case, variant, metric)
        if value is None:
            raise OutOfTimeError(f"it waits for {metric} of {variant}")
        return value

    # --- the gate --------------------------------------------------------------------------------------------------------

    def _passes(self) -> bool:
        """Whether every server answers with the pictures that the engine draws of each request alone."""
        arrivals = self._one_of_each()
        with full_single():
            plain = self._drawn_alone(self.drawings, arrivals)
            half = self.drawings.engine.dtype != torch.float32
            exact = self._drawn_alone(self.drawings.in_single(), arrivals) if half else None
            judged = {}
            for name in SERVERS:
                with self._server(name, len(arrivals)) as server:
                    requests = [server.submit(arrival) for arrival in arrivals]
                    drawn = torch.cat([request.result() for request in requests])
                judged[name] = gate(drawn, plain, exact, f"{name} against each request alone")
        passed = [self.session.passes(NAME, f"{self._model} {name}", each) for name, each in judged.items()]
        return all(passed)

    def _one_of_each(self) -> list[Arrival]:
        """A request by every rule, with the fewest steps."""
        steps = min(self.mix.steps)
        return [Arrival(Kind(rule, steps), number, 0.0) for number, (rule, _) in enumerate(self.mix.shares)]

    @staticmethod
    def _drawn_alone(drawings: Drawings, arrivals: Sequence[Arrival]) -> torch.Tensor:
        return torch.cat([drawings.alone(arrival.kind, arrival.seed) for arrival in arrivals])

    def _server(self, name: str, queue: int) -> StepScheduler:
        return open_server(name, self.drawings.engine, self.drawings.understand, self.load.slots, queue)

    # --- rows ------------------------------------------------------------------------------------------------------------

    def _row(self, case: str, variant: str, metric: str, unit: str, statistic: Statistic, expected: float | None = None) -> Row:
        return self.session.row(NAME, case, variant, metric, unit, statistic, expected, str(self.mix))

    def _alone_rows(self) -> list[Row]:
        """Seconds of each kind of request alone."""
        settings = self.session.settings
        draws = {str(kind): partial(self.drawings.alone, kind, number) for number, kind in enumerate(self.mix.kinds)}
        seconds = interleave(draws, self.session.timer, settings.repetitions)
        return [self._row(self._alone, name, ALONE, "s", Statistic.of(values)) for name, values in seconds.items()]

    def _saturation_rows(self, name: str, seed: int) -> list[Row]:
        """Pictures a second where requests always wait."""
        answers, rows, _ = self._served(name, self._arrivals(AT_ONCE, seed))
        case = self._at_once(seed)
        return [
            self._row(case, name, SATURATION, "images/s", once(answers.throughput)),
            self._row(case, name, USED, "share", once(rows.used / rows.run)),
        ]

    def _open_loop_rows(self, name: str, seed: int) -> list[Row]:
        """Latencies under load."""
        rate = self.load.rate * self._measured(self._at_once(seed), REQUEST, SATURATION)
        alone = {kind: self._measured(self._alone, str(kind), ALONE) for kind in self.mix.kinds}
        arrivals, case = self._arrivals(rate, seed), self._open_loop(seed)
        answers, rows, captured = self._served(name, arrivals)
        slowdown = answers.latency / [alone[arrival.kind] for arrival in arrivals]
        made = []
        for metric, unit, samples in ((LATENCY, "s", answers.latency), (SLOWDOWN, "x", slowdown)):
            figures = Percentiles.of(samples).statistics()
            made += [self._row(case, name, f"{metric}, {which}", unit, figure) for which, figure in figures.items()]
        made += [
            self._row(case, name, THROUGHPUT, "images/s", once(answers.throughput), rate),
            self._row(case, name, USED, "share", once(rows.used / rows.run)),
            self._row(case, name, LATE, "s", once(float(answers.late.max()))),
        ]
        if captured.run:
            made.append(self._row(case, name, AS_CAPTURED, "share", once(captured.used / captured.run)))
        return made

    def _served(self, name: str, arrivals: Sequence[Arrival]) -> tuple[Answers, RowCount, RowCount]:
        """Answers to a sequence of requests, rows of their forwards, and what these would be at captured sizes."""
        on_cuda = self.drawings.engine.device.type == "cuda"
        first = [Arrival(each.kind, each.seed, 0.0) for each in arrivals] if on_cuda else self._one_of_each()
        with self._server(name, len(arrivals)) as server:
            serve(server, first, self.clock, 60 * self.session.minutes_left)  # buffers, and on CUDA graphs
            captured, before = CapturedRows(server), server.stats()
            answers = serve(server, arrivals, self.clock, 60 * self.session.minutes_left)
            after = server.stats()
        rows = RowCount(after.rows_used - before.rows_used, after.rows_run - before.rows_run)
        return answers, rows, captured.rows

    def _compared_rows(self, seed: int) -> list[Row]:
        """Each server in the figures of request-level batching."""
        case, made = self._open_loop(seed), []
        for name, variant in AGAINST.items():
            for metric, expected in ((TAIL, MOST_SLOWDOWN if name == STEP else None), (THROUGHPUT, None)):
                ratio = self._measured(case, name, metric) / self._measured(case, REQUEST, metric)
                made.append(self._row(case, variant, metric, "x", once(ratio), expected))
        return made
