"""What a scheduler adds to its networks: the time of a tick in which none of them runs, and that of a request that joins."""

from functools import partial

import numpy as np

from segue.engine.scheduling.scheduler import StepScheduler

from ..rows import Row
from ..session import Session
from ..timing import Statistic
from .arrivals import SHARES, Arrival, Kind
from .drawings import Drawings
from .servers import STEP, open_server
from .tables import JOINING, NAME, OUTSIDE, TICK
from .watched_rows import NetworkTime

MODEL = "sit-b/2"
REQUESTS = (1, 8)
MOST = 0.03  # of a tick, asked for of this model
STEPS = 50


def measure_overhead(session: Session, drawings: Drawings, rules: tuple[str, ...] = tuple(SHARES)) -> None:
    """Rows of ticks with one request and with eight, by ``rules`` in turn, which are under way together.

    Raises ``ValueError`` on a device that computes while the host goes on: its forwards cannot be timed from outside.
    """
    if drawings.engine.device.type != "cpu":
        raise ValueError(f"the time outside the networks is measured on the CPU, got {drawings.engine.device}")
    steps = max(STEPS, session.settings.repetitions + 2)
    for count in REQUESTS:
        case = f"{drawings.workload.model.text}, requests under way: {count}"
        kinds = [Kind(rules[number % len(rules)], steps) for number in range(count)]
        flops = sum(drawings.flops(kind) for kind in kinds) / steps * (session.settings.repetitions + 2)
        if session.wants(NAME, case, variants=(STEP,), flops=flops):
            measure = partial(_commit, session, drawings, kinds, case)
            session.attempt(NAME, case, measure, flops)


def _commit(session: Session, drawings: Drawings, kinds: list[Kind], case: str) -> None:
    session.commit(overhead_rows(session, drawings, kinds, case))


def overhead_rows(session: Session, drawings: Drawings, kinds: list[Kind], case: str) -> list[Row]:
    """Ticks of requests that came together: the first, in which they join, and those after it."""
    server = open_server(STEP, drawings.engine, drawings.understand, len(kinds), len(kinds), start=False)
    _tick_once(server, kinds[:1])  # its lane has its buffers
    for number, kind in enumerate(kinds):
        server.submit(Arrival(kind, number, 0.0))
    networks = NetworkTime(server, session.now)
    ticks, outside = [], []
    for _ in range(session.settings.repetitions + 1):
        networks.seconds = 0.0
        ticks.append(session.timer(server.tick))
        outside.append(ticks[-1] - networks.seconds)
    server.close(drain=False)
    shares, joining = np.divide(outside, ticks)[1:], (outside[0] - np.median(outside[1:])) / len(kinds)
    row = partial(session.row, NAME, case, STEP)
    return [
        row(TICK, "s", Statistic.of(ticks[1:])),
        row(OUTSIDE, "share", Statistic.of(shares), MOST if drawings.workload.model.text == MODEL else None),
        row(JOINING, "s", Statistic(float(joining), float(joining), float(joining), len(kinds))),
    ]


def _tick_once(server: StepScheduler, kinds: list[Kind]) -> None:
    requests = [server.submit(Arrival(kind, 0, 0.0)) for kind in kinds]
    server.tick()
    for request in requests:
        request.cancel()
    server.tick()
