"""A calibration: for a model, a rule and a run, the calls that compute its directions, and the error that was measured of it.

``segue calibrate`` searches one by finished samples and writes it as JSON; it is refused beside anything else than it was made
for.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from segue.models.bundled import calibration_file, calibration_names

from .reuse import Reuse

FORMAT = 1
KINDS: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,)}  # of a field's values
LEVELS_AGREE = 1e-6  # relative: a schedule is computed in fp64 anywhere


@dataclass(frozen=True)
class Calibration:
    """What was searched and measured.

    ``weights`` is the fingerprint of the networks that the rule runs on, alike in fp32 and in bf16.  ``reuse`` has one entry
    for each term of ``rule``.  ``cost`` and ``exact_cost`` are relative to unguided sampling.  ``error`` is the median distance
    of finished samples from those of the exact rule over that of unguided ones, between ``low`` and ``high`` (95 %), of
    ``samples`` other samples than it was searched on.
    """

    model: str
    weights: str
    rule: str
    schedule: str
    sigmas: tuple[float, ...]
    solver: str
    height: int
    width: int
    reuse: tuple[Reuse, ...]
    exact_cost: float
    cost: float
    error: float
    low: float
    high: float
    samples: int
    first_seed: int
    searched: int
    searched_from: int
    command: str

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        return len(self.sigmas) - 1

    def check_rule(self, rule: str) -> None:
        """Raise ``ValueError`` for another rule."""
        if rule != self.rule:
            raise ValueError(f"the calibration was made for the rule {self.rule}, and this one is {rule}")

    def check_run(self, sigmas: Sequence[float], solver: str, height: int, width: int) -> None:
        """Raise ``ValueError`` for another schedule, solver or size."""
        if len(sigmas) != len(self.sigmas) or not np.allclose(sigmas, self.sigmas, rtol=LEVELS_AGREE, atol=1e-9):
            raise ValueError(
                f"the calibration was made for the schedule {self.schedule} of {self.steps} steps, and the levels of this run, "
                f"{len(sigmas) - 1} steps from {sigmas[0]:.4g}, are others"
            )
        if solver != self.solver:
            raise ValueError(f"the calibration was made for the solver {self.solver}, and this run goes by {solver}")
        if (height, width) != (self.height, self.width):
            raise ValueError(f"the calibration was made for {self.height} x {self.width}, and this run is {height} x {width}")

    def check_model(self, model: str, weights: str) -> None:
        """Raise ``ValueError`` for other networks; ``weights`` as :func:`segue.models.fingerprint.rounded_fingerprint`."""
        if weights != self.weights:
            raise ValueError(
                f"the calibration was made for {self.model} with weights and attention {self.weights}, "
                f"and this is {model} with {weights}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {"format": FORMAT} | asdict(self)

    def to_json(self) -> str:
        """What a file holds."""
        record = self.to_dict() | {"sigmas": list(self.sigmas)}
        return json.dumps(record, indent=1) + "\n"

    @classmethod
    def from_dict(cls, record: Any, name: str) -> "Calibration":
        """That of the file ``name``; ``ValueError`` if it holds none that this version can follow."""
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']!r}, not {FORMAT}")
            values = {field.name: record[field.name] for field in fields(cls)}
            reuse = tuple(Reuse(**_listed(own)) for own in values["reuse"])
            made = cls(**values | {"reuse": reuse, "sigmas": tuple(map(float, values["sigmas"]))})
            made._check_kinds()
            return made
        except KeyError as error:
            raise ValueError(f"{name} holds no calibration: it lacks {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} holds no calibration: {error}") from None

    def _check_kinds(self) -> None:
        """Raise ``ValueError`` for a value of another kind than its field."""
        for field in fields(self):
            value, kinds = getattr(self, field.name), KINDS.get(field.type)
            if kinds is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                raise ValueError(f"its {field.name} is {value!r}")
            if field.type is float and not 0 <= value < math.inf:
                raise ValueError(f"its {field.name} is {value!r}")
        if not self.low <= self.error <= self.high:
            raise ValueError(f"its error {self.error:g} is not between {self.low:g} and {self.high:g}")
        if len(self.sigmas) < 2:
            raise ValueError(f"its sigmas are {list(self.sigmas)!r}")


def _listed(reuse: Mapping[str, Any]) -> dict[str, Any]:
    calls = reuse["calls"]
    return dict(reuse) | {"calls": None if calls is None else tuple(calls)}


def read_calibration(source: "str | Path | Calibration") -> Calibration:
    """A calibration from one, from its file, or by the name of one that ships with a bundled model.

    Raises ``ValueError`` for a file that holds none, ``OSError`` for one that cannot be read.
    """
    if isinstance(source, Calibration):
        return source
    if not isinstance(source, str | Path):
        raise TypeError(f"a calibration is a file, or the name of a bundled one, got {source!r}")
    path = calibration_file(source) if source in calibration_names() else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no calibration {str(source)!r}: neither a file nor one of {', '.join(calibration_names())}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no calibration: {error}") from None
    return Calibration.from_dict(record, str(path))
