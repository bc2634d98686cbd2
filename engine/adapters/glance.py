"""A cheap look at whether anything has been done to the modules of a transformer: between two calls of a run."""

from torch import Tensor, nn


class Glance:
    """The parts of a module as they were: submodules, forwards, hooks, attention processors, and where the parameters lie.

    What it misses is what no path depends on: values, and attributes that the forward of a part reads.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._parts = [(part, _parts(part)) for part in module.modules()]
        self._tensors = [(part, name, tensor, tensor.data_ptr()) for part in module.modules() for name, tensor in _held(part)]

    def unchanged(self) -> bool:
        """Whether the module is as it was."""
        return all(_parts(part) == before for part, before in self._parts) and all(
            (part._parameters.get(name) is tensor or part._buffers.get(name) is tensor) and tensor.data_ptr() == place
            for part, name, tensor, place in self._tensors
        )


def _parts(part: nn.Module) -> tuple:
    attributes = vars(part)
    return (
        *map(id, part._modules.values()),
        attributes.get("forward"),
        attributes.get("processor"),
        attributes.get("_chunk_size"),
        attributes.get("_compiled_call_impl"),
        len(part._forward_hooks) + len(part._forward_pre_hooks),
    )


def _held(part: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in (*part._parameters.items(), *part._buffers.items()) if tensor is not None]
