"""What an objective costs: a training step of each weak signal over one without, measured in turn, beside the published."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from segue.engine.numeric_input import counting_number
from segue.models.spec import SiTSpec
from segue.training.data.herbarium import Herbarium
from segue.training.objectives.objective import PUBLISHED_WEIGHTS, Objective, Weak
from segue.training.objectives.velocity_task import VelocityDraw, VelocityTask, companion_spec
from segue.training.processes import Processes
from segue.training.recipes import get_recipe
from segue.training.settings import TrainSettings
from segue.training.step import COMPANION_EVERY, Trained, TrainingStep

from .rows import Environment, Row, append_rows, check_writable, make_row
from .runs import command_line, open_session
from .session import Settings
from .timing import Statistic, Timer, interleave, paired_ratio

SUITE = "training"
# Source: SGG (arXiv 2603.20584), cost of an iteration over plain training, SiT-B/2
PUBLISHED_COST: dict[Weak, float] = {"uncond": 1.23, "branch": 1.02, "segmented": 1.22}
BACKWARD = 2  # forwards that a backward pass costs
SEED = 0
COUNTED_DRAWS = 50


def training_task(weak: Weak, batch: int, device: str, dtype: str) -> tuple[VelocityTask, TrainSettings]:
    """The herbarium's network under a weak signal with its published settings; a head where the signal reads one."""
    recipe = get_recipe("herbarium")
    if not isinstance(recipe.spec, SiTSpec):
        raise TypeError(f"the recipe is of a {type(recipe.spec).__name__}")
    spec = recipe.spec if weak in ("branch", "segmented") else replace(recipe.spec, exits=())
    objective = Objective.published(weak)
    settings = replace(recipe.settings, batch_size=batch, device=device, dtype=dtype, objective=objective)
    return VelocityTask(spec, settings.dropout, settings.exit_weight, objective, settings.captured), settings


def counted_cost(task: VelocityTask, batch: int) -> float:
    """FLOPs of a step over those of a plain one: forwards of a batch, of its weak rows on average, and backwards."""
    spec, signal = task.spec, task.signal
    own = spec.forward_flops(spec.height, spec.width)
    heads = len(spec.exits) * spec.readout_flops(spec.tokens(spec.height, spec.width))
    total = (1 + BACKWARD) * (own + heads)
    rows = mean(len(_draw(task, batch, seed).rows) for seed in range(COUNTED_DRAWS)) / batch
    if signal is not None:
        total += rows * own * signal.blocks(spec) / spec.depth
    if task.objective.weak == "separate":
        smaller = companion_spec(spec, task.objective).forward_flops(spec.height, spec.width)
        total += smaller * (rows + (1 + BACKWARD) / COMPANION_EVERY)
    return total / ((1 + BACKWARD) * own)


def _draw(task: VelocityTask, batch: int, seed: int) -> VelocityDraw:
    """A batch whose samples do not matter, of one pixel each: labels and times alone decide its rows."""
    labels = torch.arange(batch) % task.spec.num_classes
    return task.draw(torch.zeros(batch, 1, 1, 1), labels, torch.Generator().manual_seed(seed), 1.0)


def training_steps(task: VelocityTask, settings: TrainSettings) -> Callable[[], None]:
    """A function that trains a new network for as many steps as lie between two of one trained alongside, on one batch."""
    processes = Processes(settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        main, companion = task.network().to(settings.device), task.companion()
    beside = None if companion is None else Trained.of(companion.to(settings.device), settings, processes)
    step = TrainingStep(Trained.of(main, settings, processes), beside, task, settings, processes)
    x0, labels = Herbarium().batch(0, settings.batch_size, SEED)
    generator = torch.Generator().manual_seed(SEED)

    def steps() -> None:
        for number in range(COMPANION_EVERY):
            step(number, [task.draw(x0, labels, generator, 1.0)], settings.learning_rate)

    return steps


def measure_training(
    environment: Environment, timer: Timer, batch: int, rounds: int, device: str = "cpu", dtype: str = "float32"
) -> list[Row]:
    """Rows ``relative`` of every weak signal: the median over rounds of its time over that of ``none``, in the same round."""
    batch, rounds = counting_number(batch, "batch"), counting_number(rounds, "rounds")
    tasks = {weak: training_task(weak, batch, device, dtype) for weak in PUBLISHED_WEIGHTS}
    variants = {weak: training_steps(task, settings) for weak, (task, settings) in tasks.items()}
    seconds = interleave(variants, timer, rounds, warm_up=2)
    case, rows = f"herbarium batch {batch}", []
    for weak, (task, _) in tasks.items():
        published = f"published {PUBLISHED_COST[weak]:.2f}" if weak in PUBLISHED_COST else ""
        ratio, each = paired_ratio(seconds[weak], seconds["none"]), Statistic.of(seconds[weak] / COMPANION_EVERY)
        counted = counted_cost(task, batch)
        rows.append(make_row(environment, SUITE, case, weak, "relative", "x", ratio, dtype, counted, published))
        rows.append(make_row(environment, SUITE, case, weak, "step", "s", each, dtype))
    return rows


def print_training_cost(
    batch: int, rounds: int, device: str | None, dtype: str | None, threads: int | None, out: Path | None
) -> None:
    """Measure, print every row, and add them to the JSON-lines file ``out`` if one is given."""
    if out is not None:
        check_writable(out)
    if threads is not None:
        torch.set_num_threads(counting_number(threads, "threads"))
    settings = Settings(device=device, dtype=dtype)
    session = open_session(settings, None, resume=False)
    session.echo(f"{session.environment.device}, {session.environment.threads} threads: {command_line()}")
    rows = measure_training(session.environment, session.timer, batch, rounds, str(settings.torch_device), settings.dtype_name)
    for row in rows:
        session.echo(f"{row}{f', {row.note}' if row.note else ''}")
    if out is not None:
        append_rows(out, rows)
