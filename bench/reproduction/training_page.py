"""The page on training objectives: scores over seeds with and without guidance, costs and published figures beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from segue.training.objectives.objective import PUBLISHED_WEIGHTS, Objective, Weak

from ..quality.interval import interval_of
from ..quality.judges import short_name
from ..quality.origins import TRAINED, origins
from ..quality.rows import split_metric
from ..quality.tables import judged_metrics, metric_title, shown
from ..quality.tuning import UNGUIDED
from ..rows import Row
from ..scores.intervals import Interval, mean_interval
from ..scores.units import EFFECTIVE, FRECHET
from ..tables import markdown_table
from ..training_cost import PUBLISHED_COST
from .claims import Claim, by_intervals
from .page import LEAST, Content, Missing
from .paper import FID
from .scored_rules import SIGNS, few_samples, samples_of

COMMAND, TITLE = "training", "Training objectives"
WEAK = tuple(PUBLISHED_WEIGHTS)
CHECKPOINT = "the checkpoint"
# who is better than whom in the published table of unguided samples
ORDER: tuple[tuple[Weak, Weak], ...] = (
    ("uncond", "none"),
    ("branch", "none"),
    ("segmented", "none"),
    ("segmented", "uncond"),
    ("segmented", "branch"),
)


@dataclass(frozen=True)
class Trained:
    """The networks of one objective over its seeds: rows by rule and metric, one of each seed."""

    name: str
    weak: Weak | None
    steps: int
    seconds: Sequence[float]
    seeds: Sequence[int]
    networks: Sequence[str]
    rows: Mapping[tuple[str, str], list[Row]] = field(default_factory=dict)

    def interval(self, rule: str, metric: str) -> Interval | None:
        """Of one seed that of its samples, of several Student's over the seeds; None where not all of them have it."""
        found = self.rows.get((rule, metric), [])
        if not found or len(found) < max(1, len(self.seeds)):
            return None
        return interval_of(found[0]) if len(found) == 1 else mean_interval([row.value for row in found])

    @property
    def title(self) -> str:
        many = f", {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        return f"{self.name}{many}"


def trained_networks(rows: Sequence[Row], base: str, tail: str) -> list[Trained]:
    """The checkpoint and every objective that was trained from it, with their rows of at least :data:`LEAST` samples."""
    enough: dict[str, list[Row]] = {}
    for row in rows:
        if samples_of(row) >= LEAST and row.case.endswith(f", {tail}"):
            enough.setdefault(row.case.removesuffix(f", {tail}"), []).append(row)
    found = [Trained(CHECKPOINT, None, 0, (), (), (base,), _by_rule(enough.get(base, [])))]
    known = [origin for origin in origins(rows, base) if origin.kind == TRAINED]
    for weak in PUBLISHED_WEIGHTS:
        own = sorted((origin for origin in known if origin.name == weak), key=lambda origin: origin.facts["seed"])
        own = [origin for origin in own if origin.steps == max(each.steps for each in known)]
        if own:
            every = [row for origin in own for row in enough.get(origin.networks, [])]
            seconds = [origin.facts["seconds_per_step"] for origin in own]
            seeds, names = [origin.facts["seed"] for origin in own], [origin.networks for origin in own]
            found.append(Trained(weak, weak, own[0].steps, seconds, seeds, names, _by_rule(every)))
    return found


def _by_rule(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.variant, row.metric), []).append(row)
    return found


def training_content(
    rows: Sequence[Row], base: str, tail: str, guided: Sequence[str], costs: Sequence[Row], command: str
) -> Content:
    """What the rows say of the objectives that started from the networks ``base``, scored as ``tail`` says.

    ``guided`` are the rules that all were sampled by beside none; ``costs`` are rows of ``segue bench training``.
    """
    networks = trained_networks(rows, base, tail)
    every = [row for own in networks for found in own.rows.values() for row in found]
    metrics = judged_metrics([row for own in networks[1:] for found in own.rows.values() for row in found] or every)
    parts = [f"**From {base}, {tail}**"] if len(networks) > 1 else []
    missing: list[Missing] = []
    for rule in (UNGUIDED, *guided):
        parts.append(rule_table(networks, rule, metrics))
        for own in networks[1:]:
            if not any(own.interval(rule, metric) for metric in metrics):
                few = few_samples(rows, own.networks, tail, rule)
                missing.append(Missing(f"{own.title}, {rule}", few, command))
    there = {own.weak for own in networks}
    missing += [Missing(f"{weak}, trained", 0, command) for weak in PUBLISHED_WEIGHTS if weak not in there]
    parts += [built_in_table(networks, metrics), cost_table(networks, costs)]
    claims = [claim for metric in metrics for claim in order_claims(networks, metric)]
    known = {origin.networks for origin in origins(rows, base)}
    told = [row for row in rows if row.suite == "duration" or (row.suite == "origin" and row.case in known)]
    return Content(parts, claims, missing, [*every, *told, *costs] if len(networks) > 1 else [])


