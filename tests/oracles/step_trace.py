"""What one step does, as a graph capture would record it, and what keeps a step from being captured."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# reading a device value on the host, or an output shape that depends on data
HOST_SYNCHRONISING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal.default", "interleave.Tensor")


class Trace(TorchDispatchMode):
    """Every operation with the storages it touches: those that were there by address, new ones by order of creation.

    A weak reference keeps the identity of a storage from being given to another, but not its memory.
    """

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self.host_data = False  # whether a list or an array became a tensor: a capture would freeze it
        self._created: dict[int, str] = {}
        self._references: list[StorageWeakRef] = []

    def _place(self, value: Tensor, made: bool = False):
        """Where a tensor lies; an unknown storage is named as new if it was ``made`` here."""
        storage = value.untyped_storage()
        key = storage._cdata
        if made and key not in self._created:
            self._created[key] = f"new{len(self._created)}"
            self._references.append(StorageWeakRef(storage))
        return self._created.get(key) or (key, storage.data_ptr())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        lifted = function is torch.ops.aten.lift_fresh.default  # its operand was just made from numbers of the host, unseen
        if lifted and args[0].dim():  # assigning one number makes a scalar too, which on CUDA is a fill
            self.host_data = True
        leaves = tree_leaves((args, kwargs)) if kwargs else tree_leaves(args)
        places = [self._place(value, lifted) if isinstance(value, Tensor) else None for value in leaves]
        inputs = tuple(
            value if place is None else (place, value.shape, value.stride(), value.storage_offset(), value.dtype)
            for place, value in zip(places, leaves, strict=True)
        )
        out = function(*args, **(kwargs or {}))
        known = {place[0] for place in places if isinstance(place, tuple)}
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._place(value, made=value.untyped_storage()._cdata not in known)
        self.operations.append((str(function), inputs))
        return out

    def survivors(self) -> list[str]:
        """The storages made inside the trace that are still alive."""
        return [self._created[reference.cdata] for reference in self._references if not reference.expired()]

    def synchronising(self) -> list[str]:
        """The operations that a capture would refuse or freeze."""
        return [name for name, _ in self.operations if any(word in name for word in HOST_SYNCHRONISING)]


def trace_step(program, live) -> Trace:
    with Trace() as trace:
        program.step(live)
    return trace


def check_step(program, live) -> Trace:
    """Three steps: the second and third must do the same on the same storages, read nothing and keep nothing."""
    return check_repeats(lambda: program.step(live), before=lambda: program.call.zero_())


def check_repeats(function: Callable[[], None], before: Callable[[], object]) -> Trace:
    """``function`` three times, after ``before``: the second and third must be the same, read nothing and keep nothing."""
    traces = []
    for _ in range(3):
        before()
        with Trace() as trace:
            function()
        traces.append(trace)
    for trace in traces[1:]:  # the first makes what is made once and kept for all steps
        assert not trace.synchronising(), f"the host takes part: {', '.join(trace.synchronising())}"
        assert not trace.host_data, "a tensor is made from data of the host"
        assert not trace.survivors(), f"allocations outlive the step: {', '.join(trace.survivors())}"
    first, second = (trace.operations for trace in traces[1:])
    assert len(first) == len(second), f"a step of {len(first)} operations, then one of {len(second)}"
    different = next((pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]), None)
    assert different is None, f"two steps differ: {different}"
    return traces[1]


class OnDevice(TorchDispatchMode):
    """Refuses every tensor that is not on ``device``: a constant of the host, or a copy to or from it."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs or {}, out)) if isinstance(value, Tensor)]
        elsewhere = {str(value.device) for value in tensors if value.device != self.device}
        assert not elsewhere, f"{function} touches {', '.join(elsewhere)}"
        return out
