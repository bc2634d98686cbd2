"""The Engine for text-to-image models (SD3, SD3.5), with diffusers' text encoders, scheduler and VAE around it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.mmdit import TextCondition

from .adapters.kdiffusion import Denoiser
from .core import EngineCore, ScheduleLike, check_seeds
from .guidance import Guidance
from .parity import sample_as_diffusers
from .plan import Plan
from .program import Program
from .prompt_plan import DEFAULT_STEPS, latent_size, resolve_prompt_plan, timed_scheduler
from .prompts import ENCODERS, PromptEmbeddings, check_prompts, encode_prompts
from .sampler import Callback
from .schedule import Schedule, from_scheduler
from .solvers import Solver
from .vae import decode_latents, encode_image
from .velocity import GuidedVelocity


@dataclass(frozen=True)
class PromptRun:
    """What a run made.  ``latents`` [B, C, H, W] fp32; ``images`` PIL, empty without a VAE or when not asked for."""

    latents: Tensor
    plan: Plan
    seeds: tuple[int, ...]
    calls: int
    model: str
    prompts: tuple[str, ...] = ()
    images: list = field(default_factory=list)


class PromptEngine(EngineCore):
    """Samples from an MMDiT.  ``pipe`` is the diffusers pipeline whose encoders, scheduler and VAE are used, if any."""

    def __init__(
        self,
        model: nn.Module,
        pipe: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
    ):
        super().__init__(model, None, device, dtype, graphs, kernels, linears)
        self.pipe = pipe

    @classmethod
    def from_pipe(cls, pipe, *, graphs: bool | None = None, kernels: str = "auto", linears: str = "native") -> "PromptEngine":
        """An engine on a live diffusers SD3 pipeline; the weights are shared, not copied.

        With ``linears="fp8"`` the fp8 weights stand beside the pipeline's own; ``explain()`` says how large they are.
        """
        from segue.models.mmdit import MMDiT

        transformer = pipe.transformer
        model = MMDiT.from_diffusers(transformer, share=True)
        return cls(model, pipe, transformer.device, transformer.dtype, graphs, kernels, linears)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        device=None,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
    ) -> "PromptEngine":
        """An engine from a saved diffusers SD3 pipeline (or a hub id).

        With ``linears="fp8"`` the transformer inside ``pipe`` keeps its configuration only: its weights are not held twice.
        """
        from diffusers import StableDiffusion3Pipeline

        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        pipe = StableDiffusion3Pipeline.from_pretrained(str(folder), dtype=dtype).to(device)
        engine = cls.from_pipe(pipe, graphs=graphs, kernels=kernels, linears=linears)
        if linears == "fp8":
            pipe.transformer.to("meta")
        return engine

    # --- prompts -------------------------------------------------------------------------------------------------------

    def encode(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = "", *, max_sequence_length: int = 256
    ) -> PromptEmbeddings:
        """Encode prompts once for any number of runs; ``negative_prompt=None`` leaves the unconditional branch out."""
        pipe = self._need_pipe("encode prompts")
        prompts = check_prompts(prompt)
        negatives = None if negative_prompt is None else check_prompts(negative_prompt, len(prompts))
        return encode_prompts(pipe, prompts, negatives, self.device, max_sequence_length)

    def free_text_encoders(self) -> None:
        """Drop the text encoders and their memory; embeddings made before stay usable."""
        pipe = self._need_pipe("free the text encoders")
        for name in ENCODERS:
            setattr(pipe, name, None)

    def offload_text_encoders(self, device: str | torch.device = "cpu") -> None:
        """Move the text encoders to another device; ``encode`` needs them back on the engine's."""
        pipe = self._need_pipe("offload the text encoders")
        for name in ENCODERS:
            encoder = getattr(pipe, name, None)
            if encoder is not None:
                encoder.to(device)

    def _need_pipe(self, purpose: str):
        if self.pipe is None:
            raise ValueError(
                f"this engine has a transformer only: it cannot {purpose}; build it with from_pipe or a pipeline folder"
            )
        return self.pipe

    # --- planning ------------------------------------------------------------------------------------------------------

    def native_schedule(self, steps: int, height: int, width: int) -> Schedule:
        """The noise levels of the pipeline's own scheduler for a latent of ``height`` x ``width``."""
        return from_scheduler(self._scheduler(steps, height, width))

    def _scheduler(self, steps: int, height: int, width: int) -> Any:
        """A copy of the pipeline's scheduler with its timesteps set."""
        return timed_scheduler(self.pipe.scheduler, steps, self.spec.tokens(height, width))

    def plan(
        self,
        guidance: Guidance | None = None,
        steps: int | None = None,
        schedule: ScheduleLike | None = None,
        solver: str | Solver | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        text_tokens: int | None = None,
    ) -> Plan:
        """As :meth:`EngineCore.plan`; schedule and solver default to those of the pipeline's scheduler.

        ``strength`` keeps the last part of the schedule (image-to-image); ``text_tokens`` is the prompt length M, by default
        the model's.
        """
        scheduler = None if self.pipe is None else self.pipe.scheduler
        return resolve_prompt_plan(
            self.specs, scheduler, guidance, steps, schedule, solver, height, width, strength, text_tokens
        )

    # --- sampling ------------------------------------------------------------------------------------------------------

    def sample(
        self,
        embeddings: PromptEmbeddings,
        guidance: Guidance | None = None,
        *,
        steps: int | None = None,
        seeds: Sequence[int] | int | None = None,
        schedule: ScheduleLike | None = None,
        solver: str | Solver | None = None,
        height: int | None = None,
        width: int | None = None,
        noise: Tensor | None = None,
        latents: Tensor | None = None,
        strength: float = 1.0,
        max_batch: int | None = None,
        callback: Callback | None = None,
        check_finite: bool = False,
        progress: bool = False,
        numerics: str = "segue",
    ) -> PromptRun:
        """Draw one latent per embedded prompt; ``height`` and ``width`` are the latent size.

        ``noise`` [B, C, H, W] replaces the seeds' noise.  ``latents`` [B, C, H, W] is a clean start for image-to-image: it
        is noised to the first level of the last ``strength`` part of the schedule.  ``numerics="diffusers"`` is a mode to
        compare with: everything but the network itself rounds as the pipeline does, and the latents have the model's dtype;
        :mod:`.parity` says what is bit for bit the same.
        """
        self._check_numerics(numerics, schedule, solver, max_batch, check_finite)
        seeds = check_seeds(seeds, len(embeddings))
        if strength != 1.0 and latents is None:
            raise ValueError(f"strength {strength} needs a start: pass latents or an image")
        if latents is not None:
            height, width = latents.shape[-2:]
        length = embeddings.positive.context.shape[1]
        plan = self.plan(guidance, steps, schedule, solver, height, width, strength, length)
        if noise is None:
            noise = self.draw_noise(plan, seeds, self.dtype if numerics == "diffusers" else torch.float32)
        conditions = self._conditions(plan, embeddings)
        if numerics == "diffusers":
            scheduler = self._scheduler(DEFAULT_STEPS if steps is None else steps, plan.height, plan.width)
            options = {"latents": latents, "callback": callback, "progress": progress}
            result, calls = sample_as_diffusers(self, plan, conditions, seeds, scheduler, noise, **options)
        else:
            state = self._first_state(plan, noise, latents, len(embeddings))
            options = {"max_batch": max_batch, "callback": callback, "check_finite": check_finite, "progress": progress}
            result, calls = self.run(plan, conditions, seeds, state, **options)
        return PromptRun(result, plan, tuple(seeds[: len(result)]), calls, self.spec.name)

    def _check_numerics(self, numerics: str, schedule, solver, max_batch, check_finite) -> None:
        if numerics not in ("segue", "diffusers"):
            raise ValueError(f"unknown numerics {numerics!r}; known: segue, diffusers")
        given = {"schedule": schedule, "solver": solver, "max_batch": max_batch, "check_finite": check_finite or None}
        given = [name for name, value in given.items() if value is not None]
        if numerics == "diffusers" and given:
            raise ValueError(f"numerics='diffusers' runs the pipeline's scheduler as it is and takes no {' or '.join(given)}")
        if numerics == "diffusers":
            self._need_pipe("reproduce its scheduler's roundings")

    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        guidance: Guidance | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        seeds: Sequence[int] | int | None = None,
        image: Any = None,
        strength: float = 0.6,
        max_sequence_length: int = 256,
        **options,
    ) -> PromptRun:
        """Prompts to images.  ``height`` and ``width`` are pixels; ``num_images`` per prompt, prompt-major.

        ``image`` (PIL, array or tensor) starts from a picture at ``strength``.  Other keywords are those of :meth:`sample`.
        """
        pipe = self._need_pipe("generate images from prompts")
        prompts = check_prompts(prompt)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        size = latent_size(self.spec, pipe.vae_scale_factor, height, width)
        plan = self.plan(guidance, options.get("steps"), options.get("schedule"), options.get("solver"), *size)
        negative = negative_prompt if "uncond" in plan.conditions else None
        embeddings = self.encode(prompts, negative, max_sequence_length=max_sequence_length).repeat(num_images)
        if image is not None:
            options |= {"latents": encode_image(pipe, image, *size).expand(len(embeddings), -1, -1, -1), "strength": strength}
        run = self.sample(embeddings, guidance, seeds=seeds, height=size[0], width=size[1], **options)
        images = decode_latents(pipe, run.latents)
        pipe.maybe_free_model_hooks()
        names = tuple(name for name in prompts for _ in range(num_images))[: len(images)]
        return PromptRun(run.latents, run.plan, run.seeds, run.calls, run.model, names, images)

    def denoiser(
        self,
        guidance: Guidance | None,
        embeddings: PromptEmbeddings,
        *,
        schedule: Sequence[float] | Schedule | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Denoiser:
        """A k-diffusion style ``model(x, sigma[B]) -> denoised`` for one latent per embedded prompt."""
        size = (self.spec.height if height is None else height, self.spec.width if width is None else width)
        sigmas = Schedule(tuple(schedule)) if schedule is not None and not isinstance(schedule, Schedule) else schedule
        specs = {name: replace(spec, text_tokens=embeddings.positive.context.shape[1]) for name, spec in self.specs.items()}
        conditions = partial(self._conditions, embeddings=embeddings)
        return Denoiser(GuidedVelocity(self, guidance, conditions, *size, sigmas, specs=specs))

    def load(
        self, plan: Plan, embeddings: PromptEmbeddings, seeds: Sequence[int], noise: Tensor, latents: Tensor | None = None
    ) -> Program:
        """A program ready to step through ``plan``; ``noise`` [B, C, H, W] is unit normal, ``latents`` a clean start."""
        state = self._first_state(plan, noise, latents, len(embeddings))
        return self.prepare(plan, self._conditions(plan, embeddings), seeds, state)

    def _first_state(self, plan: Plan, noise: Tensor, latents: Tensor | None, count: int) -> Tensor:
        """The sample [B, C, H, W] at the plan's first noise level: noise, mixed with a clean start if there is one."""
        state = self.check_noise(plan, noise, count).float()
        if latents is None:
            return state
        sigma = float(plan.sigmas[0])
        return sigma * state + (1 - sigma) * self.check_noise(plan, latents, count).float().to(state.device)

    def _conditions(self, plan: Plan, embeddings: PromptEmbeddings) -> dict[str | int, TextCondition]:
        table: dict[str | int, TextCondition] = {}
        for condition in plan.conditions:
            if condition not in ("cond", "uncond"):
                raise ValueError(f"the condition {condition!r} needs class labels, and {self.spec.name} takes prompts")
            table[condition] = embeddings.positive if condition == "cond" else embeddings.negative
        if table.get("uncond", embeddings.positive) is None:
            raise ValueError("the rule has an unconditional branch, and the embeddings hold no negative prompt")
        return table

    # --- pictures ------------------------------------------------------------------------------------------------------

    def use_vae_tiling(self, on: bool = True) -> None:
        """Decode large images in tiles, to save memory."""
        vae = self._need_pipe("decode").vae
        (vae.enable_tiling if on else vae.disable_tiling)()
