"""The guided velocity of a live transformer, for sampling loops that belong to someone else."""

import numpy as np
from torch import Tensor

from ..velocity import GuidedVelocity
from .pipe_core import PipeCore


class LiveVelocity(GuidedVelocity):
    """A guided velocity whose engine looks at the live transformer again whenever a run begins.

    A foreign loop does not say when that is.  The levels of a known schedule come in its order within a run; of others, a
    level that is not below the one before counts as the beginning of another run, and so does a transformer that is no longer
    as it was.  Only a level of a known schedule, but its first, may come twice in a run: as another stage of a step.
    """

    engine: PipeCore
    _level: float | None = None  # of the call before

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """As :meth:`GuidedVelocity.__call__`; also raises for a transformer, or a rule on it, that cannot run any more."""
        level = float(sigma.detach().max())
        if self._begins(level) or not self.engine.is_current():
            self.engine.refresh()
            self.release()  # its network may be gone, and prompts and times pass through layers that may have changed
        self._level = level
        return super().__call__(x, sigma)

    def _begins(self, level: float) -> bool:
        if self._level is None:
            return True
        if not self.fixed:
            return level >= self._level
        before, now = self._calls(np.array([self._level, level]))
        return now < before or now == before == 0

    def load(self, x: Tensor) -> None:
        self.engine.check_plan(self.plan)
        super().load(x)
