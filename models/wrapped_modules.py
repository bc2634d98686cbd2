"""Modules that training puts around a network: in the place of a network they are looked through, or say what they hide."""

from torch import nn

# class name -> where the network is; by name, as most of these libraries are not imported
WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
    "PeftModel": "base_model.model",
}
SHARDED = ("FullyShardedDataParallel",)


def wrapper_of(module: object) -> str | None:
    """The class that makes ``module`` a wrapper, by name; None if it is none.  ``ValueError`` where it holds shards."""
    names = [kind.__name__ for kind in type(module).__mro__]
    for name in names:
        if name in SHARDED:
            raise ValueError(
                f"a {name} holds its weights in shards: sample from a full copy, such as one that loads "
                "accelerator.get_state_dict(model)"
            )
    return next((name for name in names if name in WRAPPERS), None)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside the wrappers of training: data parallelism, compilation, an average of weights."""
    while (name := wrapper_of(module)) is not None:
        for attribute in WRAPPERS[name].split("."):
            module = getattr(module, attribute)
    return module
