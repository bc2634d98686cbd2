"""Which files of a saved model are read, so that no others are fetched: of a pipeline, a transformer, or a training run."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segue.models.checkpoint_files import RUN_FILE, TRANSFORMER, read_json
from segue.models.diffusers_layout import CLASSES
from segue.models.mmdit_weights import CLASS, folder_spec

VAE = "vae"  # the folder of a pipeline's autoencoder
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")  # those that make pictures of the latents of a class-label model
PIPELINE_FILE, MODEL_CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler/scheduler_config.json"
# small files that tell what a repository holds: fetched first, and enough to plan
CONFIGS = (PIPELINE_FILE, MODEL_CONFIG, f"{TRANSFORMER}/{MODEL_CONFIG}", f"{VAE}/{MODEL_CONFIG}", SCHEDULER_CONFIG)
T5_PARTS = ("text_encoder_3", "tokenizer_3")  # of an SD3 pipeline, by far the largest of its encoders; it may be left out
SD3_PARTS = frozenset(
    {
        *("transformer", "scheduler", VAE, "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        *("image_encoder", "feature_extractor", *T5_PARTS),
    }
)
# names of weights by their kind: those of diffusers' networks, and of the text encoders of transformers
STEMS = {".safetensors": ("diffusion_pytorch_model", "model"), ".bin": ("diffusion_pytorch_model", "pytorch_model")}
BESIDE_WEIGHTS = (".json", ".txt", ".model")  # configurations and vocabularies
SHOWN = 5  # files named in an error


def pipeline_parts(folder: Path) -> dict[str, Any]:
    """The entries of a saved pipeline's index; empty if the folder holds none.  Raises ``ValueError``."""
    index = folder / PIPELINE_FILE
    return read_json(index) if index.is_file() else {}


def is_sd3_index(parts: dict[str, Any]) -> bool:
    """Whether these are the entries of a Stable Diffusion 3 pipeline."""
    return str(parts.get("_class_name", "")).startswith("StableDiffusion3")


def present_parts(parts: dict[str, Any], t5: bool = True) -> set[str]:
    """The components that an SD3 pipeline was saved with, with or without T5.

    Raises ``ValueError`` for one that a run would leave out, as a ControlNet.
    """
    present = {name for name, kind in parts.items() if isinstance(kind, list) and any(kind)}
    for name in sorted(present - SD3_PARTS):
        raise ValueError(
            f"the {parts['_class_name']} has a {name}, which an engine leaves out; load it by diffusers and use segue.attach"
        )
    return present if t5 else present - set(T5_PARTS)


def vae_folder(folder: Path) -> Path | None:
    """The autoencoder that ``folder`` is, or that stands in a pipeline's folder; None for neither, and for another kind."""
    for place in (folder, folder / VAE):
        config = place / MODEL_CONFIG
        if config.is_file() and read_json(config).get("_class_name") in AUTOENCODERS:
            return place
    return None


def needed_files(
    folder: Path, files: Sequence[str], variant: str | None = None, t5: bool = True, vae: bool = True
) -> list[str]:
    """Of a repository's ``files``, those that are read; ``folder`` has its :data:`CONFIGS`.

    ``vae``: also the autoencoder of a class-label pipeline, if it has one that makes pictures of its latents.

    Weights are taken as safetensors where there are any, of the ``variant`` where the component has it.  Raises ``ValueError``
    or ``FileNotFoundError`` for a repository without a model that can be read.
    """
    parts = pipeline_parts(folder)
    if is_sd3_index(parts):
        if folder_spec(folder) is None:
            raise FileNotFoundError(f"a pipeline without a {TRANSFORMER}/{MODEL_CONFIG} of an SD3")
        return [PIPELINE_FILE, *_components(sorted(present_parts(parts, t5)), files, variant)]
    if not t5:
        raise ValueError("t5=False does not apply: it is no SD3 pipeline")
    for place in (TRANSFORMER, ""):
        config = folder / place / MODEL_CONFIG
        if config.is_file():
            _check_class(config)
            known = [name for name in (PIPELINE_FILE, SCHEDULER_CONFIG) if name in files]
            own = [VAE] if vae and place == TRANSFORMER and vae_folder(folder) else []
            return [*known, *_components([place, *own], files, variant)]
    if RUN_FILE in files:
        if variant is not None:
            raise ValueError(f"variant={variant!r} does not apply: it holds a {RUN_FILE}")
        return [RUN_FILE]
    shown = ", ".join(sorted(files)[:SHOWN]) or "nothing"
    raise FileNotFoundError(
        f"no model that is known: expected {PIPELINE_FILE}, {MODEL_CONFIG} with weights, or {RUN_FILE}; it has {shown}"
    )


def needed_vae_files(folder: Path, files: Sequence[str]) -> list[str]:
    """As :func:`needed_files`, of a repository that an autoencoder is read from."""
    place = vae_folder(folder)
    if place is None:
        raise FileNotFoundError(
            f"no VAE that is known: expected one of {', '.join(AUTOENCODERS)}, as it is or in a folder {VAE}"
        )
    return _components(["" if place == folder else VAE], files, None)


def _check_class(config: Path) -> None:
    kind, known = read_json(config).get("_class_name"), (CLASS, *CLASSES)
    if kind not in known:
        raise ValueError(f"its {config.name} describes a {kind}; known: {', '.join(known)}")


def _components(names: Iterable[str], files: Sequence[str], variant: str | None) -> list[str]:
    """Configuration, vocabulary and weights of each component folder; a component without the variant brings its plain ones."""
    wanted, found = [], False
    for name in names:
        inside = [file for file in files if str(PurePosixPath(file).parent) == (name or ".")]
        own = component_weights(inside, variant)
        found = found or bool(own)
        own = own or component_weights(inside, None)
        if not own and any(PurePosixPath(file).name == MODEL_CONFIG for file in inside):
            what = f"weights of the variant {variant!r}" if variant else "weights without a variant"
            shown = ", ".join(file for file in inside if not file.endswith(BESIDE_WEIGHTS)) or "none"
            raise FileNotFoundError(f"its {name or 'network'} has no {what}; there are: {shown}")
        wanted += [file for file in inside if file.endswith(BESIDE_WEIGHTS) and ".index." not in file] + own
    if not found:
        raise FileNotFoundError(f"none of its components has weights of the variant {variant!r}")
    return wanted


def component_weights(files: Sequence[str], variant: str | None) -> list[str]:
    """The weights of one component: one file, or an index and its shards; safetensors before .bin; empty if there are none."""
    mark = "" if variant is None else f".{variant}"
    by_name = {PurePosixPath(file).name: file for file in files}
    for kind, stems in STEMS.items():
        for stem in stems:
            if f"{stem}{mark}{kind}" in by_name:
                return [by_name[f"{stem}{mark}{kind}"]]
            index = f"{stem}{kind}.index{mark}.json"
            if index in by_name:
                # diffusers writes the variant before the number of a shard, and wrote it after in earlier releases
                shard = re.compile(rf"{stem}(?:{re.escape(mark)}-\d+-of-\d+|-\d+-of-\d+{re.escape(mark)}){re.escape(kind)}")
                return [by_name[index], *(file for name, file in by_name.items() if shard.fullmatch(name))]
    return []
