"""An engine core beside a diffusers SD3 pipeline: its transformer, followed live, its text encoders and its VAE."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from segue.models.fp8_network import quantize_linears
from segue.models.mmdit import MMDiT
from segue.models.mmdit_diffusers import diffusers_spec, from_diffusers
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.weight_watch import WeightWatch

from ..adapters.around_forward import AroundForward, turns
from ..adapters.further_networks import further_networks
from ..adapters.live_transformer import hook_device
from ..adapters.vae import decode_latents, decoded
from ..adapters.weight_adapters import fuse_lora
from ..argument_names import refuses_unknown
from ..core import EngineCore
from ..device import outside_autocast, resolve_device, resolve_dtype
from ..linears import weight_sums
from ..numeric_input import counting_number
from ..planning.plan import Plan
from ..running.program import Program
from ..sources import DEFAULT, Reading, local_source
from .class_pools import ClassPools
from .encoding import ENCODERS, PROMPT_LENGTH, PromptEmbeddings, check_prompts, encode_prompts, move_text_encoders
from .saved_pipeline import load_pipeline
from .tokenizers import OwnTokenizers
from .vae import need_vae


class PipeCore(EngineCore):
    """``pipe`` is a diffusers pipeline, whose text encoders, scheduler and VAE are used, or None.

    ``model`` is the network; None is the transformer of ``pipe``, looked at again whenever a run begins.  ``device`` and
    ``dtype`` are for a ``model``: a live transformer keeps its own.  Other options are those of :class:`EngineCore`; through
    the transformer's own modules graphs are off, and ``linears="fp8"`` is refused.

    Threads may run side by side, and the pipeline itself beside them: a run changes nothing of the transformer.  Packing
    does, when the engine is made and when a transformer whose weights could not be packed becomes one whose can: let nothing
    else run then.  Under offload hooks, and to encode and decode, the threads of engines take turns, and only theirs.
    """

    _sums: Tensor | None = None  # of the weights that were quantised

    def __init__(
        self,
        model: nn.Module | None,
        pipe: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
        models: Mapping[str, nn.Module] | None = None,
    ):
        self._further = dict(models or {})
        self.pipe, self._live, self._lock, self._tokenizers = pipe, None, threading.RLock(), OwnTokenizers()
        self._quantized: WeightWatch | None = None  # the weights that fp8 copies were made of
        self._pools = ClassPools()
        if model is not None:
            super().__init__(model, self._further, device, dtype, graphs, kernels, linears)
            return
        if device is not None or dtype is not None:
            raise ValueError("device and dtype of a live transformer are the pipeline's: move it by pipe.to(...)")
        self._settings, self.owns_weights = (graphs, kernels, linears), False
        self._live = AroundForward(pipe, self._forget)
        self.refresh()

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
    ) -> Self:
        """An engine on a live diffusers SD3 pipeline; the weights are shared, not copied.

        What happens to the pipeline later (LoRA, offloading, quantisation, ``to``) takes effect at the next run, which goes
        through the transformer's own modules where its weights cannot be packed; :meth:`explain` says which and why.  With
        ``linears="fp8"`` the fp8 weights stand beside the pipeline's own; ``explain()`` says how large they are.  ``models``
        names further networks, see :func:`..adapters.further_networks.further_networks`.
        """
        further = further_networks(models, diffusers_spec(pipe.transformer)) if models else None
        return cls(None, pipe, graphs=graphs, kernels=kernels, linears=linears, models=further)

    @classmethod
    @refuses_unknown()
    def from_folder(
        cls,
        folder: str | Path,
        *,
        device=None,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
        kernels: str = "auto",
        linears: str = "native",
        reading: Reading = DEFAULT,
        models: Mapping[str, Any] | None = None,
        lora: Path | None = None,
    ) -> Self:
        """An engine from a saved diffusers SD3 pipeline (or a hub id), live as :meth:`from_pipe` makes it.

        With ``linears="fp8"`` the weights are not held twice: the transformer inside ``pipe`` keeps its configuration only.
        ``reading`` says which form is read: a revision, a variant, without T5.  ``models`` as in :meth:`from_pipe`.
        ``lora`` is the file of a LoRA that goes into the weights.
        """
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        pipe = load_pipeline(local_source(folder, reading), dtype, reading).to(device)
        told = None if lora is None else fuse_lora(pipe, lora)
        pipe.transformer.requires_grad_(False)  # a denoiser outside torch.no_grad() would be recorded
        if linears == "native":
            engine = cls.from_pipe(pipe, models=models, graphs=graphs, kernels=kernels)
            engine.adapted = told
            return engine
        model = quantize_linears(from_diffusers(pipe.transformer))
        pipe.transformer.to("meta")
        further = further_networks(models, model.spec)
        engine = cls(model, pipe, device, dtype, graphs, kernels, linears, further)
        engine.adapted = told
        return engine

    # --- the network ---------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop whatever holds the network: its programs and graphs, and their memory."""
        self.models, self._programs, self.capture = {}, {}, None

    def refresh(self) -> None:
        """Look at the live transformer now, as every run does when it begins.

        What happened to it takes effect; networks, programs and graphs of weights that are no longer there are dropped with
        their memory.  Raises ``TypeError`` or ``ValueError`` for a transformer that can run neither by packed weights nor
        through its own modules.
        """
        if self._live is not None:
            with self._lock:
                self._refresh()

    def _refresh(self) -> None:
        network, (graphs, kernels, linears) = self._live.current(), self._settings
        sums = None
        if linears != "native":
            self._need_packed(f"linears={linears!r}")
            sums = weight_sums(network)
            if self.models and not torch.equal(sums, self._sums):
                self._forget()  # weights that changed in place, as a fused LoRA changes them, are quantised again
        if self.models:
            return
        self._sums, graphs = sums, graphs if self._live.packed else False
        self._quantized = None if sums is None else WeightWatch(self.pipe.transformer.parameters)
        super().__init__(network, self._further, self._live.device, self._live.dtype, graphs, kernels, linears)

    def prepare(self, plan: Plan, conditions: Mapping[str | int, Any], seeds: Sequence[int], state: Tensor) -> Program:
        """As :meth:`EngineCore.prepare`, on the networks of one look at the transformer."""
        with self._lock:
            return super().prepare(plan, conditions, seeds, state)

    def is_current(self) -> bool:
        """Whether a run that began now would keep the network at hand.  Changes nothing."""
        if self._live is None:
            return True
        return bool(self.models) and self._live.is_current() and (self._quantized is None or self._quantized.unchanged())

    def follow(self, program: Program, values: bool = True) -> None:
        """As :meth:`EngineCore.follow`; ``RuntimeError`` where packed weights can no longer do what the transformer does.

        Through its own modules nothing is remembered, and every change acts at the next call.
        """
        if self._live is not None and isinstance(program.models["main"], MMDiT):
            with self._lock:
                if program.models is not self.models or not self._live.is_current():
                    raise RuntimeError(
                        "the transformer was changed in the middle of a run on its packed weights, which cannot follow; "
                        f"change it between runs (the next: {self._live.forecast()})"
                    )
                if self._quantized is not None and not self._quantized.unchanged(values):
                    raise RuntimeError("weights were changed in the middle of a run on fp8 copies of them; do so between runs")
        super().follow(program, values)

    def networks_to_record(self) -> Mapping[str, nn.Module]:
        """As :meth:`EngineCore.networks_to_record`."""
        if self._live is None or self.linears != "native":
            return super().networks_to_record()
        return self.models | self._live.networks_to_record()

    def recorded_inputs(self) -> Iterator[Tensor]:
        """As :meth:`EngineCore.recorded_inputs`."""
        if self._live is None or self.linears != "native":
            return super().recorded_inputs()
        return self._live.recorded_inputs()

    def _need_packed(self, option: str) -> None:
        if self._live is not None and not self._live.packed:
            raise ValueError(f"{option} needs packed weights, and {self._live.module_reason}")

    @property
    def specs(self) -> dict[str, MMDiTSpec]:
        if self._live is None:
            return super().specs
        return {"main": self._live.spec} | {name: network.spec for name, network in self._further.items()}

    @property
    def spec(self) -> MMDiTSpec:
        return self.specs["main"]

    def check_plan(self, plan: Plan) -> None:
        """Raise ``ValueError`` for a rule that the network at hand cannot follow."""
        if self._live is not None:
            self._live.check_plan(plan)

    def explain(self) -> str:
        """What is loaded, where it runs, which programs and graphs exist; on a live transformer also the path and why.

        Looks at the transformer as the next run will, and changes nothing.
        """
        with self._lock:
            return super().explain() if self._live is None else self._explain()

    def _explain(self) -> str:
        path = self._live.forecast()
        if not self.is_current():
            return f"{path}\nthe transformer has changed since the last run: the next one starts anew"
        held = super().explain() if self._live.packed else f"device {self.device}, dtype {self.dtype}, graphs off"
        return f"{path}\n{held}"

    # --- the components of the pipeline --------------------------------------------------------------------------------

    def _turn(self) -> AbstractContextManager:
        """Components of the pipeline may be moved: this thread's turn."""
        return turns(self.pipe.transformer)

    def _need_pipe(self, purpose: str) -> Any:
        if self.pipe is None:
            raise ValueError(
                f"this engine has a transformer only: it cannot {purpose}; build it with from_pipe or a pipeline folder"
            )
        return self.pipe

    @refuses_unknown()
    @outside_autocast
    def encode(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = "",
        *,
        max_sequence_length: int = PROMPT_LENGTH,
    ) -> PromptEmbeddings:
        """Encode prompts once for any number of runs; ``negative_prompt=None`` leaves the unconditional branch out."""
        pipe = self._need_pipe("encode prompts")
        prompts = check_prompts(prompt)
        length = counting_number(max_sequence_length, "max_sequence_length")
        negatives = None if negative_prompt is None else check_prompts(negative_prompt, len(prompts))
        self.refresh()
        with self._turn():
            return encode_prompts(self._tokenizers.view(pipe), prompts, negatives, self.device, length)

    def free_text_encoders(self) -> None:
        """Drop the text encoders and their memory; embeddings made before stay usable."""
        pipe = self._need_pipe("free the text encoders")
        for name in ENCODERS:
            setattr(pipe, name, None)

    def offload_text_encoders(self, device: str | torch.device = "cpu") -> None:
        """Move the text encoders to another device; ``encode`` brings them to the engine's and back again."""
        pipe = self._need_pipe("offload the text encoders")
        with self._turn():
            move_text_encoders(pipe, torch.device(device))

    def estimates_decoder(self) -> Callable[[Tensor], Tensor] | None:
        """As :meth:`EngineCore.estimates_decoder`: by the VAE of the pipeline, unless hooks move it."""
        vae = getattr(self.pipe, "vae", None)
        if vae is None or hook_device(vae) is not None or vae.device != self.device:
            return None
        return lambda latents: decoded(vae, latents)

    def decode(self, latents: Tensor, max_batch: int | None = None) -> list:
        """Latents [B, C, H, W] -> B PIL images, ``max_batch`` at a time.  Raises ``ValueError`` for another shape."""
        pipe = self._need_pipe("decode latents")
        with self._turn():
            return decode_latents(need_vae(pipe, "decode latents"), pipe.image_processor, latents, max_batch)

    def use_vae_tiling(self, on: bool = True) -> None:
        """Decode large images in tiles, to save memory.  Raises ``ValueError`` for a VAE that cannot."""
        vae = need_vae(self._need_pipe("decode"), "decode in tiles")
        change = getattr(vae, "enable_tiling" if on else "disable_tiling", None)
        if change is None:
            raise ValueError(f"the VAE of this pipeline, a {type(vae).__name__}, does not decode in tiles")
        change()
