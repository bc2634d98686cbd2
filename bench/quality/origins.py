"""Networks that were made of others, as rows beside their scores: trained further or distilled, from what, and how."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..rows import Environment, Row, make_row
from ..timing import once

SUITE, METRIC = "origin", "steps"
TRAINED, DISTILLED = "trained", "distilled"


@dataclass(frozen=True)
class Origin:
    """``networks`` (:func:`.trial.networks_of`) came of the networks ``parent`` by ``kind``, after ``steps`` optimiser steps.

    ``name`` is what it is called in tables: the objective, or the rule.  ``facts`` are JSON values: seed, weight, seconds.
    """

    networks: str
    parent: str
    kind: str
    name: str
    steps: int
    facts: Mapping[str, Any]

    def row(self, environment: Environment) -> Row:
        """As a row."""
        note = json.dumps({"parent": self.parent, "name": self.name} | dict(self.facts), sort_keys=True)
        statistic = once(float(self.steps))
        return make_row(environment, SUITE, self.networks, self.kind, METRIC, "steps", statistic, "none", note=note)

    @classmethod
    def of(cls, row: Row) -> "Origin":
        """The inverse of :meth:`row`; ``ValueError`` for another row."""
        if row.suite != SUITE:
            raise ValueError(f"a row of the suite {SUITE} is needed, got one of {row.suite}")
        facts = json.loads(row.note)
        return cls(row.case, facts.pop("parent"), row.variant, facts.pop("name"), int(row.value), facts)


def origins(rows: Sequence[Row], parent: str | None = None) -> list[Origin]:
    """Those that rows tell of, the last of each network, of one parent where that is given."""
    found = {row.case: Origin.of(row) for row in rows if row.suite == SUITE}
    return [origin for origin in found.values() if parent in (None, origin.parent)]
