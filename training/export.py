"""A finished run as one small file: the EMA weights in half precision, with what they were trained by."""

from pathlib import Path

import torch
from torch import nn

from segue.engine.files import check_writable, whole_file
from segue.models.bundled import PARENT_KEY, digest
from segue.models.classifiers import ClassifierSpec, load_classifier
from segue.models.enhancer import EnhancerSpec, load_enhancer
from segue.models.sit import SiT
from segue.models.weights import load_network, save_model
from segue.models.written_layout import write_diffusers, write_official

from .run_folder import RunFolder
from .specs import spec_of
from .task import Spec

LAYOUTS = ("segue", "official", "diffusers")
EXPORT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def export_run(
    folder: Path,
    path: Path,
    dtype: str = "float16",
    step: int | None = None,
    parent: Path | None = None,
    layout: str = "segue",
) -> nn.Module:
    """Write the averaged weights of a run to ``path``; returns the network as written.

    ``layout``: ``segue`` (a safetensors file that states all), ``official`` (a torch file for the code of DiT, SiT and REPA) or
    ``diffusers`` (the folder of a ``DiTTransformer2DModel``); the last two want a network of their conventions.
    ``step``: weights that the run kept of an earlier step.  ``parent``: the file of the model that this one was made for, whose
    digest goes into the header.  The header also holds the spec and, as strings, the recipe, seed, steps, images and, of the
    latest weights, the training seconds.  Raises ``ValueError`` if the folder holds no such run or step, or a weight does not
    fit ``dtype``.
    """
    if dtype not in EXPORT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(EXPORT_DTYPES)}, got {dtype!r}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if parent is not None and layout != "segue":
        raise ValueError(f"the {layout} layout names no parent, got {str(parent)!r}")
    check_writable(path, folder=layout == "diffusers")
    run = RunFolder(folder)
    record = run.existing()
    spec = spec_of(record["spec"], f"the run in {folder}")
    made_for = {} if parent is None else {PARENT_KEY: digest(parent)}
    weights = run.weights(step)
    model = _loaded(spec, weights)
    model = model.to(EXPORT_DTYPES[dtype]).eval()
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} in {folder} is not finite in {dtype}")
    steps = record["step"] if step is None else step
    facts = {"seed": record["settings"]["seed"], "steps": steps, "images": steps * record["settings"]["batch_size"]}
    if step is None:
        facts["seconds"] = round(record["seconds"])
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"recipe": spec.name} | {name: str(value) for name, value in facts.items()} | made_for
    if layout == "segue":
        save_model(model, path, header)
    elif not isinstance(model, SiT):
        raise ValueError(f"{spec.name} is no DiT or SiT: the {layout} layout cannot hold it")
    elif layout == "official":
        with whole_file(path) as part:
            write_official(model, part, facts)
    else:
        write_diffusers(model, path)
    return model


def _loaded(spec: Spec, weights: Path) -> nn.Module:
    """The network of that kind in a file of weights."""
    if isinstance(spec, ClassifierSpec):
        return load_classifier(weights)
    return load_enhancer(weights) if isinstance(spec, EnhancerSpec) else load_network(weights)[0]
