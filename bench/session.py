"""One run of the benchmark: its settings, its time limit, what is already measured, and where rows go."""

import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from segue.engine.cli.errors import TRACEBACK_VARIABLE
from segue.engine.device import resolve_device, resolve_dtype

from .ceilings import Ceilings, dtype_name, measure_ceilings
from .correctness import Gate
from .pace import Pace
from .rows import Environment, Row, append_rows, check_writable, latest, make_row, read_rows, write_csv
from .timing import Statistic, Timer


@dataclass(frozen=True)
class Settings:
    """Options that every suite understands.  ``size`` is the image side in pixels; None leaves a choice to the model.

    ``case_limit_s`` bounds the timed work of one case beyond its least number of rounds.  After ``limit_minutes`` no case
    starts, nor one that takes longer than what is left of them by its estimate (:mod:`segue.bench.pace`).
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
        self._ceilings = None
        on_cuda = self.settings.torch_device.type == "cuda"
        self._pace = Pace(self._product_rate if on_cuda else None)
        self._end = self._allotted = self.now() + 60 * self.settings.limit_minutes
        self.failures, self.unfinished = 0, 0  # cases that failed, and that wanted more time than was left
        self._finished: dict[tuple[str, str, str], set[str]] = {}  # variants by suite, case and dtype
        self.held: list[Row] = []  # of the file, made on this machine by this commit and versions
        if self.path is not None:
            check_writable(self.path)
        if self.path is not None and self.path.exists():
            for row in read_rows(self.path):
                if self.resume and row.made_with == self._made_with:
                    self.held.append(row)
                    self._finished.setdefault((row.suite, row.case, row.dtype), set()).add(row.variant)

    @property
    def _made_with(self) -> tuple:
        here = self.environment
        return (here.device, here.threads, here.commit, tuple(sorted(here.versions.items())))

    def ceilings(self) -> Ceilings:
        """The ceilings of this machine, measured once in this run.

        float32 and the dtype of the session; on CUDA bfloat16 too, which is emulated on most processors.
        """
        if self._ceilings is None:
            half = (torch.bfloat16,) if self.settings.torch_device.type == "cuda" else ()
            dtypes = dict.fromkeys((torch.float32, *half, self.settings.torch_dtype))
            self._ceilings = measure_ceilings(self.settings.torch_device, self.timer, tuple(dtypes))
        return self._ceilings

    @property
    def minutes_left(self) -> float:
        return (self._allotted - self.now()) / 60

    def allot(self, share: float) -> None:
        """What follows may use this share of the time that is left of the whole run."""
        now = self.now()
        self._allotted = now + share * (self._end - now)

    def _product_rate(self) -> float:
        return self.ceilings().rate(self.settings.torch_dtype)

    def holds(self, suite: str, case: str, variants: Iterable[str] = (), dtype: str | None = None) -> bool:
        """Whether the file has rows of a case with all its ``variants``, made on this machine by this commit and versions."""
        finished = self._finished.get((suite, case, dtype or self.settings.dtype_name))
        return finished is not None and finished >= set(variants)

    def value(self, suite: str, case: str, variant: str, metric: str) -> float | None:
        """What was measured, by this run or one that it goes on with; None where it was not."""
        wanted = suite, case, variant, metric, self.settings.dtype_name
        found = [row.value for row in (*self.held, *self.rows) if row.key[:5] == wanted]
        return found[-1] if found else None

    def wants(self, suite: str, case: str, dtype: str | None = None, variants: Iterable[str] = (), flops: float = 0.0) -> bool:
        """Whether a case should run now; says why not.

        It need not if the file holds it with all its ``variants``, and does not if its rounds of ``flops`` take longer than is
        left.
        """
        if self.holds(suite, case, variants, dtype):
            self.echo(f"{suite} {case}: already in {self.path.name}, skipped")
            return False
        return self.has_time(suite, case, flops)

    def has_time(self, suite: str, case: str, flops: float = 0.0) -> bool:
        """Whether rounds of ``flops`` fit into the time that is left; if not, says so, and the run is unfinished."""
        left, needed = 60 * self.minutes_left, self._pace.estimate(flops)
        if left > needed:
            return True
        self.unfinished += 1
        self.echo(f"{suite} {case}: not run, {max(left, 0):.0f} s left, about {needed:.0f} s needed")
        return False

    def attempt(self, suite: str, case: str, measure: Callable[[], None], flops: float = 0.0) -> None:
        """Measure a case; what it raises is said in one line, and the next case runs.

        Out of memory, an operation that is missing, a kernel that does not compile or does not fit: whatever other code raises
        must not cost the cases that follow.  SEGUE_TRACEBACK=1 shows where it was raised.
        """
        start, unfinished = self.now(), self.unfinished
        try:
            measure()
        except Exception as error:
            self.failures += 1
            self.echo(f"{suite} {case}: FAILED, {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            if os.environ.get(TRACEBACK_VARIABLE):
                self.echo("".join(traceback.format_exception(error)))
        else:
            if flops and self.unfinished == unfinished:
                self._pace.record(flops, self.now() - start)

    def passes(self, suite: str, case: str, gate: Gate) -> bool:
        """Whether a case may be timed; a failing gate is reported, counts as a failure and leaves no row."""
        if gate.passed:
            self.echo(f"{suite} {case}: correct ({gate})")
        else:
            self.failures += 1
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
        """Print and store rows that were measured together: they are in the file as a whole or not at all."""
        for row in rows:
            self.echo(str(row))
        self.rows += rows
        if self.path is not None:
            append_rows(self.path, rows)
            write_csv(self.path.with_suffix(".csv"), latest(read_rows(self.path)))
