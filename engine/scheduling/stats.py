"""What a scheduler has done so far."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerStats:
    """Counts since a scheduler began, and what is under way.

    ``rows_used`` are the rows that requests needed, ``rows_run`` those with the padding; ``tick_seconds`` is the time of all
    ticks.  A refused request was never accepted; each other one is finished, cancelled, expired or failed in the end.
    """

    slots: int
    queue_limit: int
    queued: int = 0
    running: int = 0
    submitted: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    refused: int = 0
    ticks: int = 0
    rows_used: int = 0
    rows_run: int = 0
    tick_seconds: float = 0.0

    @property
    def padding(self) -> float:
        """The share of rows that nobody read."""
        return 1 - self.rows_used / self.rows_run if self.rows_run else 0.0
