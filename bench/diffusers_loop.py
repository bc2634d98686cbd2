"""A sampling loop around a diffusers transformer: what people run today.

The loop is shorter than a pipeline's (no scheduler object, no progress bar), so it errs in the peer's favour.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.parameterization import Parameterization
from segue.models.spec import SiTSpec

from .cases import SCALE, SEED, WEIGHT, BenchModel, random_conditions

RULES = ("none", "cfg", "sgg")


@contextmanager
def bypassed(module: nn.Module, layers: tuple[int, ...]) -> Iterator[None]:
    """A diffusers DiT, which has no option for it, without some of its blocks."""
    blocks = module.transformer_blocks
    module.transformer_blocks = nn.ModuleList(block for layer, block in enumerate(blocks) if layer not in layers)
    try:
        yield
    finally:
        module.transformer_blocks = blocks


@dataclass(eq=False)
class DiffusersLoop:
    """Draws a batch with Euler steps on ``module`` at the noise levels of the model's own schedule.

    The state is in the module's dtype, as diffusers keeps it.  ``noise`` [B, C, H, W]: the state at the first level, random
    if None.
    """

    module: nn.Module
    model: BenchModel
    batch: int
    calls: int
    device: torch.device
    dtype: torch.dtype
    noise: Tensor | None = None

    def __post_init__(self):
        spec, schedule = self.model.spec, self.model.plan("none", self.calls).schedule
        convention = Parameterization(spec)
        levels = convention.snap(schedule.array())
        called = levels[:-1]
        self.sigmas = levels.tolist()
        self.times = convention.network_time(called).tolist()
        self.input_scales = convention.input_scale(called).tolist()
        self.factors = [tuple(map(float, pair)) for pair in zip(*convention.velocity(called), strict=True)]
        conditions = random_conditions(spec, ("cond", "uncond"), self.batch, self.device, self.dtype)
        self.cond, self.uncond = (
            {k: v.to(self.device) for k, v in self._arguments(conditions[name]).items()} for name in ("cond", "uncond")
        )
        if self.noise is None:
            generator = torch.Generator(self.device).manual_seed(SEED)
            shape = (self.batch, spec.channels, spec.height, spec.width)
            self.noise = torch.randn(shape, generator=generator, device=self.device)
        self.noise = self.noise.to(self.dtype)

    @staticmethod
    def _arguments(condition: Any) -> dict[str, Tensor]:
        """A condition as the module's keyword arguments."""
        if isinstance(condition, Tensor):
            return {"class_labels": condition}
        return {"encoder_hidden_states": condition.context, "pooled_projections": condition.pooled}

    def output(self, x: Tensor, call: int, condition: dict[str, Tensor], skip: tuple[int, ...] = ()) -> Tensor:
        """One forward; x [R, C, H, W] and the conditions R long -> the network's own output [R, C, H, W]."""
        time = torch.full((len(x),), self.times[call], device=self.device)
        scale = self.input_scales[call]
        x = x if scale == 1 else scale * x
        arguments = condition | {"hidden_states": x, "timestep": time, "return_dict": False}
        if skip and isinstance(self.model.spec, SiTSpec):
            with bypassed(self.module, skip):
                output = self.module(**arguments)[0]
        else:
            output = self.module(**arguments, **({"skip_layers": list(skip)} if skip else {}))[0]
        return output[:, : self.model.spec.channels]

    def both(self, x: Tensor, call: int) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional output, two rows of one forward."""
        pair = {name: torch.cat([self.uncond[name], value]) for name, value in self.cond.items()}
        unconditional, conditional = self.output(torch.cat([x, x]), call, pair).chunk(2)
        return unconditional, conditional

    def guided(self, rule: str, x: Tensor, call: int) -> Tensor:
        """The output by ``none``, ``cfg`` or ``sgg`` as published: two rows always, and a whole weak pass."""
        if rule == "none":
            return self.output(x, call, self.cond)
        unconditional, conditional = self.both(x, call)
        if rule == "cfg" or call < self.calls // 2:
            return unconditional + SCALE * (conditional - unconditional)
        weak = self.output(x, call, self.cond, self.model.layers)
        return conditional + WEIGHT * (conditional - weak)

    def draw(self, rule: str, guided: Callable[[str, Tensor, int], Tensor] | None = None) -> Callable[[], Tensor]:
        """A function that draws the batch under a rule; ``guided`` replaces :meth:`guided`."""
        if rule not in RULES:
            raise ValueError(f"the diffusers loop knows none, cfg and sgg, got {rule!r}")
        evaluate = guided or self.guided

        @torch.no_grad()
        def run() -> Tensor:
            x = self.noise
            for call, (sigma, following) in enumerate(zip(self.sigmas, self.sigmas[1:], strict=False)):
                of_state, of_output = self.factors[call]
                velocity = of_output * evaluate(rule, x, call).float()
                if of_state:
                    velocity += of_state * x.float()
                x = (x.float() + (following - sigma) * velocity).to(self.dtype)
            return x

        return run
