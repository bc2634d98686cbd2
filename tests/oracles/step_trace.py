"""The operations of one step with the storages they touch: what a graph capture would record."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# reading a device value on the host, or an output shape that depends on data
HOST_SYNCHRONISING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "_to_copy.device")


class Trace(TorchDispatchMode):
    """Every operation with the storages it touches: known ones by address, new ones by order of creation."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self.created: dict[int, str] = {}
        self.alive: list[torch.Tensor] = []  # keeps temporaries alive so that addresses are not reused within a trace

    def _name(self, value):
        if not isinstance(value, torch.Tensor):
            return repr(value)
        address = value.untyped_storage().data_ptr()
        place = self.created.get(address, address)
        return (place, tuple(value.shape), tuple(value.stride()), value.storage_offset(), value.dtype)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = [self._name(value) for value in tree_leaves((args, kwargs or {}))]
        known = {
            value.untyped_storage().data_ptr() for value in tree_leaves((args, kwargs or {})) if isinstance(value, torch.Tensor)
        }
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                address = value.untyped_storage().data_ptr()
                if address not in known and address not in self.created and address:
                    self.created[address] = f"new{len(self.created)}"
                    self.alive.append(value)
        self.operations.append((str(function), tuple(map(str, inputs))))
        return out


def trace_step(program, live) -> Trace:
    with Trace() as trace:
        program.step(live)
    return trace