def rule_table(networks: Sequence[Trained], rule: str, metrics: Sequence[str]) -> str:
    """All networks sampled by one rule, one objective a line, with the published score of unguided samples beside."""
    lines = []
    for own in networks:
        cells = [own.interval(rule, metric) for metric in metrics]
        if any(cells):
            scale = own.interval(rule, EFFECTIVE)
            built_in = f"{Objective.published(own.weak).effective_scale:.2f}" if own.weak else ""
            told = [f"{scale.value:.2f}" if scale else "", *(shown(cell) if cell else "" for cell in cells)]
            published = f"{FID[own.weak]:.2f}" if own.weak in FID and rule == UNGUIDED else ""
            lines.append([own.title, str(own.steps), built_in, *told, *([published] if rule == UNGUIDED else [])])
    header = [
        f"objective, sampled by `{rule}`",
        "steps",
        "built-in scale 1/(1 - W)",
        "effective scale",
        *map(metric_title, metrics),
    ]
    return markdown_table([*header, *(["published FID"] if rule == UNGUIDED else [])], lines)


def built_in_table(networks: Sequence[Trained], metrics: Sequence[str]) -> str:
    """Plain training guided by CFG at the scale that each objective builds in, beside that objective unguided."""
    plain = next((own for own in networks if own.weak == "none"), None)
    lines = []
    for own in networks:
        rule = f"cfg:scale={Objective.published(own.weak).effective_scale:.3g}" if own.weak and own.weak != "none" else ""
        cells = [own.interval(UNGUIDED, metric) for metric in metrics]
        found = [plain.rows.get((rule, metric)) if plain and rule else None for metric in metrics]
        against = [interval_of(rows[0]) if rows else None for rows in found]
        if any(cell and other for cell, other in zip(cells, against, strict=True)):
            lines.append([own.title, UNGUIDED, *(shown(cell) if cell else "" for cell in cells)])
            lines.append(["none, first seed", f"`{rule}`", *(shown(other) if other else "" for other in against)])
    return markdown_table(["objective", "sampled by", *map(metric_title, metrics)], lines)


def cost_table(networks: Sequence[Trained], costs: Sequence[Row]) -> str:
    """Time of a training step over that of plain training: measured in turn, by counting, published.

    Where some objective was not measured, also the seconds of a step in these runs, which depend on what else the machine did.
    """
    trained = [own for own in networks if own.weak]
    measured = {row.variant: row for row in costs if row.metric == "relative"}
    whole = all(own.weak in measured for own in trained)
    lines = []
    for own in trained:
        row = measured.get(own.weak)
        apart = f"{row.value:.2f} ({row.p20:.2f} to {row.p80:.2f})" if row else ""
        counted = f"{row.expected:.2f}" if row and row.expected else ""
        published = f"{PUBLISHED_COST[own.weak]:.2f}" if own.weak in PUBLISHED_COST else ""
        seconds = [] if whole else [f"{mean_of(own.seconds):.3g} s"]
        lines.append([own.name, *seconds, apart, counted, published])
    header = ["objective", *([] if whole else ["a step in these runs"]), "a step over none's", "by counting", "published"]
    return markdown_table(header, lines)


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def order_claims(networks: Sequence[Trained], metric: str) -> list[Claim]:
    """The published order of unguided samples, pair by pair, by one judge's distance."""
    score, judge = split_metric(metric)
    if score != FRECHET:
        return []
    found, claims = {own.weak: own for own in networks if own.weak}, []
    for better, worse in ORDER:
        both = [found[weak].interval(UNGUIDED, metric) if weak in found else None for weak in (better, worse)]
        first, second = both
        if first is not None and second is not None:
            says = (
                f"trained with {better}, unguided samples are better than with {worse} (FID {FID[better]:g} to {FID[worse]:g})"
            )
            measured = f"FD {first.value:.3g} to {second.value:.3g}"
            claims.append(Claim(f"by {short_name(judge)}", says, measured, by_intervals(first, second, SIGNS[FRECHET])))
    return claims
