"""Drawing shards of a table with one engine: each row's picture into the folder, each row's failure with its reason."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from segue.engine.cli.options import Source
from segue.engine.engine import Engine
from segue.engine.planning.plan_warnings import already_told
from segue.engine.records.begun import ASKED, check_same
from segue.engine.records.pictures import short_prompts
from segue.engine.records.provenance import Origin
from segue.models.spec import SiTSpec

from .batch_folder import OPENED_FOR, BatchFolder
from .batch_requests import Failure, RowRequest
from .batch_shards import Shard
from .error_text import one_line
from .opening import open_served

MOST_ATTEMPTS = 3  # what takes so many processes with it is the reason


@dataclass(frozen=True)
class Outcome:
    """What came of a shard: how many pictures were written, which rows failed, how often it had been begun before."""

    drawn: int = 0
    failures: tuple[Failure, ...] = ()
    retried: int = 0


@dataclass(frozen=True)
class Drawing:
    """What a process needs to draw shards: the folder, the model, and the size of the batches that shards are."""

    out: Path
    source: Source
    batch: int

    def open(self) -> "Drawer":
        """The engine, checked against what the folder was begun with.  Raises ``ValueError`` or ``OSError``."""
        drawer = Drawer(BatchFolder(self.out), open_served(self.source))
        drawer.folder.claim(drawer.origin.identity | {"batch": self.batch}, _asked(self.source))
        return drawer

    def open_to_draw(self, shard: Shard) -> "Drawer":
        """As :meth:`open`, where another process begins with ``shard`` again if this one dies.

        Raises ``ValueError`` as well after ``MOST_ATTEMPTS`` that died before they could draw anything.
        """
        folder = BatchFolder(self.out)
        if folder.count_attempt(shard, OPENED_FOR) > MOST_ATTEMPTS:
            raise ValueError(
                f"{MOST_ATTEMPTS} processes in turn died while they opened {self.source.name}: fewer --workers, or more memory "
                f"for each, may help"
            )
        drawer = self.open()
        folder.forget_attempts(shard, OPENED_FOR)
        return drawer

    def check(self) -> None:
        """Raise ``ValueError`` where the folder was begun with other networks or another batch; any device will do.

        The model is opened only where it is asked for in other words than then, or its files have changed.
        """
        folder = BatchFolder(self.out)
        begun = folder.begun()
        if begun is None:
            self.open()
            return
        now = begun | {"batch": self.batch}
        if begun.get(ASKED) != _asked(self.source):
            device = "cpu" if self.source.linears is None else self.source.device  # fp8 is not for every device
            read = replace(self.source, device=device, dtype=self.source.dtype or begun.get("dtype"))
            found = Drawer(folder, open_served(read)).origin.identity
            now = found | {"batch": self.batch, "device": begun.get("device")}
        check_same(begun, now, self.out)


def _asked(source: Source) -> dict[str, Any]:
    """How a model is asked for, but for the device, with a digest of the names, sizes and times of its local files."""
    words = {name: value for name, value in asdict(source).items() if value is not None and name != "device"}
    digest = hashlib.sha256()
    for place in map(Path, filter(None, (source.name, source.vae, source.adapter, *source.further.values()))):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                found = file.stat()
                digest.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
    return words | {"files": digest.hexdigest()}


class Drawer:
    """Draws one shard after another; what happens to one does not stop the next."""

    def __init__(self, folder: BatchFolder, engine: Any):
        self.folder, self.engine = folder, engine

    @cached_property
    def origin(self) -> Origin:
        """Where the networks came from and what they are."""
        source, how = self.engine.loaded
        origin = Origin.of(self.engine, source, **how)
        return origin.with_decoder(self.engine.decoder) if isinstance(self.engine, Engine) else origin

    def __call__(self, shard: Shard) -> Outcome:
        """Draw the rows of a shard and write those that are wanted.

        Every error is the failure of its rows, but for a device that is lost (``torch.AcceleratorError``): nothing can be drawn
        in this process any more.
        """
        if self.folder.has(shard):
            return Outcome(drawn=len(shard.wanted))
        attempt = self.folder.count_attempt(shard)
        if attempt > MOST_ATTEMPTS:
            return _failed(shard, f"its process died each of {MOST_ATTEMPTS} times that its batch was drawn", attempt - 1)
        try:
            with already_told():
                return self._draw(shard, attempt - 1)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return _failed(shard, f"{type(error).__name__}: {one_line(error)}", attempt - 1)

    def _draw(self, shard: Shard, retried: int) -> Outcome:
        run = self._sample(shard.requests)
        finite = torch.isfinite(run.latents).flatten(1).all(dim=1)
        run.latents[~finite] = 0.0  # a picture is made in every place of the batch, and those of these are not kept
        record, images, drawn, failures = run.record(), run.images, [], []
        for place, request in enumerate(shard.requests):
            if request.id not in shard.wanted:
                continue
            if finite[place]:
                drawn.append(self.folder.write(request, images[place], record.part(place), self._names(shard.requests)))
            else:
                failures.append(Failure(request.id, self._why_not_finite(request)))
        self.folder.write_shard(shard, drawn)
        return Outcome(len(drawn), tuple(failures), retried)

    def _sample(self, requests: Sequence[RowRequest], **options: Any) -> Any:
        """The run of requests that share their steps."""
        first, texts = requests[0], [request.guidance for request in requests]
        rule = texts[0] if len(set(texts)) == 1 else texts
        what, seeds = [request.what for request in requests], [request.seed for request in requests]
        options |= {"steps": first.steps, "schedule": first.schedule, "seeds": seeds}
        options |= {} if first.solver is None else {"solver": first.solver}
        if isinstance(self.engine, Engine):
            return self.engine.sample(what, rule, **options)
        negative = [request.negative_prompt for request in requests]
        return self.engine.generate(what, negative, rule, height=first.height, width=first.width, **options)

    def _why_not_finite(self, request: RowRequest) -> str:
        """The call and the branch where a row stopped being finite, found by drawing it alone."""
        try:
            self._sample([request], check_finite=True)
        except FloatingPointError as error:
            return one_line(error)
        return "its latent is not finite"

    def _names(self, requests: Sequence[RowRequest]) -> tuple[str, ...]:
        """What the labels of a record are called."""
        spec = self.engine.spec
        if isinstance(spec, SiTSpec):
            return spec.class_names
        return short_prompts([str(request.what) for request in requests])


def _failed(shard: Shard, reason: str, retried: int) -> Outcome:
    """Every row of a shard that was wanted, failed by the same reason."""
    wanted = (request.id for request in shard.requests if request.id in shard.wanted)
    return Outcome(failures=tuple(Failure(id, reason) for id in wanted), retried=retried)
