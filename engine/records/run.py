"""What runs of both kinds of engine can do once they are made: record how, be written as files, be looked at."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import NewFiles
from ..images import save_png
from ..planning.plan import Plan
from ..planning.plan_text import plan_summary
from ..planning.solvers import is_named
from ..rules.rule_text import rule_text
from .pictures import check_place, picture_name, write_picture
from .provenance import Origin, Record, parameters_text


class Run:
    """The common part of ``SampleRun`` and ``PromptRun``.

    ``engine`` drew it and ``unrecorded`` says what of its inputs no record can hold (empty: nothing); a copy that went through
    ``pickle`` has no engine.
    """

    latents: Tensor
    plan: Plan
    seeds: tuple[int, ...]
    calls: int
    model: str
    max_batch: int | None
    engine: Any
    unrecorded: str

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"engine": None}

    def __repr__(self) -> str:
        stopped = "" if self.calls == self.plan.calls else f", stopped after call {self.calls} of {self.plan.calls}"
        return f"<{type(self).__name__} {len(self.latents)} x {plan_summary(self.plan)}{stopped}>"

    def _repr_html_(self) -> str:
        """The pictures that are at hand, what each is, and the plan."""
        shown = self._pictures_at_hand()
        cells = []
        for index, seed in enumerate(self.seeds):
            image = f"<img src='data:image/png;base64,{_png(shown[index])}'><br>" if shown else ""
            cells.append(f"<td>{image}{escape(self._caption(index))}, seed {seed}</td>")
        return f"<table><tr>{''.join(cells)}</tr></table>{self.plan._repr_html_()}"

    def record(self) -> Record:
        """How the pictures were made: with the weights as they are now, enough to draw them again.

        Raises ``ValueError`` where it is not: the caller gave noise, latents or a picture, a callback stopped the run, or the
        rule or the solver is one that text cannot name.
        """
        reason = self.unrecorded
        if self.engine is None:
            reason = "the run came through pickle, without its engine"
        elif self.calls < self.plan.calls:
            reason = f"it was stopped after call {self.calls} of {self.plan.calls}"
        elif self.plan.solver.record() is None and not is_named(self.plan.solver):
            reason = f"its solver {self.plan.solver.name!r} is none that has a name"
        if reason:
            raise ValueError(f"no record can draw this run again: {reason}; its images have a save() of their own")
        return self._record(rule_text(self.plan.guidance), min(self.max_batch or len(self.seeds), len(self.seeds)))

    def save(self, out: str | Path, *, force: bool = False) -> list[Path]:
        """Write the pictures as PNG files that ``segue sample --from`` draws again; returns where they are.

        ``out`` is a folder, or for one picture a file.  A file that is there already stays: the new one gets a number, or is
        refused where ``out`` names it; ``force`` writes over it.  Raises as :meth:`record`, ``OSError`` where nothing can be
        written.
        """
        out, record, names = Path(out), self.record(), self._names()
        folder = check_place(out, named=True, force=force)
        if not folder and len(self.seeds) != 1:
            raise ValueError(f"{len(self.seeds)} pictures need a folder, got the file {out}")
        images = self._pictures()
        if len(images) != len(self.seeds):
            raise ValueError("the run made no pictures, only latents; run.latents has them")
        new, files = NewFiles(force), []
        for index, image in enumerate(images):
            part = record.part(index)
            file = out / picture_name(names, record.labels[index], record.seeds[index]) if folder else out
            files.append(write_picture(new, file, image, part, names))
        return files

    def png(self, index: int = 0) -> bytes:
        """One of the pictures as the bytes of the file that :meth:`save` writes; raises as :meth:`record`."""
        data, record = io.BytesIO(), self.record().part(index)
        save_png(self._pictures()[index], data, parameters_text(record, self._names()), record.to_dict())
        return data.getvalue()

    def _origin(self) -> Origin:
        """Where the networks came from; an engine that was made of modules has no source."""
        source, how = self.engine.loaded or ("", {})
        return Origin.of(self.engine, source, **how)

    def _record(self, rule: str, max_batch: int) -> Record:
        raise NotImplementedError

    def _names(self) -> tuple[str, ...]:
        """What the labels of the record are called."""
        raise NotImplementedError

    def _caption(self, index: int) -> str:
        raise NotImplementedError

    def _pictures(self) -> Sequence[Any]:
        """All of them; empty for latents alone."""
        raise NotImplementedError

    def _pictures_at_hand(self) -> Sequence[Any]:
        """Those that need no VAE any more."""
        raise NotImplementedError


def _png(image: Any) -> str:
    """A picture as a page holds it."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode()
