"""A denoiser for the loop of modular diffusers on Stable Diffusion 3: the live branches of a rule as rows of one batch.

::

    from diffusers import StableDiffusion3AutoBlocks
    from segue import GuidedLoopDenoiser

    blocks = GuidedLoopDenoiser("sgg").placed_in(StableDiffusion3AutoBlocks())
    pipe = blocks.init_pipeline("stabilityai/stable-diffusion-3.5-medium")
    pipe.load_components()
    picture = pipe(prompt="a storefront", negative_prompt="", output="images")[0]

A guider of modular diffusers cannot batch: the loop calls the transformer once for each of its branches.  This block stands in
the place of the one that does so, and the guider with it.  diffusers is imported with the class, not with this module.
"""

import copy
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..planning.plan import Plan
from ..rules.batch import Rules, RulesLike, as_rules, refuse_draws, takes_call_scale
from .around_forward import AroundForward
from .guided_calls import GuidedCalls
from .transformer_call import TransformerCall

if TYPE_CHECKING:
    from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser as _Base
else:
    _Base = object  # diffusers' class is put beside it when it is asked for

TEXTS = ("prompt_embeds", "pooled_prompt_embeds")
JOINED = "_segue_texts"  # the field of a block state that holds the prompts of both conditions, for the calls of its run


class LoopCalls(GuidedCalls):
    """The guided velocity in the loop of a modular pipeline, whose transformer is not called itself."""

    LIVE = AroundForward

    def rule_of_run(self) -> Rules:
        """As :meth:`GuidedCalls.rule_of_run`.  Raises ``ValueError`` for a rule that a loop of blocks cannot follow."""
        rule = as_rules(self.guidance, self._live.spec)
        if takes_call_scale(rule):
            raise ValueError("a modular pipeline's call has no guidance_scale for CFG('call') to take; write a number")
        refuse_draws(rule)
        return rule


class RuleDenoiser(_Base):
    """A block that leaves the guided velocity of a rule in the loop's state, by one batch of live rows at every call.

    ``GuidedLoopDenoiser`` is this class on top of diffusers' own ``StableDiffusion3LoopDenoiser``, whose inputs it takes.  One
    more, ``guidance``, is a rule for this call alone; the output ``plan`` says what was evaluated.
    """

    def __init__(self, guidance: RulesLike = "cfg"):
        """``guidance``: a rule or its text; ``"cfg"`` is classifier-free guidance at the usual scale of the model."""
        super().__init__()
        self.guidance = guidance
        self._calls: LoopCalls | None = None

    def __deepcopy__(self, memo: dict) -> Self:
        """A block with the same rule and nothing of its runs: pipelines copy the blocks that they are made of."""
        return type(self)(self.guidance)

    @property
    def description(self) -> str:
        return "Step within the denoising loop that evaluates the live branches of a guidance rule as rows of one batch."

    @property
    def expected_components(self) -> list:
        """The transformer, and the scheduler, whose levels the rule is planned for; no guider."""
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec

        own = [spec for spec in super().expected_components if spec.name != "guider"]
        return [*own, ComponentSpec("scheduler", FlowMatchEulerDiscreteScheduler)]

    @property
    def inputs(self) -> list:
        from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

        words = "A guidance rule of Segue or its text, such as 'sgg:scale=4.5'."
        return [*super().inputs, InputParam("guidance", default=self.guidance, description=words)]

    @property
    def intermediate_outputs(self) -> list:
        from diffusers.modular_pipelines.modular_pipeline_utils import OutputParam

        return [OutputParam("plan", type_hint=Plan, description="Which branches were evaluated at which call.")]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> tuple[Any, Any]:
        """Call ``i`` of the loop, at timestep ``t``: ``noise_pred`` is the guided velocity [B, C, H, W]."""
        if self._calls is None or self._calls.pipe is not components:
            self._calls = LoopCalls(components, block_state.guidance)
        self._calls.guidance = block_state.guidance
        call = transformer_call(block_state)
        with call.scaled_lora(components.transformer):
            velocity = self._calls.velocity(call, t, watched=True)  # other blocks of the loop may do anything
        block_state.noise_pred = velocity.to(block_state.latents.dtype)
        block_state.plan = self._calls.plan
        return components, block_state

    def placed_in(self, blocks: Any) -> Any:
        """A copy of ``blocks`` in which this denoiser is in the place of every one of Stable Diffusion 3.

        diffusers shares the blocks that its classes are made of between all their instances, which stay as they are.  Raises
        ``ValueError`` where there is none.
        """
        placed = copy.deepcopy(blocks)
        if not self._replace(placed.sub_blocks):
            raise ValueError(f"{type(blocks).__name__} holds no denoiser of Stable Diffusion 3 whose place this one could take")
        return placed

    def _replace(self, blocks: Any) -> int:
        """Put copies of this block in the place of the denoisers in a tree of blocks; returns how many."""
        from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser

        own = [name for name, block in blocks.items() if isinstance(block, StableDiffusion3LoopDenoiser)]
        for name in own:
            blocks[name] = copy.deepcopy(self)
        return len(own) + sum(self._replace(block.sub_blocks) for block in blocks.values())


def transformer_call(state: Any) -> TransformerCall:
    """The call that the latents and prompts of a block state ask for; prompts are joined once for a run."""
    negative = [getattr(state, f"negative_{name}") for name in TEXTS]
    guided = all(text is not None for text in negative)
    if not hasattr(state, JOINED):
        positive = [getattr(state, name) for name in TEXTS]
        pairs = zip(negative, positive, strict=True)
        setattr(state, JOINED, [torch.cat(pair) for pair in pairs] if guided else positive)
    context, pooled = getattr(state, JOINED)
    latents = torch.cat([state.latents] * (1 + guided))
    return TransformerCall.of(guided, latents, context, pooled, None, state.joint_attention_kwargs)


if TYPE_CHECKING:

    class GuidedLoopDenoiser(RuleDenoiser): ...


def __getattr__(name: str):
    """Define ``GuidedLoopDenoiser`` when it is first asked for."""
    if name != "GuidedLoopDenoiser":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser

    globals()[name] = type(
        name, (RuleDenoiser, StableDiffusion3LoopDenoiser), {"__module__": __name__, "__doc__": RuleDenoiser.__doc__}
    )
    return globals()[name]
