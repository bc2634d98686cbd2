"""Drawing a planned run of prompts for the command line: with progress, timed, decoded batch by batch."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..planning.compile import plan_part
from ..planning.plan import Plan
from ..planning.plan_warnings import already_told
from ..prompts.encoding import PromptEmbeddings
from ..prompts.engine import PromptEngine
from ..running.progress import Counting, progress_bar
from .session import Drawn, batch_sizes


def draw_prompts(
    engine: PromptEngine,
    plan: Plan,
    embeddings: PromptEmbeddings,
    seeds: Sequence[int],
    start: Mapping[str, Any],
    max_batch: int | None,
    check_finite: bool,
    title: str,
    pictures: bool = True,
) -> Drawn:
    """What a planned run draws; ``start``: ``latents`` and ``noise`` of an image-to-image run, or empty."""
    start = {"noise": engine.draw_noise(plan, seeds)} | dict(start)
    chunk = max_batch or len(seeds)
    with progress_bar(title, plan.calls * -(-len(seeds) // chunk)) as advance, already_told():
        began = time.perf_counter()
        run = engine.sample(
            embeddings,
            plan.guidance,
            schedule=plan.schedule,
            solver=plan.solver,
            height=plan.height,
            width=plan.width,
            seeds=seeds,
            max_batch=max_batch,
            callback=Counting(None, advance),
            check_finite=check_finite,
            **start,
        )
        run.latents.cpu()  # waits for the device
        seconds = time.perf_counter() - began
    images = engine.decode(run.latents, chunk) if pictures else []
    return Drawn(images, seconds, run.plan, run.latents)


def warm_up_prompts(
    engine: PromptEngine, plan: Plan, embeddings: PromptEmbeddings, seeds: Sequence[int], max_batch: int | None
) -> None:
    """Build what a run needs before its clock starts: programs for its batch sizes, and one call of each live set."""
    tokens = embeddings.positive.context.shape[1]
    settings: dict[str, Any] = {"schedule": plan.schedule, "solver": plan.solver, "height": plan.height, "width": plan.width}
    exact = engine.plan(plan.guidance, **settings, text_tokens=tokens)
    for size in batch_sizes(len(seeds), max_batch):
        part = plan_part(exact, slice(size))
        program = engine.load(part, embeddings.select(range(size)), seeds[:size], engine.draw_noise(part, seeds[:size]))
        for live in part.live_sets:
            program.advance(live)
        engine.release(program)
