"""A census as JSON, and what differs between two of them."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .census import Census, StepCensus, Total
from .kernel_record import COPY, KINDS


def census_dict(census: Census) -> dict:
    """Everything counted and predicted, with plain numbers and strings."""
    card = census.card
    rates = {"name": card.name, "bytes_per_second": card.copy, "flops_per_second": dict(card.products), "source": card.source}
    return {
        "model": census.model,
        "rule": census.rule,
        "batch": census.batch,
        "dtype": census.dtype,
        "linears": census.linears,
        "card": rates,
        "chosen": census.selection.explain(),
        "calls": sum(step.calls for step in census.steps),
        "seconds": census.seconds,
        "live_sets": [step_dict(step) for step in census.steps],
    }


def step_dict(step: StepCensus) -> dict:
    """One live set: totals, totals by kind, and every operation with its count."""
    kinds = {kind: total_dict(total) for (kind,), total in step.groups("kind").items() if kind != COPY}
    operations = [
        {"kind": kernel.kind, "name": kernel.name, "sizes": kernel.sizes, "count": count}
        | {"flops": kernel.flops, "bytes": kernel.bytes}
        for kernel, count in step.kernels.items()
    ]
    return {
        "branches": list(step.branches),
        "calls": step.calls,
        **total_dict(step.total()),
        "copies": step.copies,
        "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds},
        "operations": sorted(operations, key=lambda item: (item["kind"], item["name"], item["sizes"])),
    }


def total_dict(total: Total) -> dict:
    return {"kernels": total.kernels, "flops": total.flops, "bytes": total.bytes, "seconds": total.seconds}


def read_census(path: Path) -> dict:
    """A census as ``--json`` printed it; raises ``ValueError`` where ``path`` holds none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if all({"branches", "kernels", "kinds", "operations"} <= set(step) for step in found["live_sets"]):
            return found
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no census: {error}") from None
    raise ValueError(f"{path} holds no census: a live set lacks its branches, kernels, kinds or operations")


@dataclass(frozen=True)
class Change:
    """How often an operation runs in a step, before and after."""

    kind: str
    name: str
    sizes: str
    before: int
    after: int


def changes(before: dict, after: dict) -> list[Change]:
    """What two live sets of :func:`step_dict` do not have in common, what lost the most kernels first."""
    counts = []
    for step in (before, after):
        count: Counter[tuple[str, str, str]] = Counter()
        for item in step["operations"]:
            count[item["kind"], item["name"], item["sizes"]] += item["count"]
        counts.append(count)
    found = [Change(*key, counts[0][key], counts[1][key]) for key in {**counts[0], **counts[1]}]
    return sorted((change for change in found if change.before != change.after), key=lambda c: (c.after - c.before, c.name))
