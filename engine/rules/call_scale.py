"""A scale that is not known yet: that of the call of an attached pipeline, written ``call``."""

from dataclasses import dataclass
from typing import Final

CALL: Final = "call"


@dataclass(frozen=True)
class CallScale:
    """Stands in a weight, as its function of sigma, until the call that has the scale."""

    def __call__(self, sigma: float) -> float:
        """Raises ``ValueError``: a plan needs the number."""
        raise ValueError(f"the scale {CALL!r} is that of the call of a pipeline, by segue.attach; elsewhere write a number")
