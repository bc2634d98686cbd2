"""What is measured: models of the published shapes with random weights, the guidance rules, and their inputs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from segue.engine.core import EngineCore, resolve_plan
from segue.engine.planning.condition_labels import condition_labels
from segue.engine.planning.plan import Plan
from segue.engine.rules.guidance import Guidance
from segue.engine.rules.presets import parse_rule
from segue.engine.running.sampler import run_program
from segue.models.mmdit import TextCondition
from segue.models.registry import make_network
from segue.models.sd3_sizes import SD3_SIZES, sd3_spec
from segue.models.sizes import VAE_FACTOR, dit_spec, sit_spec
from segue.models.spec import ModelSpec, SiTSpec
from segue.models.weights import load_model

SEED = 20603
SCALE, WEIGHT = 4.5, 3.0  # the published SGG recipe
SGG_LAYERS = (7, 8, 9)
RULES = ("none", "cfg", "slg", "sgg", "sgg-exit")
BUNDLED = "herbarium"
BUNDLED_LAYERS = (7, 8)
EXIT_LAYER = 4

SPECS: dict[str, Callable[[], ModelSpec]] = {
    "sit-s/2": lambda: sit_spec("S/2", exits=(EXIT_LAYER,)),
    "sit-b/2": lambda: sit_spec("B/2", exits=(EXIT_LAYER,)),
    "sit-xl/2": lambda: sit_spec("XL/2", exits=(EXIT_LAYER,)),
    "dit-xl/2": lambda: dit_spec("XL/2", exits=(EXIT_LAYER,)),
    **{size: partial(sd3_spec, size) for size in SD3_SIZES},
}
_NAME = re.compile(r"([^@:]+)(?:@(\d+))?(?::(\d+))?")


class NotApplicable(ValueError):
    """A model lacks what a rule needs."""


@dataclass(frozen=True)
class BenchModel:
    """A model of the benchmark, written ``NAME[@WIDTH][:SIZE]``: hidden width and image side in pixels.

    A narrower width keeps depth and head dimension, so the plan's cost ratios hardly change.
    """

    text: str
    name: str
    spec: ModelSpec
    others: Mapping[str, ModelSpec] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, size: int | None = None) -> "BenchModel":
        """Raises ``ValueError`` for an unknown name, a width that is no multiple of the head dimension, a bad size."""
        match = _NAME.fullmatch(text)
        known = (BUNDLED, *SPECS)
        if not match or match[1] not in known:
            raise ValueError(f"unknown model {text!r}; write NAME, NAME@WIDTH or NAME:SIZE with one of: {', '.join(known)}")
        name, width = match[1], match[2]
        pixels = match[3] or (str(size) if size else None)
        if name != BUNDLED:
            spec, others = SPECS[name](), {}
        elif width:
            raise ValueError(f"the width of {BUNDLED} is that of its weights, got {text!r}")
        else:
            main, networks = load_model(BUNDLED)
            spec, others = main.spec, {other: network.spec for other, network in networks.items()}
        spec = narrowed(spec, int(width)) if width else spec
        spec = resized(spec, int(pixels)) if pixels else spec
        text = "".join([name, f"@{width}" if width else "", f":{pixels}" if pixels else ""])
        return cls(text, name, replace(spec, name=text), others)

    @property
    def fixed(self) -> bool:
        """Whether the weights, and with them the sizes, are those of a checkpoint."""
        return self.name == BUNDLED

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that the weak branch skips."""
        return BUNDLED_LAYERS if self.fixed else SGG_LAYERS

    def rule(self, text: str) -> Guidance:
        """A rule of ``RULES`` with this model's numbers, switched after half of the steps, or any rule written in full.

        Raises ``NotApplicable`` where the model cannot follow it, ``ValueError`` for a rule that does not exist.
        """
        layers, half = ",".join(map(str, self.layers)), "switch=fraction:0.5"
        exit_layer = self.spec.exits[0] if self.spec.exits else None
        if text in ("exit", "sgg-exit") and exit_layer is None:
            raise NotApplicable(f"{self.text} has no early-exit head")
        written = {
            "cfg": f"cfg:scale={SCALE}",
            "slg": f"slg:weight={WEIGHT},layers={layers}",
            "sgg": f"sgg:scale={SCALE},weight={WEIGHT},layers={layers},{half}",
            "exit": f"exit:weight={WEIGHT},layer={exit_layer}",
            "sgg-exit": f"sgg-exit:scale={SCALE},weight={WEIGHT},layer={exit_layer},{half}",
        }
        return parse_rule(written.get(text, text)).guidance

    def plan(self, rule: str, calls: int) -> Plan:
        """The plan of a rule, without weights; raises as :meth:`rule` does, and for layers or networks that do not exist."""
        spec = self.spec
        return resolve_plan({"main": spec, **self.others}, self.rule(rule), calls, height=spec.height, width=spec.width)

    def build(self, device: torch.device) -> tuple[nn.Module, dict[str, nn.Module]]:
        """The network in fp32 and further networks by name; the bundled model brings its weights, others get random ones."""
        if self.fixed:
            return load_model(BUNDLED)
        with torch.device(device):
            model = make_network(self.spec)
        return randomize(model, SEED), {}


