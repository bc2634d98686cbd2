"""A Stable Diffusion 3 as teacher and student: a LoRA on the transformer of a diffusers pipeline, trained on prompts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.engine.adapters.weight_adapters import LORA_FILE, LORA_RULE
from segue.engine.files import whole_file
from segue.engine.planning.plan import Plan
from segue.engine.prompts.encoding import PromptEmbeddings
from segue.engine.prompts.engine import PromptEngine
from segue.engine.prompts.saved_pipeline import load_pipeline
from segue.engine.sources import DEFAULT, Reading
from segue.models.low_rank import LowRankSpec
from segue.models.mmdit_diffusers import from_diffusers
from segue.models.weights import write_tensors
from segue.models.wrapped_modules import unwrapped

from ..run_folder import WEIGHTS
from .spec import DistillSpec
from .teacher import Teacher

# target -> modules of a diffusers block: of the image stream, of the text stream, of the second attention of SD3.5-medium
_QKV = ("to_q", "to_k", "to_v")
TARGETS = {
    "qkv": (
        *(f"attn.{name}" for name in (*_QKV, "add_q_proj", "add_k_proj", "add_v_proj")),
        *(f"attn2.{name}" for name in _QKV),
    ),
    "proj": ("attn.to_out.0", "attn.to_add_out", "attn2.to_out.0"),
    "fc1": ("ff.net.0.proj", "ff_context.net.0.proj"),
    "fc2": ("ff.net.2", "ff_context.net.2"),
    "adaLN": ("norm1.linear", "norm1_context.linear"),
}
END_TARGETS = {"final": ("proj_out", "norm_out.linear")}
PEFT_FILES = "adapter_model.safetensors", "adapter_config.json"


def adapted_modules(transformer: nn.Module, spec: LowRankSpec) -> list[str]:
    """The names of the linears that an adapter is for; ``ValueError`` for a layer that the transformer does not have."""
    depth = len(transformer.transformer_blocks)
    for layer in spec.layers:
        if not 0 <= layer < depth:
            raise ValueError(f"the transformer has the layers 0 to {depth - 1}, got {layer}")
    held = dict(transformer.named_modules())
    wanted = [
        f"transformer_blocks.{layer}.{name}"
        for layer in spec.layers or range(depth)
        for target in spec.targets
        for name in TARGETS.get(target, ())
    ]
    wanted += [name for target in spec.targets for name in END_TARGETS.get(target, ())]
    return [name for name in wanted if isinstance(held.get(name), nn.Linear)]


class PromptTeacher:
    """A pipeline whose transformer teaches and is taught: the teacher runs on its packed weights, which no LoRA changes."""

    def __init__(self, folder: str | Path, device: torch.device, dtype: torch.dtype, reading: Reading = DEFAULT):
        pipe = load_pipeline(folder, dtype, reading).to(device)
        pipe.transformer.requires_grad_(False)
        self.pipe, self.transformer = pipe, pipe.transformer
        self.engine = PromptEngine(from_diffusers(pipe.transformer), pipe, device, dtype)
        self._embeddings: PromptEmbeddings | None = None

    def encode(self, prompts: Sequence[str], negative: str | None, length: int) -> None:
        """Encode all prompts, then drop the text encoders."""
        self._embeddings = self.engine.encode(list(prompts), negative, max_sequence_length=length)
        self.engine.free_text_encoders()

    @property
    def embeddings(self) -> PromptEmbeddings:
        """Those of all prompts; ``ValueError`` before :meth:`encode`."""
        if self._embeddings is None:
            raise ValueError("no prompts are encoded yet")
        return self._embeddings

    def teacher(self, plan: Plan) -> Teacher:
        """The teacher that samples the encoded prompts by their number."""

        def denoiser(rule, labels, schedule):
            chosen = self.embeddings.select(labels)
            return self.engine.denoiser(rule, chosen, schedule=schedule, height=plan.height, width=plan.width)

        return Teacher(plan, denoiser)


class AdaptedTransformer(nn.Module):
    """A transformer of diffusers with a LoRA, called as our networks are: state, time, context, pooled."""

    def __init__(self, transformer: nn.Module, spec: Any):
        super().__init__()
        self.transformer, self.spec = transformer, spec

    def forward(self, x: Tensor, time: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """x [B, C, H, W], time [B] = 1000 sigma, context [B, M, text_dim], pooled [B, pooled_dim] -> velocity [B, C, H, W]."""
        weights = self.transformer.pos_embed.proj.weight
        given = {"encoder_hidden_states": context.to(weights.dtype), "pooled_projections": pooled.to(weights.dtype)}
        return self.transformer(hidden_states=x.to(weights.dtype), timestep=time, **given, return_dict=False)[0]


class PromptStudent:
    """The transformer of a pipeline with a LoRA of peft; there is one network, which a second call gives a new LoRA."""

    def __init__(self, held: PromptTeacher, spec: DistillSpec):
        self.held, self.spec = held, spec
        self.config = lora_config(held.transformer, spec.adapter.low_rank)

    def network(self) -> AdaptedTransformer:
        transformer = self.held.transformer
        if getattr(transformer, "peft_config", None):
            transformer.delete_adapters(list(transformer.peft_config))
        transformer.add_adapter(self.config)
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return AdaptedTransformer(transformer, self.spec)

    def conditions(self, labels: Tensor, scale: Tensor | None) -> tuple[Tensor, ...]:
        chosen = self.held.embeddings.positive
        rows = labels.to(chosen.context.device)
        return chosen.context[rows], chosen.pooled[rows]

    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the LoRA into the folder of ``path``, once as diffusers and once as peft name it."""
        folder = path.parent if path.name == WEIGHTS else path.with_suffix("")  # a step that is kept has a folder of its own
        folder.mkdir(exist_ok=True)
        header = {**(metadata or {}), LORA_RULE: self.spec.rule}
        write_lora(unwrapped(network).transformer, folder, self.config, header)


def lora_config(transformer: nn.Module, spec: LowRankSpec) -> Any:
    """peft's description of an adapter.  Raises ``ValueError`` where nothing is adapted."""
    from peft import LoraConfig

    modules = adapted_modules(transformer, spec)
    if not modules:
        raise ValueError(f"the transformer has no linear among the targets {', '.join(spec.targets)}")
    return LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=modules, init_lora_weights="gaussian")


def write_lora(transformer: nn.Module, folder: Path, config: Any, metadata: Mapping[str, str] | None = None) -> None:
    """The LoRA of a transformer as :data:`LORA_FILE` for diffusers and :data:`PEFT_FILES` for peft, in fp16.

    Raises ``ValueError`` for a tensor that is not finite there, ``OSError`` if a file cannot be written.
    """
    from peft import get_peft_model_state_dict

    state = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in get_peft_model_state_dict(transformer).items()
    }
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite in float16")
    described = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    header = {"format": "pt"} | {name: str(value) for name, value in (metadata or {}).items()}
    alpha = json.dumps({f"transformer.{key}": value for key, value in described.items()}, default=str)
    write_tensors(
        {f"transformer.{name}": value for name, value in state.items()},
        folder / LORA_FILE,
        header | {"lora_adapter_metadata": alpha},
    )
    write_tensors({f"base_model.model.{name}": value for name, value in state.items()}, folder / PEFT_FILES[0], header)
    with whole_file(folder / PEFT_FILES[1]) as part:
        part.write_text(json.dumps(described, indent=1, default=str) + "\n")
