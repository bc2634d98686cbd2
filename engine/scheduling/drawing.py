"""What a request is once it was understood: a planned run of one sample that has not begun."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..planning.plan import Plan


@dataclass(frozen=True, eq=False)
class Drawing:
    """A run of one sample: ``state`` [1, C, H, W] fp32 is where it begins, in flow coordinates.

    ``conditions``: for each condition of the plan what the model's rows take, of one sample.  ``finished`` makes the run's
    result of its latents [1, C, H, W] fp32, ``pictured`` a picture of such latents; both may take as long as decoding does.
    """

    plan: Plan
    conditions: Mapping[str | int, Any]
    seed: int
    state: Tensor
    finished: Callable[[Tensor], Any]
    pictured: Callable[[Tensor], Any]
