"""What a request is once it was understood: a planned run of one sample that has not begun."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..planning.plan import Plan


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run of one sample begins: ``state`` [1, C, H, W] fp32, in flow coordinates.

    ``conditions``: for each condition of its plan what the model's rows take, of one sample.
    """

    conditions: Mapping[str | int, Any]
    state: Tensor


@dataclass(frozen=True, eq=False)
class Drawing:
    """A planned run of one sample: nothing of it is computed yet.

    ``begin`` draws noise and encodes prompts; ``finished`` makes the run's result of its latents [1, C, H, W] fp32, and
    ``pictured`` a picture of such latents.  All three may take their time.
    """

    plan: Plan
    seed: int
    begin: Callable[[], Start]
    finished: Callable[[Tensor], Any]
    pictured: Callable[[Tensor], Any]

    @cached_property
    def start(self) -> Start:
        """What :attr:`begin` gives, made once."""
        return self.begin()
