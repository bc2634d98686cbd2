"""The Engine for text-to-image models (SD3, SD3.5), with diffusers' text encoders, scheduler and VAE around it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from segue.models.mmdit import TextCondition

from ..adapters.kdiffusion import Denoiser
from ..adapters.scheduler_solver import timed_scheduler
from ..argument_names import refuses_unknown
from ..core import ScheduleLike, check_rising, check_seeds
from ..device import outside_autocast
from ..numeric_input import counting_number
from ..planning.plan import Condition, Plan, checked_size
from ..planning.plan_warnings import warn_of
from ..planning.schedule import Schedule, as_schedule, from_scheduler
from ..planning.solver_rows import Solver
from ..records.prompt_record import start_of
from ..rules.batch import RulesLike
from ..rules.drawn import ClassPrompts, Draw
from ..running.program import Program
from ..running.sampler import Callback
from ..scheduling.drawing import Drawing, Start
from ..velocity import GuidedVelocity
from .class_pools import drawn_prompts
from .encoding import PROMPT_LENGTH, PromptEmbeddings, check_prompts, check_texts, text_encoders
from .live_velocity import LiveVelocity
from .parity import sample_as_diffusers
from .pipe_core import PipeCore
from .planning import (
    DEFAULT_STEPS,
    DEFAULT_STRENGTH,
    check_start,
    latent_size,
    resolve_prompt_plan,
    start_size,
)
from .prompt_run import PromptRun
from .vae import check_output, draw_start, load_images, need_vae, read_start


class PromptEngine(PipeCore):
    """Samples from an MMDiT by prompts or their embeddings; see :class:`.pipe_core.PipeCore` for how to make one."""

    # --- planning ------------------------------------------------------------------------------------------------------

    def native_schedule(self, steps: int, height: int, width: int) -> Schedule:
        """The noise levels of the pipeline's own scheduler for a latent of ``height`` x ``width``."""
        return from_scheduler(self._scheduler(steps, height, width))

    def _scheduler(self, steps: int, height: int, width: int) -> Any:
        """A copy of the pipeline's scheduler with its timesteps set."""
        return timed_scheduler(self.pipe.scheduler, steps, self.spec.tokens(height, width))

    @refuses_unknown()
    def plan(
        self,
        guidance: RulesLike = None,
        steps: int | None = None,
        schedule: ScheduleLike | None = None,
        solver: str | Solver | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        text_tokens: int | None = None,
    ) -> Plan:
        """As :meth:`EngineCore.plan`; without ``schedule`` and ``solver`` the run is the pipeline's scheduler's own.

        Where that steps otherwise than a solver of ours, it makes the steps itself.  A ``solver`` alone runs on its levels; a
        ``schedule`` alone runs with Euler's method, or Heun's where the scheduler is Heun's.  ``strength`` keeps the last part
        of the schedule (image-to-image); ``text_tokens`` is the prompt length M, by default the model's.
        """
        scheduler = None if self.pipe is None else self.pipe.scheduler
        plan = resolve_prompt_plan(
            self.specs, scheduler, guidance, steps, schedule, solver, height, width, strength, text_tokens
        )
        return self._told(plan)

    # --- sampling ------------------------------------------------------------------------------------------------------

    @refuses_unknown()
    @outside_autocast
    def sample(
        self,
        embeddings: PromptEmbeddings,
        guidance: RulesLike = None,
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

        ``guidance`` is one rule, which may hold a number for each sample (``CFG([2.0, 4.0])``), or a list of a rule for each.
        ``noise`` [B, C, H, W] replaces the seeds' noise.  ``latents`` [B, C, H, W] is a clean start for image-to-image: it
        is noised to the first level of the last ``strength`` part of the schedule; with a ``schedule`` that rises from 0 it is
        inverted, to the ``noise`` of the way back.  ``numerics="diffusers"`` is a mode to compare with: everything but the
        network itself rounds as the pipeline does, and the latents have the model's dtype; :mod:`.parity` says what is bit for
        bit the same.
        """
        if not isinstance(embeddings, PromptEmbeddings):
            raise TypeError(f"sample takes embeddings, which encode() makes of prompts, got {embeddings!r}")
        self.refresh()
        self._check_numerics(numerics, schedule, solver, max_batch, check_finite)
        seeds = check_seeds(seeds, len(embeddings))
        check_start(None if strength == 1.0 else strength, latents)
        if latents is not None:
            height, width = start_size(latents, height, width)
        length = embeddings.positive.context.shape[1]
        plan = self.plan(guidance, steps, schedule, solver, height, width, strength, length)
        plan.check_samples(len(seeds))
        self.check_plan(plan)
        if schedule is not None:
            check_rising(plan, latents, noise)
        if noise is None:
            noise = self.draw_noise(plan, seeds, self._noise_dtype(numerics))
        self.check_noise(plan, noise, len(seeds))
        conditions = self._conditions(plan, embeddings)
        warn_of(plan)
        if numerics == "diffusers":
            scheduler = self._scheduler(DEFAULT_STEPS if steps is None else steps, plan.height, plan.width)
            options: dict[str, Any] = {"latents": latents, "callback": callback, "progress": progress}
            result, calls = sample_as_diffusers(self, plan, conditions, seeds, scheduler, noise, **options)
        else:
            state = self._first_state(plan, noise, latents, len(embeddings))
            options = {"max_batch": max_batch, "callback": callback, "check_finite": check_finite, "progress": progress}
            result, calls = self.run(plan, conditions, seeds, state, **options)
        drawn, name, unrecorded = tuple(seeds[: len(result)]), self.spec.name, "its prompts came encoded"
        return PromptRun(result, plan, drawn, calls, name, max_batch=max_batch, engine=self, unrecorded=unrecorded)

    def _check_numerics(self, numerics: str, schedule, solver, max_batch, check_finite) -> None:
        if numerics not in ("segue", "diffusers"):
            raise ValueError(f"unknown numerics {numerics!r}; known: segue, diffusers")
        given = {"schedule": schedule, "solver": solver, "max_batch": max_batch, "check_finite": check_finite or None}
        given = [name for name, value in given.items() if value is not None]
        if numerics == "diffusers" and given:
            raise ValueError(f"numerics='diffusers' runs the pipeline's scheduler as it is and takes no {' or '.join(given)}")
        if numerics == "diffusers":
            self._need_pipe("reproduce its scheduler's roundings")
            self._need_packed("numerics='diffusers'")

    def _noise_dtype(self, numerics: str) -> torch.dtype:
        return self.dtype if numerics == "diffusers" else torch.float32

    @refuses_unknown(options_of=sample)
    @outside_autocast
    def generate(
        self,
        prompt: str | Sequence[str] | PromptEmbeddings,
        negative_prompt: str | Sequence[str] | None = "",
        guidance: RulesLike = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        seeds: Sequence[int] | int | None = None,
        image: Any = None,
        strength: float | None = None,
        max_sequence_length: int | None = None,
        output: str = "pil",
        **options,
    ) -> PromptRun:
        """Prompts, or embeddings of prompts, to images.

        ``height`` and ``width`` are pixels; ``num_images`` per prompt, prompt-major, and so are the numbers of a rule that has
        one for each sample.  ``image`` (a file, PIL, array, tensor; one, or one per prompt) is a picture to start from: of the
        schedule, the last ``strength`` part in (0, 1] runs, by default 0.6.  A sample's seed draws its latent from the VAE's
        posterior, then its noise, as ``StableDiffusion3Img2ImgPipeline`` does with a generator per image.
        ``output="latent"`` makes no pictures, and needs no VAE.  Other keywords are those of :meth:`sample`.
        """
        pipe = self._need_pipe("generate images from prompts")
        # an unknown keyword, and one that is given here already, raises before any work
        inspect.signature(self.sample).bind_partial(prompt, guidance, **options)
        negative_prompt = "" if negative_prompt is None else negative_prompt  # as diffusers reads it
        texts = check_texts(prompt, negative_prompt, max_sequence_length)
        if options.get("max_batch") is not None:
            counting_number(options["max_batch"], "max_batch")
        count, latents = len(prompt if texts is None else texts), options.get("latents")
        num_images = counting_number(num_images, "num_images")
        seeds = check_seeds(seeds, count * num_images)
        started, unrecorded = check_start(strength, image, latents), _unrecorded(prompt, image, options)
        self.refresh()
        exclusive = map(options.get, ("schedule", "solver", "max_batch", "check_finite"))
        self._check_numerics(options.get("numerics", "segue"), *exclusive)
        pictures = check_output(output, pipe, self.spec.channels)
        size = latent_size(self.spec, pipe.vae_scale_factor, height, width, latents)
        levels = (options.get("steps"), options.get("schedule"), options.get("solver"), *size)
        if strength is None:
            inverts = options.get("schedule") is not None and self.plan(None, *levels).schedule.rises
            strength = DEFAULT_STRENGTH if started and not inverts else 1.0
        plan = self.plan(guidance, *levels, strength)
        plan.check_samples(len(seeds))
        self.check_plan(plan)
        for draw in plan.draws if texts is not None else ():
            _ = [draw.classes.label_of(text) for text in texts]  # raises for a prompt of no class
        if options.get("schedule") is not None:
            check_rising(plan, latents, image, options.get("noise"))
        if options.get("noise") is not None:
            self.check_noise(plan, options["noise"], len(seeds))
        pixels = None if image is None else load_images(pipe, read_start(image), *size, count, self.spec.channels)
        if isinstance(prompt, PromptEmbeddings):
            embeddings = prompt
        else:
            negative = negative_prompt if plan.needs_negative else None
            length = PROMPT_LENGTH if max_sequence_length is None else max_sequence_length
            embeddings = self.encode(texts, negative, max_sequence_length=length)
        if pixels is not None:
            options |= self._drawn_start(pixels, seeds, options)
        sizes: dict[str, Any] = {"height": size[0], "width": size[1]}
        run = self.sample(embeddings.repeat(num_images), guidance, seeds=seeds, strength=strength, **sizes, **options)
        images = self.decode(run.latents, options.get("max_batch")) if pictures else []
        with self._turn():
            pipe.maybe_free_model_hooks()
        names = [text for text in texts or () for _ in range(num_images)]
        told = (
            {}
            if unrecorded
            else self._texts_told(texts, negative_prompt, num_images, max_sequence_length, run, image, strength)
        )
        made: dict[str, Any] = {"prompts": tuple(names[: len(run.latents)]), "images": images}
        return replace(run, unrecorded=unrecorded, texts=told, **made)

    def _texts_told(
        self,
        texts: Sequence[str],
        negative: str | Sequence[str],
        num_images: int,
        length: int | None,
        run: PromptRun,
        image: str | Path | None,
        strength: float,
    ) -> dict[str, Any]:
        """What the record of a run says of its prompts and its start."""
        labels = [label for label in range(len(texts)) for _ in range(num_images)][: len(run.latents)]
        height, width = (side * self.pipe.vae_scale_factor for side in (run.plan.height, run.plan.width))
        return {
            "labels": labels,
            "prompts": tuple(texts),
            "negative_prompts": tuple(check_prompts(negative, len(texts))),
            "pixels": (width, height),
            "start": None if image is None else start_of(Path(image), strength),
            "max_sequence_length": PROMPT_LENGTH if length is None else length,
        }

    def _drawn_start(self, pixels: Tensor, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Tensor]:
        """Clean latents and noise of an image-to-image run, drawn by the samples' seeds; a given noise stays."""
        with self._turn():
            latents, noise = draw_start(self.pipe, pixels, seeds, self._noise_dtype(options.get("numerics", "segue")))
        return {"latents": latents, "noise": noise if options.get("noise") is None else options["noise"]}

    @refuses_unknown()
    def drawing(
        self,
        what: str,
        guidance: RulesLike = None,
        *,
        negative_prompt: str | None = "",
        seed: int | None = None,
        steps: int | None = None,
        schedule: ScheduleLike | None = None,
        solver: str | Solver | None = None,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int | None = None,
    ) -> Drawing:
        """A planned run of one prompt that :meth:`scheduler` draws; as :meth:`generate` would.  The size is in pixels."""
        pipe = self._need_pipe("generate images from prompts")
        if not isinstance(what, str):
            raise TypeError(f"a request draws one prompt, got {what!r}")
        negative_prompt = "" if negative_prompt is None else negative_prompt
        check_texts(what, negative_prompt, max_sequence_length)
        seeds = check_seeds(None if seed is None else [seed], 1)
        self.refresh()
        size = latent_size(self.spec, pipe.vae_scale_factor, height, width)
        length = PROMPT_LENGTH if max_sequence_length is None else max_sequence_length
        plan = self.plan(guidance, steps, schedule, solver, *size, text_tokens=pipe.tokenizer_max_length + length)
        plan.check_samples(1)
        self.check_plan(plan)
        check_rising(plan)
        for draw in plan.draws:
            draw.classes.label_of(what)  # raises for a prompt of no class
        need_vae(pipe, "decode latents")

        def begin() -> Start:
            negative = negative_prompt if plan.needs_negative else None
            embeddings = self.encode(what, negative, max_sequence_length=length)
            state = self._first_state(plan, self.draw_noise(plan, seeds), None, 1)
            return Start(self._conditions(plan, embeddings), state)

        def finished(latents: Tensor) -> PromptRun:
            run = PromptRun(latents, plan, tuple(seeds), plan.calls, self.spec.name, engine=self)
            texts = self._texts_told([what], negative_prompt, 1, max_sequence_length, run, None, None)
            return replace(run, prompts=(what,), images=self.decode(latents), texts=texts)

        return Drawing(plan, seeds[0], begin, finished, lambda latents: self.decode(latents)[0])

    # --- other loops ---------------------------------------------------------------------------------------------------

    @refuses_unknown()
    def denoiser(
        self,
        guidance: RulesLike,
        embeddings: PromptEmbeddings,
        *,
        schedule: ScheduleLike | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Denoiser:
        """A k-diffusion style ``model(x, sigma[B]) -> denoised`` for one latent per embedded prompt; as ``Engine.denoiser``."""
        self.refresh()
        size = checked_size(self.spec, height, width)
        sigmas = None if schedule is None else as_schedule(schedule)
        specs = {name: replace(spec, text_tokens=embeddings.positive.context.shape[1]) for name, spec in self.specs.items()}
        conditions = partial(self._conditions, embeddings=embeddings)
        velocity = GuidedVelocity if self._live is None else LiveVelocity
        return Denoiser(velocity(self, guidance, conditions, *size, sigmas, specs=specs), len(embeddings))

    def load(
        self, plan: Plan, embeddings: PromptEmbeddings, seeds: Sequence[int], noise: Tensor, latents: Tensor | None = None
    ) -> Program:
        """A program ready to step through ``plan``; ``noise`` [B, C, H, W] is unit normal, ``latents`` a clean start."""
        self.refresh()
        plan.check_samples(len(embeddings))
        self.check_plan(plan)
        seeds = check_seeds(seeds, len(embeddings))
        state = self._first_state(plan, noise, latents, len(embeddings))
        return self.prepare(plan, self._conditions(plan, embeddings), seeds, state)

    def _first_state(self, plan: Plan, noise: Tensor, latents: Tensor | None, count: int) -> Tensor:
        """The sample [B, C, H, W] at the plan's first noise level: noise, mixed with a clean start if there is one."""
        state = self.check_noise(plan, noise, count).float()
        if latents is None:
            return state
        return self.noised_start(plan, state, latents)

    def _class_pool(self, draw: Draw, embeddings: PromptEmbeddings) -> TextCondition:
        """The embedded prompts of the classes of a draw, as long as those of the samples."""
        pipe = self._need_pipe("embed the prompts of classes")
        tokens = embeddings.positive.context.shape[1]

        def encode(texts: list[str]) -> TextCondition:
            length = max(1, tokens - pipe.tokenizer_max_length)
            return self.encode(texts, None, max_sequence_length=length).positive

        return self._pools.pool(cast(ClassPrompts, draw.classes), tokens, encode, tuple(text_encoders(pipe).values())).to(
            self.device, self.dtype
        )

    def _conditions(self, plan: Plan, embeddings: PromptEmbeddings) -> dict[Condition, Any]:
        table: dict[Condition, Any] = {}
        embeddings = embeddings.to(self.device, self.dtype)
        for condition in plan.conditions:
            if isinstance(condition, Draw):
                pool = self._class_pool(condition, embeddings)
                table[condition] = drawn_prompts(condition, pool, embeddings)
                continue
            if condition not in ("cond", "uncond"):
                raise ValueError(f"the condition {condition!r} needs class labels, and {self.spec.name} takes prompts")
            table[condition] = embeddings.positive if condition == "cond" else embeddings.negative
        if table.get("uncond", embeddings.positive) is None:
            raise ValueError("the rule needs a negative prompt, and the embeddings hold none")
        return table


def _unrecorded(prompt: Any, image: Any, options: Mapping[str, Any]) -> str:
    """Why no record can hold what a run was made of; empty where one can."""
    if given := " and ".join(name for name in ("noise", "latents") if options.get(name) is not None):
        return f"it began with {given} of the caller's"
    if isinstance(prompt, PromptEmbeddings):
        return "its prompts came encoded"
    if image is not None and not isinstance(image, str | Path):
        return "it began with a picture that is no file"
    return "its numerics are those of diffusers" if options.get("numerics", "segue") != "segue" else ""
