"""Why a request is not drawn, beside what is wrong with it."""


class QueueFullError(RuntimeError):
    """As many requests wait as may; later there may be room."""


class SchedulerClosedError(RuntimeError):
    """The scheduler takes no more requests."""


class MemoryLimitError(ValueError):
    """A request of this size would need more memory than there may be of it."""


class DeadlineError(TimeoutError):
    """The request was not done when it had to be."""
