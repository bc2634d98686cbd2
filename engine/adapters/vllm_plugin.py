"""Stable Diffusion 3 in vLLM-Omni by a guidance rule: a plug-in, and the pipeline that it registers.

vLLM-Omni calls :func:`register` of every installed Segue, in each of its processes; what it serves changes only where the
pipeline is asked for by name::

    vllm serve stabilityai/stable-diffusion-3.5-medium --omni --model-class-name SegueStableDiffusion3Pipeline

    Omni(model=..., model_class_name="SegueStableDiffusion3Pipeline", custom_pipeline_args={"guidance": "sgg"})

The rule is that of ``custom_pipeline_args``, another in the ``extra_args`` of a request, and without either the request's own
``guidance_scale``.  Prompts, scheduler and VAE are those of vLLM-Omni's adapter for diffusers, so what that refuses (tensor,
sequence and CFG parallelism, caches, steps of several requests in one batch) is refused here too.  Written for vLLM-Omni 0.30.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..rules.batch import RulesLike
from .diffusers import OWN_GUIDANCE, attach, attached_to

if TYPE_CHECKING:
    from vllm_omni.diffusion.models.diffusers_adapter.pipeline_diffusers_adapter import DiffusersAdapterPipeline as _Base
else:
    _Base = object  # vLLM-Omni's class is put beside it when it is asked for

PIPELINE = "SegueStableDiffusion3Pipeline"
ARGUMENT = "guidance"


def register() -> None:
    """Make the pipeline known to vLLM-Omni; once or often, in any process."""
    from vllm_omni.diffusion.registry import register_diffusion_model

    register_diffusion_model(PIPELINE, __name__, PIPELINE)


class GuidedAdapter(_Base):
    """vLLM-Omni's adapter for diffusers with a rule attached; ``SegueStableDiffusion3Pipeline`` is this class on top of it."""

    def __init__(self, *, od_config: Any):
        """``od_config``: of the stage.  Raises what the adapter raises for what it does not serve."""
        from vllm_omni.diffusion.distributed.utils import get_local_device

        super().__init__(od_config=od_config, device=get_local_device())
        self.guidance: RulesLike = (od_config.custom_pipeline_args or {}).get(ARGUMENT, OWN_GUIDANCE)
        self._rule: RulesLike = None  # of the last request

    def load_weights(self, weights: Iterable = ()) -> set[str]:
        """Load the pipeline by diffusers, not from ``weights``, and attach the rule; returns no names, as none are expected."""
        super().load_weights()
        self._attach(self.guidance)
        return set()

    def forward(self, req: Any) -> Any:
        """As the adapter's, by the rule of the request."""
        self._attach(req.sampling_params.extra_args.get(ARGUMENT, self.guidance))
        return super().forward(req)

    def _attach(self, rule: RulesLike) -> None:
        if attached_to(self._pipeline) is None or rule != self._rule:
            attach(self._pipeline, rule)  # refuses another network than those of SD3 and DiT
            self._rule = rule


def __getattr__(name: str):
    """Define ``SegueStableDiffusion3Pipeline`` when it is first asked for."""
    if name != PIPELINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm_omni.diffusion.models.diffusers_adapter.pipeline_diffusers_adapter import DiffusersAdapterPipeline

    globals()[name] = type(
        name, (GuidedAdapter, DiffusersAdapterPipeline), {"__module__": __name__, "__doc__": GuidedAdapter.__doc__}
    )
    return globals()[name]
