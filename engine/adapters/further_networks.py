"""Further networks by name, for autoguidance: from files, folders and hub ids, of live pipelines and transformers, or ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from segue.models.dit_diffusers import from_diffusers_dit
from segue.models.mmdit_diffusers import from_diffusers
from segue.models.spec import ModelSpec
from segue.models.weights import load_model
from segue.models.wrapped_modules import unwrapped

from ..sources import Reading, local_source
from .dit_pipeline import check_dit, is_dit
from .packing import check_transformer


def further_networks(
    models: Mapping[str, Any] | None, main: ModelSpec, family: str | None = None, reading: Reading | None = None
) -> dict[str, nn.Module]:
    """``models`` as networks of the kind of ``main``; weights of diffusers' are copied, as they are now.

    ``family`` is that of files which do not tell.  Raises ``TypeError`` or ``ValueError`` for anything that is no such network.
    """
    if not isinstance(models, Mapping | None):
        raise TypeError(f"models must name further networks, as in {{'weak': 'smaller.safetensors'}}, got {models!r}")
    found = {}
    for name, model in (models or {}).items():
        if name == "main":
            raise ValueError(f"further models need names of their own: 'main' is the network that is sampled; got {model!r}")
        network = found[name] = _network(model, family, reading or Reading())
        if type(network.spec) is not type(main):
            kinds = f"a {type(network).__name__}, and {main.name} takes a {type(main).__name__.removesuffix('Spec')}"
            raise ValueError(f"network {name!r} is {kinds}: both must take the same conditions")
    return found


def _network(model: Any, family: str | None, reading: Reading) -> Any:
    if isinstance(model, str | Path):
        return load_model(local_source(model, reading), family)[0]
    module = getattr(model, "transformer", model)  # of a pipeline
    if not isinstance(module, nn.Module):
        raise TypeError(f"a further network is a file, a folder, a pipeline or a module, got {model!r}")
    module = unwrapped(module)
    if isinstance(getattr(module, "spec", None), ModelSpec):
        return module
    if is_dit(module):
        check_dit(module)
        return from_diffusers_dit(module)
    check_transformer(module)
    return from_diffusers(module, share=False)
