"""The folder of one training run: what it holds, who may write into it, and how its files are replaced."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from segue.engine.files import check_writable, whole_file

from .settings import TrainSettings
from .task import Spec

Start = Literal["new", "resume", "fresh"]

FILES = WEIGHTS, STATE, LOG, RECORD = "model.safetensors", "state.pt", "log.jsonl", "run.json"
COMPANION, CURVE = "companion.safetensors", "loss.png"
SNAPSHOTS, PREVIEWS = "snapshots", "previews"
STATE_KEYS = {"networks", "step", "seconds"}

# what may change when a run is resumed: the length and the machine, and names for people; not what is learnt from a batch
MAY_CHANGE = {
    *("steps", "minutes", "checkpoint_every", "snapshot_every", "preview_every", "device", "compile", "graph", "workers"),
    *("class_names", "command"),
}


class RunFolder:
    """``model.safetensors`` (averaged weights and spec), ``state.pt`` (to resume), ``run.json`` (what it is), ``log.jsonl``.

    ``snapshots/STEP.safetensors`` are averaged weights of earlier steps, if the run keeps any, ``previews/STEP.png`` what they
    drew, ``loss.png`` the log as a curve, ``companion.safetensors`` the weak network that was trained beside.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def companion(self) -> Path:
        """Averaged weights of the network that was trained beside."""
        return self.path / COMPANION

    @property
    def curve(self) -> Path:
        """The picture of the log."""
        return self.path / CURVE

    def check(self, spec: Spec, settings: TrainSettings, facts: Mapping[str, Any], start: Start) -> None:
        """Refuse a folder with one sentence, before any work: ``ValueError`` or ``OSError``.

        ``new`` wants a folder without a run.  ``resume`` wants one with the same network, settings and facts (but for its
        length and machine).  ``fresh`` takes one with a run of the same network.
        """
        record = self.record()
        if start == "resume":
            self.check_same("spec", spec.to_dict())
            self.check_same("settings", asdict(settings))
            self.check_same("facts", facts)
            check_writable(self.path, folder=True)
            return
        present = self._present()
        if present and (start == "new" or record is None):
            raise ValueError(
                f"{self.path} already holds {present[0].name}; resume that run, replace it, or choose another folder"
            )
        if record is not None and record["spec"].get("name") != spec.name:
            raise ValueError(f"{self.path} holds a run of {record['spec'].get('name')}, not of {spec.name}")
        check_writable(self.path, folder=True)

    def begin(self, spec: Spec, settings: TrainSettings, facts: Mapping[str, Any]) -> None:
        """Make the folder ready for a run that :meth:`check` has passed: an earlier run of the same network is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in (*self._present(), *self.snapshots().values(), *self.previews().values()):
            path.unlink()
        self.write_record(spec, settings, facts, step=0, seconds=0.0)

    def _present(self) -> list[Path]:
        return [path for name in (*FILES, COMPANION, CURVE) if (path := self.path / name).exists()]

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

    def write_record(self, spec: Spec, settings: TrainSettings, facts: Mapping[str, Any], step: int, seconds: float) -> None:
        record = {"spec": spec.to_dict()} | self.facts_of(settings, facts) | {"step": step, "seconds": seconds}
        with whole_file(self.path / RECORD) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")

    @staticmethod
    def facts_of(settings: TrainSettings, facts: Mapping[str, Any]) -> dict[str, Any]:
        """How a run is trained, as JSON values: its settings, and what it was given."""
        return {"settings": asdict(settings), "facts": dict(facts)}

    def check_same(self, part: Literal["spec", "settings", "facts"], wanted: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` unless that part of the record agrees with ``wanted`` in all that may not change."""
        record = self.existing()
        for name, value in json.loads(json.dumps(wanted)).items():
            found = record.get(part, {}).get(name)
            if name not in MAY_CHANGE and found != value:
                raise ValueError(f"{self.path} holds a run with another {name}: {found!r}, not {value!r}")

    # --- weights and state ---------------------------------------------------------------------------------------------

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the resume state; the file is replaced whole or not at all."""
        with whole_file(self.path / STATE) as part:
            torch.save(state, part)

    def snapshot(self, step: int) -> Path:
        """Where the averaged weights of a step are kept."""
        return self.path / SNAPSHOTS / f"{step}.safetensors"

    def preview(self, step: int) -> Path:
        """Where the pictures drawn after a step are kept."""
        return self.path / PREVIEWS / f"{step}.png"

    def previews(self) -> dict[int, Path]:
        """The pictures that were kept, by step, in order."""
        return self._by_step(PREVIEWS, "png")

    def _by_step(self, folder: str, kind: str) -> dict[int, Path]:
        found = {int(path.stem): path for path in (self.path / folder).glob(f"*.{kind}") if path.stem.isdigit()}
        return dict(sorted(found.items()))

    def snapshots(self) -> dict[int, Path]:
        """The weights that were kept, by step, in order."""
        return self._by_step(SNAPSHOTS, "safetensors")

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

    def log(self, row: Mapping[str, float]) -> None:
        """Append a row; ``OSError`` where the disk is full."""
        with open(self.path / LOG, "a") as log:
            log.write(json.dumps(row) + "\n")

    def log_rows(self) -> list[dict[str, float]]:
        """The rows of the log, without one that a crash cut off."""
        path = self.path / LOG
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if _step_of(line) < float("inf")]

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
