"""A table of pictures drawn by a pool of Ray actors, an engine in each: what dies with one, another draws again."""

import logging
import os
import pickle
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from .batch_drawing import Drawing, Outcome
from .batch_shards import Shard
from .error_text import one_line
from .ray_cluster import check_resources, gpus_of_each, on_cluster

SHARD, OUTCOME, REFUSAL = "shard", "outcome", "refusal"
# a task draws a block of shards: of long tables several, of which a retry leaves out those that are finished
MOST_BLOCKS = 2000


@dataclass(frozen=True)
class Pool:
    """How many actors draw, and what each has; ``gpus`` None: one where the cluster has any and the model may use it.

    ``address`` is that of a running cluster, None starts one on this machine.  Raises ``ValueError`` with the value.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"a pool has at least one worker, got {self.workers}")
        check_resources("worker", self.cpus, self.gpus)

    def draw(self, drawing: Drawing, shards: Sequence[Shard]) -> Generator[Outcome]:
        """Draw every shard; outcomes come in the order in which shards end.  Raises ``ValueError`` as :meth:`.Drawing.open`."""
        cpus = max(self.workers * self.cpus, os.cpu_count() or 1)
        with _errors_on_stderr(), on_cluster(self.address, cpus) as resources, _quiet():
            import ray.data

            blocks = min(len(shards), MOST_BLOCKS)
            table = ray.data.from_items([{SHARD: pickle.dumps(shard)} for shard in shards], override_num_blocks=blocks)
            outcomes = table.map_batches(
                Worker,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=self.workers, max_tasks_in_flight_per_actor=1),
                fn_constructor_args=(drawing, os.getcwd()),
                num_cpus=self.cpus,
                num_gpus=gpus_of_each(self.gpus, drawing.source.device, resources),
            )  # Ray starts actors and their tasks again without end: what kills every process is given up by Drawing and Drawer
            for row in outcomes.iter_rows():
                if row[REFUSAL]:
                    raise ValueError(row[REFUSAL])
                yield pickle.loads(row[OUTCOME])


class Worker:
    """What an actor does: opens the engine for its first shard, and draws; ``folder`` is what paths start from.

    Once it has refused a shard it refuses all, by the same words: more may come before the command has heard of the first.
    """

    def __init__(self, drawing: Drawing, folder: str):
        self.drawing, self.folder = drawing, folder
        self.drawer: Any = None
        self.refusal = ""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """The outcome of the one shard of ``batch``, or why no shard can be drawn here."""
        from torch import AcceleratorError, OutOfMemoryError

        if self.refusal:
            return {OUTCOME: [b""], REFUSAL: [self.refusal]}
        shard = pickle.loads(batch[SHARD][0])
        try:
            if self.drawer is None:
                os.chdir(self.folder)  # raises where the machines of a cluster share no files
                self.drawer = self.drawing.open_to_draw(shard)
            outcome = self.drawer(shard)
        except (ValueError, OSError, OutOfMemoryError) as error:
            self.refusal = one_line(error)
            return {OUTCOME: [b""], REFUSAL: [self.refusal]}
        except AcceleratorError:
            logging.getLogger(__name__).exception("the device is lost to this process, which another will replace")
            os._exit(1)  # as any death: Ray starts an actor again, and that draws the shard
        return {OUTCOME: [pickle.dumps(outcome)], REFUSAL: [""]}


def _errors_on_stderr() -> AbstractContextManager:
    """Ray prints the errors of a cluster on stdout, and there the report for machines shall stand."""
    return redirect_stdout(sys.stderr)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's own bars and reports, which would stand beside ours."""
    import ray.data

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
