"""The folder of one training run: what it holds, who may write into it, and how its files are replaced."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from segue.engine.files import check_writable, whole_file
from segue.models.weights import SavedNetwork, save_model

from .settings import TrainSettings
from .task import Spec

Start = Literal["new", "resume", "fresh"]

FILES = WEIGHTS, STATE, LOG, RECORD = "model.safetensors", "state.pt", "log.jsonl", "run.json"
SNAPSHOTS = "snapshots"
STATE_KEYS = {"model", "ema", "optimizer", "step", "seconds"}

# what may change when a run is resumed: the length and the machine, and names for people; not what is learnt from a batch
MAY_CHANGE = {"steps", "minutes", "checkpoint_every", "snapshot_every", "device", "compile", "graph", "workers", "class_names"}


class RunFolder:
    """``model.safetensors`` (EMA weights and spec), ``state.pt`` (to resume), ``run.json`` (what it is), ``log.jsonl``.

    ``snapshots/STEP.safetensors`` are EMA weights of earlier steps, if the run keeps any.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def open(self, spec: Spec, settings: TrainSettings, start: Start) -> None:
        """Make the folder ready for a run, or refuse it with one sentence before any work.

        ``new`` wants a folder without a run.  ``resume`` wants one with the same network and settings (but for its length and
        machine).  ``fresh`` removes an earlier run of the same network.  Raises ``ValueError`` or ``OSError``.
        """
        record = self.record()
        if start == "resume":
            self.check_same("spec", spec.to_dict())
            self.check_same("settings", asdict(settings))
            check_writable(self.path, folder=True)
            return
        present = [name for name in FILES if (self.path / name).exists()]
        if present and (start == "new" or record is None):
            raise ValueError(f"{self.path} already holds {present[0]}; resume that run, replace it, or choose another folder")
        if record is not None and record["spec"].get("name") != spec.name:
            raise ValueError(f"{self.path} holds a run of {record['spec'].get('name')}, not of {spec.name}")
        check_writable(self.path, folder=True)
        self.path.mkdir(parents=True, exist_ok=True)
        for path in (*(self.path / name for name in present), *self.snapshots().values()):
            path.unlink()
        self.write_record(spec, settings, step=0, seconds=0.0)

    # --- the record of what the run is ---------------------------------------------------------------------------------

    def record(self) -> dict[str, Any] | None:
        """The content of run.json, or None if there is no run here."""
        path = self.path / RECORD
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
            if isinstance(record["spec"], dict) and isinstance(record["settings"], dict):
                return record
            raise ValueError("spec and settings must be objects")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} does not describe a run: {error!r}") from error

    def existing(self) -> dict[str, Any]:
        """The content of run.json; raises ``ValueError`` if there is no run here."""
        record = self.record()
        if record is None:
            raise ValueError(f"there is no run in {self.path}")
        return record

    def write_record(self, spec: Spec, settings: TrainSettings, step: int, seconds: float) -> None:
        record = {"spec": spec.to_dict(), "settings": asdict(settings), "step": step, "seconds": seconds}
        with whole_file(self.path / RECORD) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")

    def check_same(self, part: Literal["spec", "settings"], wanted: dict[str, Any]) -> None:
        """Raise ``ValueError`` unless that part of the record agrees with ``wanted`` in all that may not change."""
        record = self.existing()
        for name, value in json.loads(json.dumps(wanted)).items():
            found = record[part].get(name)
            if name not in MAY_CHANGE and found != value:
                raise ValueError(f"{self.path} holds a run with another {name}: {found!r}, not {value!r}")

    # --- weights and state ---------------------------------------------------------------------------------------------

    def save(self, weights: SavedNetwork, state: dict[str, Any]) -> None:
        """Write the EMA weights and the resume state; each file is replaced whole or not at all."""
        save_model(weights, self.path / WEIGHTS)
        with whole_file(self.path / STATE) as part:
            torch.save(state, part)

    def save_snapshot(self, weights: SavedNetwork, step: int) -> None:
        """Keep the EMA weights of a step."""
        path = self.path / SNAPSHOTS / f"{step}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_model(weights, path)

    def snapshots(self) -> dict[int, Path]:
        """The weights that were kept, by step, in order."""
        found = {int(path.stem): path for path in (self.path / SNAPSHOTS).glob("*.safetensors") if path.stem.isdigit()}
        return dict(sorted(found.items()))

    def weights(self, step: int | None = None) -> Path:
        """The latest EMA weights, or those kept of a step; raises ``ValueError`` if there are none of that step."""
        if step is None:
            return self.path / WEIGHTS
        kept = self.snapshots()
        if step not in kept:
            steps = ", ".join(map(str, kept)) or "none"
            raise ValueError(f"{self.path} keeps no weights of step {step}; it keeps: {steps}")
        return kept[step]

    def load_state(self) -> dict[str, Any] | None:
        """The resume state on the CPU, or None if the run stopped before its first checkpoint."""
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is truncated or not a training state ({type(error).__name__})") from error
        if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
            raise ValueError(f"{path} is not a training state; it must hold {', '.join(sorted(STATE_KEYS))}")
        return state

    # --- the log -------------------------------------------------------------------------------------------------------

    def log(self, row: dict[str, float]) -> None:
        with open(self.path / LOG, "a") as log:
            log.write(json.dumps(row) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop the rows after ``step``: a resumed run makes those steps again."""
        path = self.path / LOG
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            with whole_file(path) as part:
                part.write_text("".join(f"{row}\n" for row in rows))


def _step_of(line: str) -> float:
    """The step of a log line; a line cut off by a crash is of no step."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
