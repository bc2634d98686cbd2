"""The Engine for class-label models, and the door to every other: ``Engine.from_pretrained``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.attention_kind import parse_attention, with_attention
from segue.models.spec import SiTSpec
from segue.models.wrapped_modules import unwrapped

from .adapters.dit_pipeline import check_dit, is_dit
from .adapters.further_networks import further_networks
from .adapters.kdiffusion import Denoiser
from .adapters.packing import transformer_of
from .adapters.upscaling import Upscaler, upscaler_of
from .adapters.vae import Decoder, check_channels, saved_channels
from .adapters.weight_adapters import check_adapter_options, find_lora, merged, read
from .argument_names import refuses_unknown
from .core import EngineCore, ScheduleLike, check_rising, check_seeds
from .device import outside_autocast, resolve_device, resolve_dtype
from .images import latents_to_images
from .labels import check_labels, pipe_class_names, saved_class_names
from .linears import check_linears
from .planning.condition_labels import condition_labels
from .planning.plan import Condition, Plan, checked_size
from .planning.plan_warnings import warn_of
from .planning.schedule import as_schedule
from .planning.solver_rows import Solver
from .records.sample_run import SampleRun
from .rules.batch import RulesLike
from .running.program import Program
from .running.sampler import Callback
from .saved_files import VAE, vae_folder
from .scheduling.drawing import Drawing, Start
from .sources import Reading, is_sd3_pipeline, local_source, local_vae
from .velocity import GuidedVelocity

Labels = Sequence[int | str] | str


class Engine(EngineCore):
    """Samples from a class-conditional DiT or SiT.  ``models`` holds further networks by name, for autoguidance.

    ``vae`` makes pictures of latents that are no pixels: an ``AutoencoderKL`` or ``AutoencoderTiny`` of diffusers, used where
    it is and as it is.  Use :meth:`from_pretrained` for a bundled model, a checkpoint file or a folder.
    """

    def __init__(
        self,
        model: nn.Module,
        models: Mapping[str, nn.Module] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
        *,
        vae: nn.Module | None = None,
        attention: str | None = None,
    ):
        """``attention``: ``full``, or ``probsparse``, approximate, perhaps with budgets; None is as each network has it."""
        if attention is not None:
            model = with_attention(unwrapped(model), attention)
            models = {name: with_attention(unwrapped(other), attention) for name, other in (models or {}).items()}
        super().__init__(model, models, device, dtype, graphs, kernels, linears)
        self.decoder = None if vae is None else Decoder.of(vae, self.spec.channels)

    @classmethod
    @refuses_unknown()
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        family: str | None = None,
        heads: int | None = None,
        exit_layer: int | None = None,
        models: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
        revision: str | None = None,
        variant: str | None = None,
        token: str | bool | None = None,
        t5: bool = True,
        vae: str | Path | bool | None = None,
        adapter: str | Path | None = None,
        adapter_scale: float | None = None,
        attention: str | None = None,
    ) -> Any:  # Engine or PromptEngine: the source says which, its type does not
        """An engine for a bundled model (``herbarium``), a checkpoint file, a diffusers folder or a hub id.

        SD3 and SD3.5 give a :class:`~segue.engine.prompts.engine.PromptEngine`.

        ``family`` (``dit``, ``sit``, ``repa``) is needed where a checkpoint does not tell: their tensor names are the same.
        ``heads`` and ``exit_layer``: see :func:`segue.models.weights.load_network`.  ``models`` names further networks for
        autoguidance, as in ``{"weak": "smaller.safetensors"}``; each is read as ``source`` is, or a pipeline or a module.
        ``linears="fp8"`` keeps no second copy of the weights that it replaces.
        Of a hub id only the files that are read are fetched: of ``revision`` (a branch, tag or commit), by ``token`` (default:
        that of the environment or of ``hf auth login``), and of diffusers' files those of ``variant``, as in ``fp16``.
        ``t5=False`` leaves the third text encoder of an SD3 pipeline out, neither fetched nor loaded: zeros stand in its
        place, as in diffusers.
        ``vae`` is the folder or hub id of an ``AutoencoderKL`` or ``AutoencoderTiny``, or of a pipeline that holds one, for
        class-label models whose latents are no pixels; by default that of a ``DiTPipeline`` folder, which ``False`` leaves
        out.  It is loaded in ``dtype``, and refused before that where the network makes other channels.
        ``adapter`` is merged into the weights as they are loaded: one that ``segue distill`` made, a file or a folder, or by
        name one that ships with a bundled model (``sgg``); for an SD3 pipeline a LoRA of diffusers.  ``adapter_scale`` chooses
        its strength where that is an input of it.
        ``attention`` is how the blocks of a DiT or SiT attend, see :class:`Engine`.
        """
        from segue.models.fp8_network import quantize_linears
        from segue.models.layout import Hints
        from segue.models.mmdit_spec import MMDiTSpec
        from segue.models.weights import load_model

        from .prompts.engine import PromptEngine

        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        check_linears(linears, device, dtype, kernels)
        if vae is True:
            raise ValueError("vae must be a folder or a hub id, or False to leave a pipeline's own out, got True")
        reading = Reading(revision, variant, token, t5, vae is None)
        if "main" in (models or {}):
            raise ValueError(f"further models need names of their own: 'main' is {str(source)!r}; got {models!r}")
        adapter_scale = check_adapter_options(adapter, adapter_scale)
        if attention is not None:
            parse_attention(attention)
        how: dict[str, Any] = {
            "family": family,
            "heads": heads,
            "exit_layer": exit_layer,
            "revision": revision,
            "variant": variant,
            "t5": t5,
        }
        if adapter is not None:
            how |= {"adapter": str(adapter), "adapter_scale": adapter_scale}
        if attention is not None:
            how |= {"attention": attention}
        loaded, name = _loaded(source, how, models, vae), source
        source = local_source(source, reading)
        if is_sd3_pipeline(source):
            Hints(family, heads, exit_layer).refuse(("family", "heads", "exit_layer"), f"{source} states what it is")
            _refuse_vae(vae, source)
            _refuse_attention(attention, source)
            reading = replace(reading, revision=None)  # what is local has no other
            options: dict[str, Any] = {"graphs": graphs, "kernels": kernels, "linears": linears, "reading": reading}
            if adapter_scale is not None:
                raise ValueError(f"adapter_scale={adapter_scale:g} does not apply: the LoRA of an SD3 has one scale")
            lora = None if adapter is None else find_lora(adapter)
            engine = PromptEngine.from_folder(source, device=device, dtype=dtype, models=models, lora=lora, **options)
            engine.loaded = loaded
            return engine
        reading.refuse(("t5",), f"{str(source)!r} is no SD3 pipeline")
        decoder = _vae_of(source, vae, Reading(token=token))
        chosen, told = read(name, adapter), None
        model, others = load_model(source, family, heads=heads, exit_layer=exit_layer, variant=variant)
        if chosen is not None:
            model, told = merged(model, chosen, adapter_scale)
        if isinstance(model.spec, MMDiTSpec):
            _refuse_vae(vae, source)
            _refuse_attention(attention, source)
        elif decoder is not None:
            check_channels(saved_channels(decoder), model.spec.channels, "make pictures")
        if isinstance(model.spec, SiTSpec) and not model.spec.class_names:
            model.spec = replace(model.spec, class_names=saved_class_names(source, model.spec.num_classes))
        others |= further_networks(models, model.spec, family, Reading(token=token))
        given = [name for name, other in (models or {}).items() if not isinstance(other, str | Path)]
        for network in (model, *(other for name, other in others.items() if name not in given)):
            network.to(device, dtype).requires_grad_(False)  # in place: nobody else holds them
            if linears == "fp8":
                quantize_linears(network)
        if isinstance(model.spec, MMDiTSpec):
            engine = PromptEngine(model, None, device, dtype, graphs, kernels, linears, others)
            engine.loaded = loaded
            return engine
        engine = cls(model, others, device, dtype, graphs, kernels, linears, attention=attention)
        engine.loaded, engine.adapted = loaded, told
        if decoder is not None:
            engine.decoder = Decoder.read(decoder, dtype, device, variant)
        return engine

    @classmethod
    @refuses_unknown()
    def from_pipe(
        cls,
        pipe,
        *,
        models: Mapping[str, Any] | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
    ) -> Any:
        """An engine on a live diffusers pipeline: a PromptEngine on a Stable Diffusion 3, an Engine on a ``DiTPipeline``.

        The weights of a Stable Diffusion 3 are shared, not copied, and followed; those of a DiT are taken as they are now
        (queries, keys and values are copied), its VAE makes the pictures, and schedule and solver are the engine's own.
        With ``linears="fp8"`` the fp8 weights stand beside the pipeline's own; ``explain()`` says how large they are.
        ``models`` names further networks: files, folders, hub ids, pipelines or transformers of the same kind.
        """
        from segue.models.dit_diffusers import from_diffusers_dit

        from .prompts.engine import PromptEngine

        transformer = transformer_of(pipe)
        if is_dit(transformer):
            check_dit(transformer)
            place = transformer.device, transformer.dtype
            network = from_diffusers_dit(transformer)
            names = pipe_class_names(getattr(pipe, "labels", None), network.spec.num_classes)
            network.spec = replace(network.spec, class_names=names)
            further = further_networks(models, network.spec)
            return cls(network, further, *place, graphs, kernels, linears, vae=pipe.vae)
        return PromptEngine.from_pipe(pipe, models=models, graphs=graphs, kernels=kernels, linears=linears)

    def generate(self, prompt: Any = None, *_, **options: Any):
        """Refuses: a class-label model takes labels, not prompts."""
        prompt = options.pop("prompt", prompt)
        raise TypeError(f"{self.spec.name} is a class-label model and takes no prompt, got {prompt!r}; use sample(labels)")

    @refuses_unknown()
    @outside_autocast
    def sample(
        self,
        labels: Labels,
        guidance: RulesLike = None,
        *,
        steps: int | None = None,
        seeds: Sequence[int] | int | None = None,
        schedule: ScheduleLike | None = None,
        solver: str | Solver = "euler",
        height: int | None = None,
        width: int | None = None,
        noise: Tensor | None = None,
        latents: Tensor | None = None,
        max_batch: int | None = None,
        callback: Callback | None = None,
        check_finite: bool = False,
        progress: bool = False,
        upscale: Any = None,
    ) -> SampleRun:
        """Draw one sample per label.

        ``labels``: numbers or names in a list, or text as on the command line (``"0-7"``, ``"all"``); the name of a
        superclass stands for its classes.  ``guidance`` is one rule, which may hold a number for each sample
        (``CFG([2.0, 4.0])``), or a list of a rule for each.
        ``seeds``: one per label, or one integer for ``seed, seed + 1, ...``; default random, recorded in the result.
        ``noise`` [B, C, H, W] replaces the seeds' initial noise.  ``latents`` [B, C, H, W] is a clean start, noised to the
        first level of ``schedule``: with levels that rise from 0 the run inverts it, and leaves the ``noise`` that the same
        levels, falling, take back to it, as nearly as the solver follows the flow.  ``max_batch`` splits the work; a sample
        does not depend on its batch.  ``callback(CallInfo)`` runs after every network call and may return False to stop;
        weights that it changes act from the next call on.  Under autocast the run is the same: in the engine's own dtype.
        ``upscale`` makes the pictures larger once they are drawn: 2 by the bundled model's own enhancer, or the file of one,
        or a function of pictures [B, C, H, W]; ``run.enlarged`` has them, and reducing them gives ``run.latents`` again.
        """
        labels = check_labels(labels, self.spec)
        upscaler = self.upscaler(upscale)
        seeds = check_seeds(seeds, len(labels))
        plan = self.plan(guidance, steps, schedule, solver, height, width)
        plan.check_samples(len(labels))
        check_rising(plan, latents, noise)
        warn_of(plan)
        own_noise, clean = noise, latents
        noise = self.draw_noise(plan, seeds) if noise is None else noise
        latents, calls = self.run(
            plan,
            self._conditions(plan, labels),
            seeds,
            self._first_state(plan, noise, latents, len(labels)),
            max_batch=max_batch,
            callback=callback,
            check_finite=check_finite,
            progress=progress,
        )
        if plan.schedule.rises and calls == plan.calls:
            latents = latents / plan.parameterization.prior_scale(plan.last_sigma)
        drawn = slice(len(latents))  # fewer if a callback stopped an earlier batch
        made = tuple(labels[drawn]), tuple(seeds[drawn])
        given = " and ".join(name for name, start in {"noise": own_noise, "latents": clean}.items() if start is not None)
        unrecorded = f"it began with {given} of the caller's" if given else ""
        if upscaler is not None and not upscaler.name:
            unrecorded = unrecorded or "its pictures were enlarged by a function"
        return SampleRun(latents, plan, *made, calls, self.spec.name, self.decoder, max_batch, self, unrecorded, upscaler)

    @refuses_unknown()
    def drawing(
        self,
        what: int | str,
        guidance: RulesLike = None,
        *,
        seed: int | None = None,
        steps: int | None = None,
        schedule: ScheduleLike | None = None,
        solver: str | Solver | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Drawing:
        """A planned run of one label, a number or a name, that :meth:`scheduler` draws; as :meth:`sample` would."""
        labels = check_labels(what if isinstance(what, str) else [what], self.spec)
        if len(labels) != 1:
            raise ValueError(f"a request draws one class, and {what!r} names {len(labels)}")
        seeds = check_seeds(None if seed is None else [seed], 1)
        plan = self.plan(guidance, steps, schedule, "euler" if solver is None else solver, height, width)
        plan.check_samples(1)
        check_rising(plan)

        def finished(latents: Tensor) -> SampleRun:
            made = plan, tuple(labels), tuple(seeds), plan.calls, self.spec.name
            return SampleRun(latents, *made, decoder=self.decoder, engine=self)

        def begin() -> Start:
            state = self._first_state(plan, self.draw_noise(plan, seeds), None, 1)
            return Start(self._conditions(plan, labels), state)

        return Drawing(plan, seeds[0], begin, finished, lambda latents: self.decode(latents)[0])

    def upscaler(self, upscale: Any) -> Upscaler | None:
        """What ``upscale`` of :meth:`sample` means here; ``TypeError`` or ``ValueError`` where it is nothing."""
        source = self.loaded[0] if self.loaded else None
        return upscaler_of(upscale, source, self.spec.channels, self.decoder is None)

    def decode(self, latents: Tensor, max_batch: int | None = None) -> list:
        """Latents [B, C, H, W] -> B PIL images, by the VAE ``max_batch`` at a time; ``ValueError`` for another shape."""
        return latents_to_images(latents) if self.decoder is None else self.decoder.pictures(latents, max_batch)

    @refuses_unknown()
    def denoiser(
        self,
        guidance: RulesLike,
        labels: Labels,
        *,
        schedule: ScheduleLike | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Denoiser:
        """A k-diffusion style ``model(x, sigma[B]) -> denoised`` for one sample per label.

        Give ``schedule`` (the levels the sampler will visit, falling to 0 or rising) for windows in steps or fractions, or to
        make all tables at once; a sampler in half precision may round them.  A denoiser sees levels only: at the edge of a
        window the second call of a Heun step is guided as the step that starts at its level, where the engine's own Heun
        guides both calls of a step alike; so it is with the blocks that S2 leaves out.  What a rule remembers (APG's average,
        reused directions) goes from a level to the next of ``schedule``, and to the same level asked for again, another stage
        of a step (Heun's); at any other level a sample's run starts anew.  Each denoiser has a program, and so a memory,
        of its own.  Gradients through it are true; where none are wanted, call it under ``torch.no_grad()``, as samplers do.
        Under autocast it computes as the caller's loop does.
        """
        labels = check_labels(labels, self.spec)
        size = checked_size(self.spec, height, width)
        sigmas = None if schedule is None else as_schedule(schedule)
        velocity = GuidedVelocity(self, guidance, lambda plan: self._conditions(plan, labels), *size, sigmas)
        return Denoiser(velocity, len(labels))

    def load(self, plan: Plan, labels: Labels, seeds: Sequence[int], noise: Tensor, latents: Tensor | None = None) -> Program:
        """A program ready to step through ``plan``; ``noise`` [B, C, H, W] is unit normal, ``latents`` a clean start.

        Raises as :meth:`sample`.

        It is the caller's until :meth:`release` gives it back; without that every load builds, and on CUDA captures, anew.
        """
        labels = check_labels(labels, self.spec)
        plan.check_samples(len(labels))
        seeds = check_seeds(seeds, len(labels))
        state = self._first_state(plan, noise, latents, len(labels))
        return self.prepare(plan, self._conditions(plan, labels), seeds, state)

    def estimates_decoder(self) -> Callable[[Tensor], Tensor] | None:
        return None if self.decoder is None else self.decoder.decoded

    def _first_state(self, plan: Plan, noise: Tensor, latents: Tensor | None, count: int) -> Tensor:
        """The sample [B, C, H, W] at the plan's first noise level: the model's prior, or a clean start mixed with noise."""
        noise = self.check_noise(plan, noise, count)
        if latents is not None:
            return self.noised_start(plan, noise, latents)
        return noise * plan.parameterization.prior_scale(float(plan.sigmas[0]))

    @property
    def spec(self) -> SiTSpec:
        return self.models["main"].spec

    def _conditions(self, plan: Plan, labels: Sequence[int]) -> dict[Condition, Tensor]:
        return condition_labels(self.spec, plan.conditions, labels)


def _loaded(source: str | Path, how: dict[str, Any], models: Mapping[str, Any] | None, vae: Any) -> Any:
    """What a record says of where networks came from; None where one of them is a module, which came from nowhere."""
    further = {name: str(other) for name, other in (models or {}).items() if isinstance(other, str | Path)}
    if len(further) < len(models or {}):
        return None
    return str(source), how | {"models": further, "vae": str(vae) if vae else None}


def _refuse_vae(vae: Any, source: str | Path) -> None:
    """Raise ``ValueError`` for a VAE beside a model that takes prompts."""
    if vae is not None:
        raise ValueError(
            f"vae={vae!r} is for class-label models, and {str(source)!r} takes prompts: a pipeline brings its own VAE"
        )


def _refuse_attention(attention: str | None, source: str | Path) -> None:
    """Raise ``ValueError`` for another attention of a model that takes prompts."""
    if attention is not None:
        raise ValueError(f"attention={attention!r} is of a DiT or SiT, and {str(source)!r} is none")


def _vae_of(source: str | Path, vae: Any, reading: Reading) -> Path | None:
    """The folder of the VAE that is asked for, by default of the one in a pipeline's folder; None for none."""
    if vae is False:
        return None
    if vae is not None:
        return local_vae(vae, reading)
    return vae_folder(Path(source)) if (Path(source) / VAE).is_dir() else None
