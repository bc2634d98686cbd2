"""What a picture drawn from a prompt records beside what every picture does."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.scheduler_solver import SchedulerSolver
from ..planning.solver_rows import Solver
from .provenance import Record


@dataclass(frozen=True)
class PromptRecord(Record):
    """A :class:`Record` whose ``labels`` are indices into ``prompts``.

    ``prompts`` and ``negative_prompts`` are all of the run, one for one: text encoders may round differently in another
    batch.  ``pixels`` is (width, height); ``start`` what image-to-image began with: its file, digest and strength.
    ``max_sequence_length`` is what the prompts were cut to, None for the usual.
    """

    prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    pixels: tuple[int, int] = (0, 0)
    start: Mapping[str, Any] | None = None
    max_sequence_length: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels

    def described(self, names: tuple[str, ...]) -> str:
        """The prompts of the pictures, and on a second line the negative ones unless they are empty."""
        chosen = list(dict.fromkeys(self.shown_labels()))
        negative = " | ".join(dict.fromkeys(filter(None, (self.negative_prompts[label] for label in chosen))))
        text = " | ".join(self.prompts[label] for label in chosen)
        return f"{text}\nNegative prompt: {negative}" if negative else text

    def further_parameters(self) -> dict[str, Any]:
        return {} if self.start is None else {"Denoising strength": self.start["strength"]}

    def solver(self) -> str | Solver:
        """That of the run: one of ours, or the pipeline's scheduler as it was then."""
        recorded = self.plan.get("scheduler")
        return super().solver() if recorded is None else SchedulerSolver.from_record(recorded)

    def _check(self) -> None:
        super()._check()
        for name in ("prompts", "negative_prompts"):
            values = getattr(self, name)
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise ValueError(f"its {name} are {values!r}")
        if len(self.prompts) != len(self.negative_prompts) or not set(self.labels) <= set(range(len(self.prompts))):
            raise ValueError(
                f"{len(self.prompts)} prompts, {len(self.negative_prompts)} negative ones and labels {self.labels} do not fit"
            )
        if not isinstance(self.pixels, list) or [type(value) for value in self.pixels] != [int, int] or min(self.pixels) < 1:
            raise ValueError(f"its pixels are {self.pixels!r}")
        for key in ("config", "set_timesteps", "first") if self.plan.get("scheduler") else ():
            _ = self.plan["scheduler"][key]
        if self.start is not None:
            for key in ("file", "sha256", "strength"):
                _ = self.start[key]


def read_record(chunk: Any, name: str) -> Record:
    """The record of the file ``name``, of either kind; ``ValueError`` if it is not one that this version can redraw."""
    kind = PromptRecord if isinstance(chunk, dict) and "prompts" in chunk else Record
    return kind.from_dict(chunk, name)


def start_of(image: Path, strength: float) -> dict[str, Any]:
    """What a record says of the picture that a run begins with.  Raises ``OSError``."""
    return {"file": str(image), "sha256": file_digest(image), "strength": strength}


def file_digest(path: Path) -> str:
    """SHA-256 of a file.  Raises ``OSError``."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
