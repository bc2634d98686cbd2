"""One run of the benchmark: its settings, its time limit, what is already measured, and where rows go."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from segue.engine.device import resolve_device, resolve_dtype

from .ceilings import Ceilings, dtype_name, measure_ceilings
from .correctness import Gate
from .rows import Environment, Row, append_rows, latest, make_row, read_rows, write_csv
from .timing import Statistic, Timer


@dataclass(frozen=True)
class Settings:
    """Options that every suite understands.  ``size`` is the image side in pixels; None leaves a choice to the model.

    ``case_limit_s`` bounds the timed work of one case; ``limit_minutes`` the whole run.
    """

    models: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    size: int | None = None
    steps: int | None = None
    dtype: str | None = None
    device: str | None = None
    repetitions: int = 7
    case_limit_s: float = 75.0
    limit_minutes: float = 12.0
    quick: bool = False

    def __post_init__(self):
        for name, values in (("batch", self.batches), ("size", (self.size,))):
            for value in values:
                if value is not None and value < 1:
                    raise ValueError(f"{name} must be at least 1, got {value}")
        if self.steps is not None and (self.steps < 2 or self.steps % 2):
            raise ValueError(f"steps must be even and at least 2 (half above, half below the switch), got {self.steps}")
        if self.repetitions < 1:
            raise ValueError(f"repetitions must be at least 1, got {self.repetitions}")
        for name in ("case_limit_s", "limit_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        if self.torch_dtype == torch.float64:  # an unknown or absent device or dtype raises here as well
            raise ValueError("float64 is not measured; accepted: float32, bfloat16, float16")

    @property
    def torch_device(self) -> torch.device:
        """The device asked for, else CUDA where there is one; raises ``ValueError`` for one that is not here."""
        return resolve_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype asked for, else bfloat16 on CUDA and float32 on the CPU; raises ``ValueError`` for an unknown one."""
        return resolve_dtype(self.dtype, self.torch_device)

    @property
    def calls(self) -> int:
        """Calls of a run: the published 28 on CUDA; on the CPU one in each segment, which has the same cost ratios."""
        return self.steps or (28 if self.torch_device.type == "cuda" else 2)

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.torch_dtype)


@dataclass
class Session:
    """Collects rows.  ``now`` and ``timer`` can be replaced; ``resume`` skips cases that the result file already holds."""

    settings: Settings
    environment: Environment
    timer: Timer
    path: Path | None = None
    resume: bool = True
    echo: Callable[[str], None] = print
    now: Callable[[], float] = time.monotonic
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self):
        self._start, self._ceilings = self.now(), None
        self._case_start, self._longest = self._start, 0.0
        self._finished: set[tuple[str, str, str]] = set()
        if self.path is not None and self.path.exists():
            existing = read_rows(self.path)
            if self.resume:
                here = [row for row in existing if row.device == self.environment.device]
                self._finished = {(row.suite, row.case, row.dtype) for row in here}

    def ceilings(self) -> Ceilings:
        """The ceilings of this machine, measured once in this run."""
        if self._ceilings is None:
            dtypes = dict.fromkeys((torch.float32, torch.bfloat16, self.settings.torch_dtype))
            self._ceilings = measure_ceilings(self.settings.torch_device, self.timer, tuple(dtypes))
        return self._ceilings

    @property
    def minutes_left(self) -> float:
        return self.settings.limit_minutes - (self.now() - self._start) / 60

    def wants(self, suite: str, case: str, dtype: str | None = None) -> bool:
        """Whether a case should run now; says why not."""
        if (suite, case, dtype or self.settings.dtype_name) in self._finished:
            self.echo(f"{suite} {case}: already in {self.path.name}, skipped")
            return False
        if 60 * self.minutes_left <= self._longest:  # a case may take as long as the longest so far
            self.echo(
                f"{suite} {case}: not run, {max(self.minutes_left, 0):.1f} of {self.settings.limit_minutes:g} minutes left"
            )
            return False
        self._case_start = self.now()
        return True

    def passes(self, suite: str, case: str, gate: Gate) -> bool:
        """Whether a case may be timed; a failing gate is reported and leaves no row."""
        if gate.passed:
            self.echo(f"{suite} {case}: correct ({gate})")
        else:
            self.echo(f"{suite} {case}: NOT TIMED, the correctness gate failed ({gate})")
        return gate.passed

    def row(
        self,
        suite: str,
        case: str,
        variant: str,
        metric: str,
        unit: str,
        statistic: Statistic,
        expected: float | None = None,
        note: str = "",
        dtype: str | None = None,
    ) -> Row:
        """A row of this session; written by :meth:`commit`.  ``dtype`` where it is not that of the settings."""
        dtype = dtype or self.settings.dtype_name
        return make_row(self.environment, suite, case, variant, metric, unit, statistic, dtype, expected, note)

    def commit(self, rows: list[Row]) -> None:
        """Print and store the rows of a finished case together: a case is in the file as a whole or not at all."""
        self._longest = max(self._longest, self.now() - self._case_start)
        for row in rows:
            self.echo(str(row))
        self.rows += rows
        if self.path is not None:
            append_rows(self.path, rows)
            write_csv(self.path.with_suffix(".csv"), latest(read_rows(self.path)))