def narrowed(spec: ModelSpec, width: int) -> ModelSpec:
    """The same depth and head dimension at another width."""
    if width < spec.head_dim or width % spec.head_dim or width % 4:
        raise ValueError(f"width must be a multiple of 4 and of the head dimension {spec.head_dim}, got {width}")
    return replace(spec, dim=width, heads=width // spec.head_dim)


def resized(spec: ModelSpec, pixels: int) -> ModelSpec:
    """The same network for square images of ``pixels``; raises ``ValueError`` where they cannot be cut into patches."""
    factor = 1 if spec.channels == 3 else VAE_FACTOR
    if pixels < 1 or pixels % (factor * spec.patch):
        raise ValueError(f"the image side must be a positive multiple of {factor * spec.patch} pixels, got {pixels}")
    return replace(spec, height=pixels // factor, width=pixels // factor)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Fill parameters with normal numbers: matrices keep unit variance, vectors are small; nothing is zero."""
    generators: dict[str, torch.Generator] = {}
    for parameter in model.parameters():
        device = parameter.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
        parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    return model.eval().requires_grad_(False)


@dataclass
class Workload:
    """A model on a device with a batch of conditions and noise: everything a timed run needs."""

    model: BenchModel
    engine: EngineCore
    batch: int

    @classmethod
    def make(cls, model: BenchModel, batch: int, device: torch.device, dtype: torch.dtype) -> "Workload":
        """Build the model and an engine with its default kernels and graphs."""
        network, others = model.build(device)
        return cls(model, EngineCore(network, others, device, dtype), batch)

    def plan(self, guidance: Guidance, steps: int) -> Plan:
        """The plan at the model's benchmark size."""
        spec = self.model.spec
        return self.engine.plan(guidance, steps, height=spec.height, width=spec.width)

    def state(self, plan: Plan) -> Tensor:
        """Noise at the first level, [B, C, H, W] fp32 on the device."""
        noise = self.engine.draw_noise(plan, range(self.batch)).to(self.engine.device)
        return noise * plan.parameterization.prior_scale(float(plan.sigmas[0]))

    def conditions(self, plan: Plan) -> Mapping[str | int, Tensor | TextCondition]:
        """What the model's rows take for each condition of the plan."""
        device = self.engine.device
        return random_conditions(self.engine.spec, plan.conditions, self.batch, device, self.engine.dtype)

    def sampler(self, plan: Plan) -> Callable[[], Tensor]:
        """A function that draws the batch by the engine, set-up of its tables included, and returns [B, C, H, W] fp32."""
        conditions, state, seeds = self.conditions(plan), self.state(plan), range(self.batch)

        def draw() -> Tensor:
            program = self.engine.prepare(plan, conditions, seeds, state)
            run_program(program)
            self.engine.release(program)  # for the next draw, whose set-up is then that of a warm engine
            return program.x

        return draw


def random_conditions(
    spec: ModelSpec, names: tuple[str | int, ...], batch: int, device: torch.device, dtype: torch.dtype, first: int = 0
) -> Mapping[str | int, Tensor | TextCondition]:
    """Labels [B] from ``first`` on, or random prompt embeddings of that number, for every named condition."""
    if isinstance(spec, SiTSpec):
        return condition_labels(spec, names, [(first + index) % spec.num_classes for index in range(batch)])
    made = {}
    for index, name in enumerate(names):
        generator = torch.Generator(device).manual_seed(SEED + len(names) * first + index)
        shape = (batch, spec.text_tokens, spec.text_dim)
        context = torch.randn(shape, generator=generator, device=device).to(dtype)
        made[name] = TextCondition(context, torch.randn(batch, spec.pooled_dim, generator=generator, device=device).to(dtype))
    return made
