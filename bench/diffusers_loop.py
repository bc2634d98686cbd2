"""A sampling loop around a diffusers transformer of the same architecture with random weights: what people run today.

The loop is shorter than a pipeline's (no scheduler object, no progress bar), so it errs in the peer's favour.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.mmdit_spec import MMDiTSpec
from segue.models.spec import ModelSpec, SiTSpec

from .cases import SCALE, SEED, WEIGHT, BenchModel, random_conditions, randomize


def diffusers_module(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """``SD3Transformer2DModel`` or ``DiTTransformer2DModel`` of the sizes of ``spec`` with random weights.

    Raises ``ImportError`` without diffusers.
    """
    from diffusers import DiTTransformer2DModel, SD3Transformer2DModel

    sizes = {
        "num_attention_heads": spec.heads,
        "attention_head_dim": spec.head_dim,
        "in_channels": spec.channels,
        "out_channels": spec.out_channels,
        "num_layers": spec.depth,
        "sample_size": spec.height,
        "patch_size": spec.patch,
    }
    with torch.device(device):
        if isinstance(spec, MMDiTSpec):
            module = SD3Transformer2DModel(
                **sizes,
                joint_attention_dim=spec.text_dim,
                caption_projection_dim=spec.dim,
                pooled_projection_dim=spec.pooled_dim,
                pos_embed_max_size=spec.position_size,
                dual_attention_layers=spec.dual_layers,
                qk_norm="rms_norm" if spec.qk_norm else None,
            )
        else:
            module = DiTTransformer2DModel(**sizes, num_embeds_ada_norm=spec.null_label)  # parents lie between
    module = randomize(module.to(device), SEED)
    return module if dtype == torch.float32 else module.to(dtype)


@contextmanager
def bypassed(module: nn.Module, layers: tuple[int, ...]) -> Iterator[None]:
    """A diffusers DiT, which has no option for it, without some of its blocks."""
    blocks = module.transformer_blocks
    module.transformer_blocks = nn.ModuleList(block for layer, block in enumerate(blocks) if layer not in layers)
    try:
        yield
    finally:
        module.transformer_blocks = blocks


@dataclass
class DiffusersLoop:
    """Draws a batch with Euler steps on ``module``; the state is in the module's dtype, as diffusers keeps it."""

    module: nn.Module
    model: BenchModel
    batch: int
    calls: int
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self):
        spec, self.sigmas = self.model.spec, torch.linspace(1.0, 0.0, self.calls + 1).tolist()
        conditions = random_conditions(spec, ("cond", "uncond"), self.batch, self.device, self.dtype)
        self.cond, self.uncond = (
            {k: v.to(self.device) for k, v in self._arguments(conditions[name]).items()} for name in ("cond", "uncond")
        )
        generator = torch.Generator(self.device).manual_seed(SEED)
        shape = (self.batch, spec.channels, spec.height, spec.width)
        self.noise = torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

    @staticmethod
    def _arguments(condition: Any) -> dict[str, Tensor]:
        """A condition as the module's keyword arguments."""
        if isinstance(condition, Tensor):
            return {"class_labels": condition}
        return {"encoder_hidden_states": condition.context, "pooled_projections": condition.pooled}

    def velocity(self, x: Tensor, sigma: float, condition: dict[str, Tensor], skip: tuple[int, ...] = ()) -> Tensor:
        """One forward; x [R, C, H, W] and the conditions R long -> [R, C, H, W]."""
        is_class = isinstance(self.model.spec, SiTSpec)
        time = torch.full((len(x),), 1000 * sigma, device=self.device)
        arguments = condition | {"hidden_states": x, "timestep": time, "return_dict": False}
        if is_class and skip:
            with bypassed(self.module, skip):
                output = self.module(**arguments)[0]
        else:
            output = self.module(**arguments, **({"skip_layers": list(skip)} if skip else {}))[0]
        return output[:, : self.model.spec.channels]

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional prediction, two rows of one forward."""
        pair = {name: torch.cat([self.uncond[name], value]) for name, value in self.cond.items()}
        unconditional, conditional = self.velocity(torch.cat([x, x]), sigma, pair).chunk(2)
        return unconditional, conditional

    def guided(self, rule: str, x: Tensor, call: int) -> Tensor:
        """The velocity by ``none``, ``cfg`` or ``sgg`` as published: two rows always, and a whole weak pass."""
        sigma = self.sigmas[call]
        if rule == "none":
            return self.velocity(x, sigma, self.cond)
        unconditional, conditional = self.both(x, sigma)
        if rule == "cfg" or call < self.calls // 2:
            return unconditional + SCALE * (conditional - unconditional)
        weak = self.velocity(x, sigma, self.cond, self.model.layers)
        return conditional + WEIGHT * (conditional - weak)

    def draw(self, rule: str, guided: Callable[[str, Tensor, int], Tensor] | None = None) -> Callable[[], Tensor]:
        """A function that draws the batch under a rule; ``guided`` replaces :meth:`guided`."""
        if rule not in ("none", "cfg", "sgg"):
            raise ValueError(f"the diffusers loop knows none, cfg and sgg, got {rule!r}")
        evaluate = guided or self.guided

        @torch.no_grad()
        def run() -> Tensor:
            x = self.noise
            for call, (sigma, following) in enumerate(zip(self.sigmas, self.sigmas[1:], strict=False)):
                x = (x.float() + (following - sigma) * evaluate(rule, x, call).float()).to(self.dtype)
            return x

        return run
