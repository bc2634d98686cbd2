"""A stand-in for what our plug-in touches of vLLM-Omni, written from its wheel 0.30.0.

- ``vllm_omni.plugins`` loads the entry points of the group ``vllm_omni.general_plugins`` in every process, and calls what each
  gives without arguments.
- ``vllm_omni.diffusion.registry.register_diffusion_model(model_arch, module_name, class_name, pre_process_func_name,
  post_process_func_name, ...)`` keeps a name; the class is looked up as an attribute of the imported module when a stage that
  asks for ``model_class_name`` begins, and made as ``cls(od_config=...)``.
- The loader then calls ``load_weights`` with an iterator over the files of ``weights_sources`` (none here), and compares what
  it returns with the names of the module's parameters.
- ``DiffusersAdapterPipeline`` is a module that holds a diffusers pipeline as ``_pipeline`` once ``load_weights`` has run;
  ``forward`` takes a batch of one request and gives a ``DiffusionOutput`` with what the pipeline's call gives as ``images``.
"""

from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

REGISTERED: dict[str, tuple[str, str]] = {}


def register_diffusion_model(
    model_arch: str,
    module_name: str,
    class_name: str,
    pre_process_func_name: str | None = None,
    post_process_func_name: str | None = None,
) -> None:
    assert pre_process_func_name is None and post_process_func_name is None, "looked up in the module"
    REGISTERED[model_arch] = (module_name, class_name)


@dataclass
class Sampling:
    guidance_scale: float = 1.0
    num_inference_steps: int = 50
    seed: int | None = None
    extra_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Request:
    """``DiffusionRequestBatch`` of one request."""

    prompts: list[Any]
    sampling_params: Sampling


class DiffusersAdapterPipeline(torch.nn.Module):
    def __init__(self, *, od_config: Any, device: torch.device | None = None):
        super().__init__()
        if od_config.parallel_config.tensor_parallel_size > 1:
            raise NotImplementedError("Tensor parallel is not supported with the diffusers backend.")
        self.od_config, self.device = od_config, device

    def load_weights(self) -> None:
        self._pipeline = self.od_config.model.to(self.device)

    def forward(self, req: Request) -> SimpleNamespace:
        asked, prompt = req.sampling_params, req.prompts[0]
        given = {"prompt": prompt["prompt"], "negative_prompt": prompt.get("negative_prompt")}
        given |= {name: getattr(asked, name) for name in ("guidance_scale", "num_inference_steps")}
        generator = torch.Generator(self.device).manual_seed(asked.seed)
        with torch.inference_mode():
            output = self._pipeline(**given, **self.od_config.diffusers_call_kwargs, generator=generator)
        return SimpleNamespace(output=output.images)


def modules() -> dict[str, ModuleType]:
    """The modules of vLLM-Omni by their names."""
    held = {
        "vllm_omni": {},
        "vllm_omni.diffusion": {},
        "vllm_omni.diffusion.registry": {"register_diffusion_model": register_diffusion_model},
        "vllm_omni.diffusion.distributed": {},
        "vllm_omni.diffusion.distributed.utils": {"get_local_device": lambda: torch.device("cpu")},
        "vllm_omni.diffusion.models": {},
        "vllm_omni.diffusion.models.diffusers_adapter": {},
        "vllm_omni.diffusion.models.diffusers_adapter.pipeline_diffusers_adapter": {
            "DiffusersAdapterPipeline": DiffusersAdapterPipeline
        },
    }
    made = {name: ModuleType(name) for name in held}
    for name, values in held.items():
        vars(made[name]).update(values)
    return made


def start_stage(model_class_name: str, **config: Any) -> torch.nn.Module:
    """The pipeline of a stage, as a worker makes it from ``OmniDiffusionConfig``."""
    module, name = REGISTERED[model_class_name]
    given = {"custom_pipeline_args": None, "parallel_config": SimpleNamespace(tensor_parallel_size=1)}
    model = getattr(import_module(module), name)(od_config=SimpleNamespace(**given | {"diffusers_call_kwargs": {}} | config))
    loaded = model.load_weights(iter(()))
    assert {name for name, _ in model.named_parameters()} - loaded == set()
    return model
