"""A set of pictures to draw, by class or by prompt: everything is checked before any weights of an SD3 are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from segue.models.spec import ModelSpec, SiTSpec

from ..adapters.upscaling import Upscaler
from ..adapters.weight_adapters import find_lora, lora_told
from ..device import resolve_device, resolve_dtype
from ..engine import Engine
from ..linears import check_linears
from ..planning.plan import Plan
from ..planning.plan_text import plan_dict
from ..prompts.encoding import PROMPT_LENGTH, PromptEmbeddings, check_prompts
from ..prompts.engine import PromptEngine
from ..prompts.planning import latent_size, resolve_prompt_plan
from ..prompts.saved_pipeline import SavedSD3
from ..prompts.vae import draw_start, load_images, read_start
from ..records.pictures import short_prompts
from ..records.prompt_record import PromptRecord, file_digest, start_of
from ..records.provenance import Origin, Record
from ..rules.batch import ParsedRules
from ..rules.presets import ParsedRule
from ..sources import is_sd3_pipeline, local_source
from .library_messages import loading
from .options import CHECKPOINT_HINTS, DEFAULT_LINEARS, DEFAULT_STRENGTH, PromptOptions, RunOptions, Source
from .prompt_session import draw_prompts, warm_up_prompts
from .selection import pair_samples
from .session import (
    Drawn,
    check_batch,
    choose_samples,
    choose_seeds,
    draw_labels,
    further_specs,
    make_plan,
    open_engine,
    reading_of,
    refuse_options,
    refuse_size,
    warm_up_labels,
)

MOST_CLASSES = 24  # how many are drawn where none are chosen


class _Job:
    """What both kinds of job share; they add ``plan``, ``warm_up`` and ``draw``."""

    RECORD: type[Record]
    source: Source
    engine: Any
    labels: list[int]
    seeds: list[int]
    max_batch: int | None
    upscaler: Upscaler | None = None

    def texts(self) -> dict[str, Any]:
        raise NotImplementedError

    def origin(self) -> Origin:
        """Where the networks came from."""
        source, how = self.engine.loaded
        return Origin.of(self.engine, source, **how)

    def record(self, rule: ParsedRule | ParsedRules, plan: Plan) -> Record:
        """What the pictures of a run record."""
        count = len(self.labels)
        max_batch, samples = min(self.max_batch or count, count), (tuple(self.labels), tuple(self.seeds))
        return self.RECORD(self.origin(), rule.text, plan_dict(plan), *samples, max_batch, planned=plan, **self.texts())


@dataclass
class ClassJob(_Job):
    """Pictures of classes; ``labels`` and ``seeds`` one of each per picture."""

    RECORD = Record

    source: Source
    engine: Engine
    labels: list[int]
    seeds: list[int]
    max_batch: int | None
    pictures: bool = True
    upscaler: Upscaler | None = None

    @property
    def spec(self) -> SiTSpec:
        return self.engine.spec

    def origin(self) -> Origin:
        """Where the networks came from, the VAE too if pictures are made by one."""
        return super().origin().with_decoder(self.engine.decoder).with_upscaler(self.upscaler)

    @property
    def names(self) -> tuple[str, ...]:
        """What the labels are called; empty if they have no names."""
        return self.spec.class_names

    def plan(self, rule: ParsedRule | ParsedRules, run: RunOptions) -> Plan:
        plan = make_plan(self.engine, rule, run)
        plan.check_samples(len(self.labels))
        return plan

    def warm_up(self, plan: Plan) -> None:
        """Build what a run needs before its clock starts."""
        warm_up_labels(self.engine, plan, self.labels, self.seeds, self.max_batch)

    def draw(self, plan: Plan, check_finite: bool = False, title: str = "") -> Drawn:
        samples = (self.labels, self.seeds, self.max_batch)
        return draw_labels(self.engine, plan, *samples, check_finite, title, self.pictures, self.upscaler)

    def texts(self) -> dict[str, Any]:
        """What to record beside labels and seeds."""
        return {}

    def release(self) -> None:
        """As that of a job of prompts; the networks of classes are small, and stay."""


@dataclass
class PromptJob(_Job):
    """Pictures of prompts; ``labels`` are indices into ``prompts``.  The pipeline is loaded when it is first needed.

    ``latent`` is the latent size (height, width); ``image`` the picture to start from, ``strength`` how much of it to redraw.
    """

    RECORD = PromptRecord

    source: Source
    saved: SavedSD3
    prompts: list[str]
    negatives: list[str]
    labels: list[int]
    seeds: list[int]
    max_batch: int | None
    latent: tuple[int, int]
    image: Path | None = None
    strength: float = 1.0
    pictures: bool = True
    max_sequence_length: int | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.saved.spec

    @property
    def names(self) -> tuple[str, ...]:
        """The prompts, on one line and cut to the length of a caption."""
        return short_prompts(self.prompts)

    def plan(self, rule: ParsedRule | ParsedRules, run: RunOptions) -> Plan:
        options = (run.steps, run.schedule, run.solver, *self.latent, self.strength)
        plan = resolve_prompt_plan(self.specs, self.saved.scheduler, rule.guidance, *options)
        plan.check_samples(len(self.labels))
        return plan if self.source.adapter is None else lora_told(find_lora(self.source.adapter)).warn(plan)

    def release(self) -> None:
        """Drop the pipeline and the embeddings; they are loaded again when they are needed."""
        for held in ("engine", "embeddings"):
            self.__dict__.pop(held, None)

    @cached_property
    def specs(self) -> dict[str, ModelSpec]:
        """Those of the network and of further ones."""
        return {"main": self.spec} | further_specs(self.source)

    @cached_property
    def engine(self) -> PromptEngine:
        return open_prompt_engine(self.source)

    @cached_property
    def embeddings(self) -> PromptEmbeddings:
        """Those of every picture; the text encoders are freed after them."""
        length = PROMPT_LENGTH if self.max_sequence_length is None else self.max_sequence_length
        encoded = self.engine.encode(self.prompts, self.negatives, max_sequence_length=length)
        self.engine.free_text_encoders()
        return encoded.select(self.labels)

    @cached_property
    def start(self) -> dict[str, Tensor]:
        """Clean latents to start from and the noise that goes with them; empty where there is no picture."""
        if self.image is None:
            return {}
        pixels = load_images(self.engine.pipe, read_start(self.image), *self.latent, channels=self.spec.channels)
        latents, noise = draw_start(self.engine.pipe, pixels, self.seeds)
        return {"latents": latents, "noise": noise}

    def warm_up(self, plan: Plan) -> None:
        """Build what a run needs before its clock starts."""
        warm_up_prompts(self.engine, plan, self.embeddings, self.seeds, self.max_batch)

    def draw(self, plan: Plan, check_finite: bool = False, title: str = "") -> Drawn:
        options = (self.max_batch, check_finite, title or self.spec.name, self.pictures)
        return draw_prompts(self.engine, plan, self.embeddings, self.seeds, self.start, *options)

    def texts(self) -> dict[str, Any]:
        """What to record beside labels and seeds."""
        start = None
        if self.image is not None:
            start = start_of(self.image, self.strength)
        height, width = (side * self.saved.factor for side in self.latent)
        prompts = {"prompts": tuple(self.prompts), "negative_prompts": tuple(self.negatives)}
        return prompts | {"pixels": (width, height), "start": start, "max_sequence_length": self.max_sequence_length}


Job = ClassJob | PromptJob


def open_job(source: Source, run: RunOptions, text: PromptOptions, most: int = MOST_CLASSES, pictures: bool = True) -> Job:
    """The pictures that the options ask for; ``most``: how many classes where none are chosen."""
    refuse_size(source.name)
    model = local_source(source.name, reading_of(source), weights=False)
    saved = SavedSD3.read(model)
    if saved is not None:
        return _prompt_job(source, saved, is_sd3_pipeline(model), run, text, pictures)
    engine = open_engine(source, pictures)
    refuse_prompts(engine.spec, text)
    check_batch(run.max_batch)
    labels, seeds = choose_samples(engine.spec, run, most)
    if not pictures:
        refuse_options(source, ("upscale",), "latents are written as they are")
    return ClassJob(source, engine, labels, seeds, run.max_batch, pictures, engine.upscaler(source.upscale))


def open_prompt_engine(source: Source) -> PromptEngine:
    """The engine of a pipeline for prompts.  Raises ``ValueError`` or ``OSError``."""
    device = resolve_device(source.device)
    with loading(source.name):
        return Engine.from_pretrained(
            source.name,
            device=device,
            dtype=resolve_dtype(source.dtype, device),
            linears=source.linears or DEFAULT_LINEARS,
            **source.how,
        )


def check_prompt_source(source: Source, saved: SavedSD3, whole: bool) -> None:
    """Raise ``ValueError`` for options that say nothing of a model for prompts, and where it has no text encoders."""
    name = saved.spec.name
    if not whole:
        raise ValueError(f"{source.model} is a transformer without text encoders and VAE; drawing needs the pipeline's folder")
    refuse_options(source, CHECKPOINT_HINTS, f"{name} states what it is")
    refuse_options(source, ("vae",), f"{name} is a pipeline with a VAE of its own")
    refuse_options(source, ("attention",), f"{name} is no DiT or SiT")
    refuse_options(source, ("upscale",), f"{name} draws latents that its VAE decodes")
    device = resolve_device(source.device)
    check_linears(source.linears or DEFAULT_LINEARS, device, resolve_dtype(source.dtype, device))


def _prompt_job(
    source: Source, saved: SavedSD3, whole: bool, run: RunOptions, text: PromptOptions, pictures: bool
) -> PromptJob:
    name = saved.spec.name
    if run.classes is not None:
        raise ValueError(f"{name} draws from prompts and has no classes, got {run.classes!r}; choose with --prompt")
    check_prompt_source(source, saved, whole)
    if not text.prompt:
        raise ValueError(f"{name} draws from prompts: give at least one --prompt")
    check_batch(run.max_batch)
    prompts = check_prompts(text.prompt)
    negative = text.negative_prompt or [""]
    negatives = check_prompts(negative[0] if len(negative) == 1 else negative, len(prompts))
    labels, seeds = pair_samples(list(range(len(prompts))), choose_seeds(run), 1 if run.count is None else run.count)
    latent = latent_size(saved.spec, saved.factor, text.height, text.width)
    strength = _check_start(text)
    if pictures or text.image is not None:
        saved.check_vae()
    samples = (prompts, negatives, labels, seeds, run.max_batch)
    return PromptJob(source, saved, *samples, latent, text.image, strength, pictures)


def _check_start(text: PromptOptions) -> float:
    """The strength; raises ``ValueError`` or ``OSError`` unless the picture to start from can be read."""
    if text.image is None:
        if text.strength is not None:
            raise ValueError(f"--strength {text.strength} needs a picture to start from: give --image")
        return 1.0
    with Image.open(text.image) as file:
        file.load()
    return DEFAULT_STRENGTH if text.strength is None else text.strength


def refuse_prompts(spec: ModelSpec, text: PromptOptions) -> None:
    """Raise ``ValueError`` for any option that class-label models do not take."""
    for option, value in vars(text).items():
        if value is not None:
            shown = value[0] if isinstance(value, list) else value
            shown = repr(shown) if isinstance(shown, str) else shown
            words = option.replace("_", " ")
            raise ValueError(f"{spec.name} is a class-label model and takes no {words}, got {shown}; choose with --classes")


def recorded_job(record: Record, source: Source, image: Path | None) -> Job:
    """The pictures of a record; ``image`` says where the picture that they started from is now."""
    labels, seeds = list(record.labels), list(record.seeds)
    if not isinstance(record, PromptRecord):
        if image is not None:
            raise ValueError(f"the record tells of no picture to start from; leave --image {image} out")
        engine = open_engine(source)
        record.origin.check_decoder(engine.decoder)
        upscaler = engine.upscaler(source.upscale)
        record.origin.check_upscaler(upscaler)
        return ClassJob(source, engine, labels, seeds, record.max_batch, upscaler=upscaler)
    refuse_options(source, ("vae",), "the picture was drawn from a prompt")
    model = local_source(source.name, reading_of(source), weights=False)
    saved = SavedSD3.read(model)
    if saved is None or not is_sd3_pipeline(model):
        raise ValueError(f"the picture was drawn from a prompt, and {source.model} is no SD3 pipeline")
    if image is not None and record.start is None:
        raise ValueError(f"the record tells of no picture to start from; leave --image {image} out")
    strength = 1.0
    if record.start is not None:
        image, strength = image or Path(record.start["file"]), record.start["strength"]
        if file_digest(image) != record.start["sha256"]:
            raise ValueError(f"{image} is not the picture that the recorded run started from")
    latent = (record.plan["height"], record.plan["width"])
    texts = (list(record.prompts), list(record.negative_prompts))
    length = record.max_sequence_length
    return PromptJob(source, saved, *texts, labels, seeds, record.max_batch, latent, image, strength, True, length)


def captions(
    names: Sequence[str], labels: Sequence[int], seeds: Sequence[int], rule: ParsedRule | ParsedRules | None = None
) -> list[str]:
    """What to write at each picture: in what it differs from the others, which is its class or prompt, else its seed.

    With ``rule`` also what of that is its own; where nothing differs, its class or prompt.
    """
    own = [rule.of_sample(sample) if rule else "" for sample in range(len(labels))]
    if len(set(labels)) > 1:
        which = [name_of(names, label) for label in labels]
    else:
        which = [f"seed {seed}" if len(set(seeds)) > 1 else "" for seed in seeds]
    whole = zip(which, own, labels, strict=True)
    return [", ".join(filter(None, (text, number))) or name_of(names, label) for text, number, label in whole]


def name_of(names: Sequence[str], label: int) -> str:
    """What to call a class or prompt."""
    return names[label] if names else f"class {label}"
