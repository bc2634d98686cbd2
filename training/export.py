"""A finished run as one small file: the EMA weights in half precision, with what they were trained by."""

from pathlib import Path

import torch

from segue.engine.files import check_writable
from segue.models.sit import SiT
from segue.models.weights import load_network, save_model

from .recipes import get_recipe
from .run_folder import WEIGHTS, RunFolder

EXPORT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def export_run(folder: Path, path: Path, dtype: str = "float16") -> SiT:
    """Write the EMA weights of a run of a known recipe to ``path`` (safetensors); returns the network as written.

    The header holds the spec and, as strings, the recipe, seed, steps, images and training seconds.  Raises ``ValueError`` if
    the folder holds no such run, its network is not the recipe's, or a weight does not fit ``dtype``.
    """
    if dtype not in EXPORT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(EXPORT_DTYPES)}, got {dtype!r}")
    check_writable(path, folder=False)
    run = RunFolder(folder)
    record = run.existing()
    recipe = get_recipe(record["spec"].get("name"))
    run.check_same("spec", recipe.spec.to_dict())
    model = SiT(recipe.spec)
    model.load_state_dict(load_network(Path(folder) / WEIGHTS)[0].state_dict())
    model = model.to(EXPORT_DTYPES[dtype]).eval()
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} in {folder} is not finite in {dtype}")
    images = record["step"] * record["settings"]["batch_size"]
    facts = {"seed": record["settings"]["seed"], "steps": record["step"], "images": images, "seconds": round(record["seconds"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path, {"recipe": recipe.spec.name} | {name: str(value) for name, value in facts.items()})
    return model
