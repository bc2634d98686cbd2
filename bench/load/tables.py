"""Rows of servers under load as tables, and in a sentence which of them serves best here."""

import re
from collections import defaultdict
from statistics import median

from ..rows import Row
from ..tables import markdown_table, select, spread
from .servers import ONE, REQUEST, SERVERS, STEP

NAME = "serve"  # of the suite
ALONE, SATURATION, THROUGHPUT = "time alone", "saturation", "throughput"
LATENCY, SLOWDOWN = "latency", "slowdown"
FIGURES = ("mean", "p50", "p95", "p99")
TAIL = f"{SLOWDOWN}, p95"
MOST_SLOWDOWN = 0.6  # p95 of step-level over request-level batching, asked for
USED, AS_CAPTURED = "rows used of rows run", "rows used of rows run, at captured sizes"
LATE = "submitted late, at most"
AGAINST = {name: f"{name} over {REQUEST}" for name in (STEP, ONE)}
TICK, OUTSIDE, JOINING = "time of a tick", "share of a tick outside the networks", "time of joining, outside the networks"
_CASE = re.compile(r"(?P<load>.+), seed \d+")

Figures = dict[str, dict[str, Row]]  # by variant and metric


def load_tables(rows: list[Row]) -> str:
    """Latencies by server and case, saturation, padding, and the overhead of a tick; with what follows in a sentence."""
    here = select(rows, NAME)
    parts = (*verdicts(here), latency_table(here), saturation_table(here), alone_table(here), overhead_table(here), mixes(here))
    return "\n\n".join(part for part in parts if part)


def latency_table(rows: list[Row]) -> str:
    """One line per server and case: seconds from arrival to answer, and as multiples of the request's time alone."""
    lines = []
    for case, found in by_case(rows).items():
        for name in SERVERS:
            own = found.get(name, {})
            if TAIL in own:
                figures = [f"{own[f'{metric}, {which}'].value:.3g}" for metric in (LATENCY, SLOWDOWN) for which in FIGURES]
                rates = f"{own[THROUGHPUT].value:.3g} of {own[THROUGHPUT].expected:.3g}"
                lines.append([case, name, *figures, rates, *_shares(own), str(own[TAIL].n)])
    latencies = [f"latency {which}, s" if which == FIGURES[0] else which for which in FIGURES]
    slowdowns = [f"slowdown {which}" if which == FIGURES[0] else which for which in FIGURES]
    columns = ("images/s of those that came", "rows used", "at captured sizes", "requests")
    return markdown_table(("case", "server", *latencies, *slowdowns, *columns), lines)


def _shares(own: dict[str, Row]) -> list[str]:
    return [f"{own[metric].value:.1%}" if metric in own else "-" for metric in (USED, AS_CAPTURED)]


def saturation_table(rows: list[Row]) -> str:
    """Pictures a second where requests always wait, and how many rows of the forwards were used."""
    lines = []
    for case, found in by_case(rows).items():
        for name in SERVERS:
            own = found.get(name, {})
            if SATURATION in own:
                lines.append([case, name, f"{own[SATURATION].value:.3g}", f"{own[USED].value:.1%}"])
    return markdown_table(("case", "server", "images/s", "rows used"), lines)


def alone_table(rows: list[Row]) -> str:
    """Seconds of each kind of request that has the engine for itself: a line per rule."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.metric == ALONE:
            rule, _, steps = row.variant.partition(", ")
            found.setdefault((row.case, rule), {})[steps] = row
    columns = list(dict.fromkeys(steps for own in found.values() for steps in own))
    lines = [[*key, *(spread(own[steps]) if steps in own else "-" for steps in columns)] for key, own in found.items()]
    return markdown_table(("seconds", "rule", *columns), lines)


def overhead_table(rows: list[Row]) -> str:
    """What a tick takes, and how much of it is no network's."""
    lines = []
    for case, found in by_case(rows).items():
        for own in found.values():
            if OUTSIDE in own:
                asked = f", asked for: at most {own[OUTSIDE].expected:.0%}" if own[OUTSIDE].expected else ""
                share = f"{own[OUTSIDE].value:.2%}{asked}"
                joining = f"{1e3 * own[JOINING].value:.3g}"
                lines.append([case, spread(own[TICK]), share, joining, str(own[TICK].n)])
    header = ("ticks of", "s", "outside the networks", "ms of a request that joins, outside the networks", "n")
    return markdown_table(header, lines)


def mixes(rows: list[Row]) -> str:
    """What was asked for."""
    lines = dict.fromkeys((_CASE.sub(r"\g<load>", row.case), row.note) for row in rows if row.metric == TAIL and row.note)
    return markdown_table(("case", "requests"), lines)


def by_case(rows: list[Row]) -> dict[str, Figures]:
    """Rows by case, variant and metric."""
    found: dict[str, Figures] = {}
    for row in rows:
        found.setdefault(row.case, {}).setdefault(row.variant, {})[row.metric] = row
    return found


def verdicts(rows: list[Row]) -> list[str]:
    """A sentence for each load that all servers were under: step-level beside request-level batching, and which serves best.

    Over several rounds the medians.
    """
    values: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if match := _CASE.fullmatch(row.case):
            values[match["load"]][row.variant, row.metric].append(row.value)
    said = []
    for load, found in values.items():
        medians = {key: median(each) for key, each in found.items()}
        if all((variant, TAIL) in medians for variant in (*SERVERS, *AGAINST.values())):
            saturations = {key: median(each) for key, each in values[f"{load.rpartition(', ')[0]}, at once"].items()}
            said.append(_verdict(load, medians, saturations))
    return said


def _verdict(load: str, medians: dict[tuple[str, str], float], saturations: dict[tuple[str, str], float]) -> str:
    tail, rate = (medians[AGAINST[STEP], metric] for metric in (TAIL, THROUGHPUT))
    best = min(SERVERS, key=lambda name: medians[name, TAIL])
    text = (
        f"{load}: step-level batching has {tail:.2f} of the p95 of slowdown that request-level batching has (asked for: at "
        f"most {MOST_SLOWDOWN:g}), at {rate:.2f} of its throughput. The lowest p95 of slowdown here is that of {best}, "
        f"{medians[best, TAIL]:.3g}"
    )
    if all((name, SATURATION) in saturations for name in SERVERS):
        fastest = max(SERVERS, key=lambda name: saturations[name, SATURATION])
        text += f"; the highest saturation that of {fastest}, {saturations[fastest, SATURATION]:.3g} images/s"
    return f"{text}."
