"""The Engine: a model with its guidance networks, ready to plan and to sample."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.models.parameterization import Parameterization
from segue.models.spec import ModelSpec

from .guidance import Guidance, Unguided
from .images import latents_to_images
from .plan import Plan, compile_plan
from .program import Program, ProgramKey
from .sampler import Callback, run_program
from .schedule import Schedule, resolve_schedule
from .solvers import Solver, get_solver


@dataclass(frozen=True)
class SampleRun:
    """What a sampling run made.  ``latents`` [B, C, H, W] fp32; ``calls`` is less than planned if a callback stopped it."""

    latents: Tensor
    plan: Plan
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    calls: int
    model: str

    @property
    def images(self) -> list:
        """PIL images, for models whose latents are pixels."""
        return latents_to_images(self.latents)


class Engine:
    """Samples from a network.  ``models`` holds further networks by name, for autoguidance.

    Use :meth:`from_pretrained` for a bundled model, a checkpoint file or a folder.
    """

    MAX_PROGRAMS = 8

    def __init__(
        self,
        model: nn.Module,
        models: Mapping[str, nn.Module] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        networks = {"main": model, **(models or {})}
        self.models = {
            name: network.to(self.device, self.dtype).eval().requires_grad_(False) for name, network in networks.items()
        }
        self._programs: dict[ProgramKey, Program] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        family: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Engine":
        """An engine for a bundled model (``herbarium``), a checkpoint file or a diffusers folder.

        ``family`` (``dit``, ``sit``, ``repa``) is needed where a checkpoint does not tell: their tensor names are the same.
        """
        from segue.models.weights import load_model

        model, others = load_model(source, family=family)
        return cls(model, others, device, dtype)

    @property
    def spec(self) -> ModelSpec:
        return self.models["main"].spec

    @property
    def specs(self) -> dict[str, ModelSpec]:
        return {name: model.spec for name, model in self.models.items()}

    def plan(
        self,
        guidance: Guidance | None = None,
        steps: int | None = None,
        schedule: str | Schedule | Sequence[float] | None = None,
        solver: str | Solver = "euler",
        height: int | None = None,
        width: int | None = None,
    ) -> Plan:
        """Resolve a rule without running it; ``print(plan)`` shows who runs when and what it costs."""
        height, width = height or self.spec.height, width or self.spec.width
        solver = get_solver(solver)
        resolved = resolve_schedule(schedule, steps, solver, Parameterization(self.spec), self.spec.tokens(height, width))
        return compile_plan(guidance or Unguided(), resolved, solver, self.specs, height, width)

    def sample(
        self,
        labels: Sequence[int],
        guidance: Guidance | None = None,
        *,
        steps: int | None = None,
        seeds: Sequence[int] | int | None = None,
        schedule: str | Schedule | Sequence[float] | None = None,
        solver: str | Solver = "euler",
        height: int | None = None,
        width: int | None = None,
        noise: Tensor | None = None,
        max_batch: int | None = None,
        callback: Callback | None = None,
        check_finite: bool = False,
    ) -> SampleRun:
        """Draw one sample per label.

        ``seeds``: one per label, or one integer for ``seed, seed + 1, ...``; default random, recorded in the result.
        ``noise`` [B, C, H, W] replaces the seeds' initial noise.  ``max_batch`` splits the work; a sample does not depend
        on its batch.  ``callback(CallInfo)`` runs after every network call and may return False to stop.
        """
        labels = self._check_labels(labels)
        seeds = check_seeds(seeds, len(labels))
        plan = self.plan(guidance, steps, schedule, solver, height, width)
        shape = (self.spec.channels, plan.height, plan.width)
        if noise is None:
            noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        elif tuple(noise.shape) != (len(labels), *shape):
            raise ValueError(f"noise must have shape {(len(labels), *shape)}, got {tuple(noise.shape)}")
        chunk = len(labels) if max_batch is None else max_batch
        if chunk < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        latents, calls = [], plan.calls
        for first in range(0, len(labels), chunk):
            part = slice(first, first + chunk)
            program = self.load(plan, labels[part], seeds[part], noise[part])
            calls = run_program(program, callback, check_finite)
            latents.append(program.x.clone())
            if calls < plan.calls:
                break
        return SampleRun(torch.cat(latents), plan, tuple(labels), tuple(seeds), calls, self.spec.name)

    def load(self, plan: Plan, labels: Sequence[int], seeds: Sequence[int], noise: Tensor) -> Program:
        """A program holding this run, new or reused; ``noise`` [B, C, H, W] is unit normal."""
        key = ProgramKey.of(plan, len(labels))
        if key not in self._programs:
            if len(self._programs) >= self.MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = Program(key, plan, self.models, self.device)
        program = self._programs[key]
        state = noise.to(self.device, torch.float32) * plan.parameterization.prior_scale(float(plan.sigmas[0]))
        program.load(plan, state, self._condition_labels(plan, labels), list(seeds))
        return program

    def _condition_labels(self, plan: Plan, labels: Sequence[int]) -> dict[str | int, Tensor]:
        """Labels [B] of every condition of a plan."""
        spec = self.spec
        table = {"cond": list(labels), "uncond": [spec.null_label] * len(labels)}
        if "parent" in plan.conditions:
            table["parent"] = [spec.parent_label(label) for label in labels]
        table |= {label: [label] * len(labels) for label in plan.conditions if isinstance(label, int)}
        return {name: torch.tensor(values) for name, values in table.items()}

    def _check_labels(self, labels: Sequence[int]) -> list[int]:
        if isinstance(labels, str) or not hasattr(labels, "__iter__"):
            raise TypeError(f"labels must be a list of integers, got {labels!r}; {self.spec.name} is a class-label model")
        labels = [int(label) for label in labels]
        if not labels:
            raise ValueError("labels is empty; give at least one label")
        for label in labels:
            if not 0 <= label < self.spec.num_classes:
                raise ValueError(
                    f"label {label} is out of range: {self.spec.name} has classes 0 to {self.spec.num_classes - 1}"
                )
        return labels

    def explain(self) -> str:
        """What is loaded, where it runs and which programs exist."""
        lines = [f"device {self.device}, dtype {self.dtype}"]
        for name, model in self.models.items():
            count = sum(parameter.numel() for parameter in model.parameters())
            lines.append(f"network {name}: {model.spec.name}, {count / 1e6:.1f} M parameters, {model.spec.depth} layers")
        for key in self._programs:
            branches = " | ".join(map(str, key.branches))
            lines.append(
                f"program: batch {key.batch}, {key.height} x {key.width}, up to {key.calls} calls, branches {branches}"
            )
        return "\n".join(lines)


def check_seeds(seeds: Sequence[int] | int | None, count: int) -> list[int]:
    """One seed in [0, 2^63) per sample."""
    if seeds is None:
        return [secrets.randbits(32) for _ in range(count)]
    if isinstance(seeds, int):
        seeds = range(seeds, seeds + count)
    seeds = [int(seed) for seed in seeds]
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds do not fit {count} samples")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise ValueError(f"a seed must lie in [0, 2^63), got {seed}")
    return seeds
