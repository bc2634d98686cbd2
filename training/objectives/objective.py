"""The objective of a training run as settings: the weak signal, the weight of extrapolation, and where it acts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from segue.engine.numeric_input import real_number, whole_number
from segue.models.spec import NoisePath

Weak = Literal["none", "uncond", "layer-skip", "branch", "separate", "segmented"]
Mode = Literal["paper", "released"]
Target = Literal["extrapolated", "inverse"]
TimeDraw = Literal["uniform", "log-normal"]

# Source: SGG (arXiv 2603.20584): the weights of its SiT-B/2 runs on ImageNet-256
PUBLISHED_WEIGHTS: dict[Weak, float] = {
    "none": 0.0,
    "uncond": 0.5,
    "layer-skip": 0.3,
    "branch": 0.3,
    "separate": 0.3,
    "segmented": 0.6,
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "weak": get_args(Weak),
    "mode": get_args(Mode),
    "target": get_args(Target),
    "path": (None, *get_args(NoisePath)),
    "time": (None, *get_args(TimeDraw)),
}


@dataclass(frozen=True)
class Objective:
    """Weak-to-strong training: the output regresses to ``u* + W sg[v - v_weak]``.  Source: SGG (arXiv 2603.20584).

    ``weak`` is where ``v_weak`` is from: ``uncond`` the null label (MG), ``layer-skip`` the blocks ``layers`` bypassed
    (default: the middle ones), ``branch`` the early-exit head after ``layer`` blocks (default: the network's only one),
    ``separate`` a smaller network trained alongside, ``segmented`` (SGG) ``uncond`` at noise levels from ``tau`` up and
    ``branch`` below.

    ``W = weight * progress**power``, progress from 0 to 1 over the run; above the noise level ``high`` it is 0.  Levels are
    those of :mod:`segue.models.parameterization`, which on the linear path are the times.  ``target``: ``inverse`` regresses
    ``(v + (s - 1) v_weak) / s`` to ``u*``, ``s = 1 / (1 - W)``: the same error, whose gradient is ``1 - W`` times that of
    ``extrapolated``; for the further training of a network whose guidance is built in.  Where the weak output is the output
    itself, as under the null label, both regress plainly.

    ``mode``: as the paper says, or as its released code does; they differ for ``segmented`` below ``tau``, where the released
    code adds ``|v - m|^2`` of the head's output ``m``, not detached, and does not fit ``m`` to ``u*``.  ``path`` and ``time``
    None are the network's: its own path; uniform indices of a discrete chain, log-normal times else, whose logarithm of
    noise over data has the mean ``time_mean`` and the deviation ``time_std``.  The smaller network has ``companion_width``
    of the heads and ``companion_depth`` of the blocks.
    """

    weak: Weak = "none"
    weight: float = 0.0
    power: float = 0.0
    tau: float = 0.2
    high: float = 1.0
    layers: tuple[int, ...] = ()
    layer: int | None = None
    mode: Mode = "paper"
    target: Target = "extrapolated"
    path: NoisePath | None = None
    time: TimeDraw | None = None
    time_mean: float = 0.0
    time_std: float = 1.0
    companion_width: float = 0.5
    companion_depth: float = 0.5

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                named = ", ".join(str(choice) for choice in known if choice is not None)
                raise ValueError(f"objective {name} must be one of {named}, got {getattr(self, name)!r}")
        for name in ("weight", "power", "tau", "high", "time_mean", "time_std", "companion_width", "companion_depth"):
            object.__setattr__(self, name, real_number(getattr(self, name), f"objective {name} must be a number"))
        self._require("weight", 0 <= self.weight < 1, "at least 0 and less than 1: the effective scale is 1 / (1 - weight)")
        self._require("power", 0 <= self.power < math.inf, "finite and at least 0")
        for name in ("tau", "high"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a noise level in [0, 1]")
        self._require("time_mean", math.isfinite(self.time_mean), "finite")
        self._require("time_std", 0 < self.time_std < math.inf, "finite and positive")
        for name in ("companion_width", "companion_depth"):
            self._require(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        self._check_layers()
        if self.weak == "none" and self.weight:
            raise ValueError(f"objective weight {self.weight:g} needs a weak signal, one of {', '.join(CHOICES['weak'][1:])}")

    def _check_layers(self) -> None:
        if isinstance(self.layers, int | str):
            raise TypeError(f"objective layers must be a sequence of block numbers, got {self.layers!r}")
        layers = {whole_number(layer, "objective layers must be whole numbers") for layer in self.layers}
        object.__setattr__(self, "layers", tuple(sorted(layers)))
        self._require("layers", all(layer >= 0 for layer in layers), "block numbers from 0")
        if self.layer is not None:
            object.__setattr__(self, "layer", whole_number(self.layer, "objective layer must be a whole number"))
            self._require("layer", self.layer >= 1, "at least 1: the blocks before the early-exit head")
        for name, weak in (("layers", ("layer-skip",)), ("layer", ("branch", "segmented"))):
            if getattr(self, name) not in (None, ()) and self.weak not in weak:
                raise ValueError(f"objective {name} {getattr(self, name)} belongs to {' and '.join(weak)}, not to {self.weak}")

    def _require(self, name: str, holds: bool, accepted: str) -> None:
        if not holds:
            raise ValueError(f"objective {name} must be {accepted}, got {getattr(self, name)!r}")

    @classmethod
    def published(cls, weak: Weak, **changes: Any) -> "Objective":
        """A weak signal with its published weight, if ``changes`` name no other."""
        return cls(weak, **({"weight": PUBLISHED_WEIGHTS.get(weak, 0.0) if isinstance(weak, str) else 0.0} | changes))

    @property
    def effective_scale(self) -> float:
        """The guidance scale that the trained network has built in, ``1 / (1 - weight)``.

        The fixed point is ``v = v_weak + (E[u*] - v_weak) / (1 - W)``.
        """
        return 1 / (1 - self.weight)

    def weight_at(self, progress: float) -> float:
        """W when the fraction ``progress`` of the run is done."""
        return self.weight * progress**self.power

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self) | {"layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Objective":
        """The inverse of :meth:`to_dict`; settings that are missing are the default, the weight that of the weak signal.

        Raises ``ValueError`` for a setting that does not exist.
        """
        unknown = values.keys() - {setting.name for setting in fields(cls)}
        if unknown:
            raise ValueError(f"there is no setting {sorted(unknown)[0]!r} of an objective")
        given = dict(values)
        if "layers" in given and isinstance(given["layers"], list):
            given["layers"] = tuple(given["layers"])
        return cls.published(given.pop("weak", "none"), **given)
