"""What a run of distillation learns: an adapter's form, the rule it stands for, and the trajectories it sees."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from segue.engine.numeric_input import counting_number, real_number
from segue.models.adapted import AdapterSpec

LevelWeights = Literal["uniform", "steps", "effect"]


@dataclass(frozen=True)
class TrajectorySpec:
    """The states that an adapter is trained at.

    The share ``own`` of the trajectories is the student's, the others are the teacher's.  Of every trajectory ``levels`` states
    are used, one drawn from each of as many equal parts of its calls.  ``weights`` weighs their squared errors: all alike
    (``uniform``), by the square of the step's length (``steps``), or by that of their effect on the end of the trajectory,
    which is measured (``effect``).
    """

    steps: int = 28
    solver: str = "euler"
    own: float = 1.0
    levels: int = 7
    weights: LevelWeights = "uniform"

    def __post_init__(self):
        for name in ("steps", "levels"):
            object.__setattr__(self, name, counting_number(getattr(self, name), name))
        object.__setattr__(self, "own", real_number(self.own, "own must be a number"))
        if not 0 <= self.own <= 1:
            raise ValueError(f"own must lie in [0, 1], got {self.own:g}")
        if self.levels > self.steps:
            raise ValueError(f"levels must be at most the {self.steps} steps of a trajectory, got {self.levels}")
        if self.weights not in get_args(LevelWeights):
            raise ValueError(f"level weights must be {' or '.join(get_args(LevelWeights))}, got {self.weights!r}")


@dataclass(frozen=True)
class DistillSpec:
    """What must stay the same when a run is resumed.

    ``model`` is where the network came from and ``weights`` its fingerprint; ``rule`` the text of the teacher's guidance with
    all its numbers; ``conditions`` a digest of the prompts, empty for classes; ``height`` and ``width`` the latent size.
    """

    name: str
    model: str
    weights: str
    rule: str
    height: int
    width: int
    conditions: str = ""
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    trajectories: TrajectorySpec = field(default_factory=TrajectorySpec)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
