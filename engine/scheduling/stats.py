"""What a scheduler has done so far."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerStats:
    """Counts since a scheduler began, and what is under way.

    ``rows_used`` are the rows that requests needed, ``rows_run`` those with the padding; ``tick_seconds`` is the time of all
    ticks.  ``refused`` are the requests that ``submit`` raised for: the queue was full, the scheduler closed, the input bad, or
    the memory too little.  Each other one is ``submitted``, and finished, cancelled, expired or failed in the end: once.
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
