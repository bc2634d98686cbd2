"""Plans of text-to-image runs: with the noise levels of a pipeline's own scheduler, for sizes in pixels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from segue.models.spec import ModelSpec

from ..adapters.scheduler_solver import SchedulerSolver, rows_of, scheduler_run, timed_scheduler
from ..core import ScheduleLike, resolve_plan
from ..numeric_input import counting_number, real_number, whole_number
from ..planning.plan import Plan, checked_size
from ..planning.schedule import check_steps, from_scheduler
from ..planning.solver_rows import Solver
from ..rules.batch import RulesLike

DEFAULT_STEPS = 28
DEFAULT_STRENGTH = 0.6


def resolve_prompt_plan(
    specs: Mapping[str, ModelSpec],
    scheduler: Any = None,
    guidance: RulesLike = None,
    steps: int | None = None,
    schedule: ScheduleLike | None = None,
    solver: str | Solver | None = None,
    height: int | None = None,
    width: int | None = None,
    strength: float = 1.0,
    text_tokens: int | None = None,
) -> Plan:
    """A plan for networks known by their specs and, unless None, a diffusers scheduler.

    Without ``schedule`` and ``solver`` the run is the scheduler's own, steps and all.  A ``solver`` of ours runs on its levels;
    a ``schedule`` of ours runs with Heun's method where the scheduler is Heun's, else with Euler's.  ``height`` and ``width``
    are the latent size; ``strength`` keeps the last part of the schedule (image-to-image); ``text_tokens`` is the prompt length
    M, by default the model's.
    """
    spec = specs["main"]
    height, width = checked_size(spec, height, width)
    if text_tokens is not None:
        text_tokens = counting_number(text_tokens, "text_tokens")
        length: dict[str, Any] = {"text_tokens": text_tokens}  # a field of the specs of models that take prompts
        specs = {name: replace(spec, **length) for name, spec in specs.items()}
    if isinstance(solver, SchedulerSolver):
        schedule = solver.schedule if schedule is None else schedule
    elif scheduler is not None and (schedule is None or schedule == "native"):
        count, tokens = DEFAULT_STEPS if steps is None else check_steps(steps), spec.tokens(height, width)
        if solver is None:
            schedule, solver = scheduler_run(scheduler, count, tokens, strength)
            return resolve_plan(specs, guidance, None, schedule, solver, height, width)
        schedule, steps = from_scheduler(timed_scheduler(scheduler, count, tokens)), None
    if solver is None:
        solver = _solver_of(schedule if hasattr(schedule, "set_timesteps") else None, scheduler)
    if real_number(strength, "strength must be a number") != 1.0:
        schedule = resolve_plan(specs, None, steps, schedule, solver, height, width).schedule.truncate(strength)
        steps = None
    return resolve_plan(specs, guidance, steps, schedule, solver, height, width)


def _solver_of(given: Any, scheduler: Any) -> str | Solver:
    """What runs on the levels of a caller: the steps of the scheduler ``given`` as the schedule, else as ``scheduler`` tells.

    Raises ``ValueError`` for a given one whose steps are no rows of ours.
    """
    if given is None:
        return "heun" if "Heun" in type(scheduler).__name__ else "euler"
    rows = rows_of(given)
    if rows is None:
        name = type(given).__name__
        raise ValueError(
            f"schedule={name} gives its levels, and its steps are no rows of a solver here: say which solver runs on them, "
            "or make it the pipeline's scheduler"
        )
    return rows


def latent_size(
    spec: ModelSpec, factor: int, height: int | None, width: int | None, latents: Tensor | None = None
) -> tuple[int, int]:
    """Pixels to latent size, with ``factor`` pixels per latent; None is that of ``latents``, or else the model's own.

    Raises ``ValueError``.
    """
    sizes = []
    for name, pixels in (("height", height), ("width", width)):
        pixels = None if pixels is None else whole_number(pixels, f"{name} must be a whole number of pixels")
        if pixels is not None and (pixels < 1 or pixels % (factor * spec.patch)):
            raise ValueError(f"{name} must be a positive multiple of {factor * spec.patch}, got {pixels}")
        sizes.append(None if pixels is None else pixels // factor)
    if latents is not None:
        return start_size(latents, *sizes)
    height, width = sizes
    return spec.height if height is None else height, spec.width if width is None else width


def start_size(latents: Tensor, height: int | None, width: int | None) -> tuple[int, int]:
    """The size of clean latents [B, C, H, W] to start from.  Raises ``ValueError`` where another one is asked for."""
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a tensor [B, C, H, W], got a {type(latents).__name__}")
    found = (latents.shape[-2], latents.shape[-1])
    for name, wanted, side in (("height", height, found[0]), ("width", width, found[1])):
        if wanted is not None and wanted != side:
            raise ValueError(f"latents of {found[0]} x {found[1]} do not fit the latent {name} {wanted}")
    return found


def check_start(strength: float | None, *starts: Any) -> bool:
    """Whether one of ``starts`` is given.  Raises ``ValueError`` for two, and for a ``strength`` without any."""
    given = sum(start is not None for start in starts)
    if given > 1:
        raise ValueError("a run starts from an image or from latents: give one of them")
    if strength is not None:
        strength = real_number(strength, "strength must be a number")
    if strength is not None and not given:
        raise ValueError(f"strength {strength} needs a start: pass latents or an image")
    return given == 1
