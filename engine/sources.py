"""Where a model comes from: a bundled name, a local file or folder, or a repository on the Hugging Face hub."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from segue.models.bundled import BUNDLED

from .saved_files import (
    AUTOENCODERS,
    CONFIGS,
    MODEL_CONFIG,
    VAE,
    is_sd3_index,
    needed_files,
    needed_vae_files,
    pipeline_parts,
    vae_folder,
)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Reading:
    """Which form of a model is read: ``revision`` and ``token`` of the hub, ``variant`` of its files, with or without T5.

    ``revision`` is a branch, a tag or a commit; ``token`` None is that of the environment or of ``hf auth login``.
    ``variant`` as diffusers names files (``fp16``).  ``t5=False`` leaves the third text encoder of an SD3 pipeline out,
    ``vae=False`` the VAE of a class-label pipeline.
    """

    revision: str | None = None
    variant: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    t5: bool = True
    vae: bool = True

    def __post_init__(self):
        for name in ("revision", "variant"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, got {value!r}")
            if value is not None and not value:
                raise ValueError(f"{name} must not be empty, got {value!r}")
        if self.variant is not None and not re.fullmatch(r"\w+", self.variant):
            raise ValueError(f"variant must be a word of a file's name such as fp16, got {self.variant!r}")
        if not isinstance(self.t5, bool):
            raise TypeError(f"t5 must be True or False, got {self.t5!r}")

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise ``ValueError`` if one of ``names`` is not at its default."""
        for name in names:
            if getattr(self, name) != getattr(Reading, name):
                raise ValueError(f"{name}={getattr(self, name)!r} does not apply: {reason}")


DEFAULT = Reading()


def local_source(source: str | Path, reading: Reading = DEFAULT, weights: bool = True) -> str | Path:
    """``source`` itself if it is bundled or local; of a hub id what is read is fetched, and its local folder returned.

    Without ``weights`` only the configurations are fetched.  Raises ``FileNotFoundError`` in one sentence, with the hub's own
    reason, where a hub id cannot be fetched, and ``ValueError`` for a revision of something that is not on the hub.
    """
    if str(source) in BUNDLED or Path(source).exists() or not _HUB_ID.fullmatch(str(source)):
        reading.refuse(("revision",), f"{str(source)!r} is not on the hub")
        return source
    name = str(source)
    folder = _download(name, reading, CONFIGS)
    if not weights:
        return folder
    return _fetch(name, reading, folder, lambda files: needed_files(folder, files, reading.variant, reading.t5, reading.vae))


def local_vae(source: str | Path, reading: Reading = DEFAULT) -> Path:
    """The local folder of the VAE that ``source`` is or, as a pipeline, has; of a hub id what is read of it is fetched.

    Raises ``TypeError`` for what is no name or path, ``FileNotFoundError`` in one sentence where there is no such VAE.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"vae must be a folder or a hub id, got {source!r}; a module goes to Engine(..., vae=module)")
    folder = Path(source)
    if not folder.exists() and _HUB_ID.fullmatch(str(source)):
        configs = _download(str(source), reading, (MODEL_CONFIG, f"{VAE}/{MODEL_CONFIG}"))
        folder = _fetch(str(source), reading, configs, lambda files: needed_vae_files(configs, files))
    found = vae_folder(folder)
    if found is None:
        known = " or ".join(AUTOENCODERS)
        raise FileNotFoundError(
            f"{str(source)!r} holds no VAE: expected the {MODEL_CONFIG} of an {known}, as it is or in {VAE}/"
        )
    return found


def _fetch(name: str, reading: Reading, folder: Path, needed: Callable[[list[str]], list[str]]) -> Path:
    """The local folder of a repository with those of its files that are ``needed``; ``folder`` has its configurations."""
    files, silence = _listing(name, reading, folder)
    try:
        wanted = needed(files)
    except (FileNotFoundError, ValueError) as error:
        offline = f" (in the cache; the hub did not answer: {silence})" if silence else ""
        raise type(error)(f"the repository {name} cannot be read: {error}{offline}") from None
    return _download(name, reading, wanted)


def _download(name: str, reading: Reading, wanted: tuple[str, ...] | list[str]) -> Path:
    """The local folder of a repository, with the wanted files; offline what is in the cache."""
    import huggingface_hub

    patterns = list(wanted)
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=reading.revision, token=reading.token, allow_patterns=patterns)
        )
    except Exception as error:  # the hub raises many types: offline, gated, unknown; each means that there is no model
        raise FileNotFoundError(
            f"{name!r} is no local file or folder, and the hub did not give it: {_reason(error)}"
        ) from error


def _listing(name: str, reading: Reading, folder: Path) -> tuple[list[str], str]:
    """The files of a repository; offline those in the cache, and why the hub did not answer."""
    import huggingface_hub

    try:
        return list(huggingface_hub.list_repo_files(name, revision=reading.revision, token=reading.token)), ""
    except Exception as error:  # many types, as in _download; the configurations came, so this means offline
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()], _reason(error)


def _reason(error: Exception) -> str:
    """What the hub says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_sd3_pipeline(source: str | Path) -> bool:
    """Whether ``source`` is a saved diffusers Stable Diffusion 3 pipeline.  Raises ``ValueError`` for a broken index."""
    return is_sd3_index(pipeline_parts(Path(source)))
