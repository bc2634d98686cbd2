"""The storages that are alive while code runs: what it holds, what it allocates, and when it lets go."""

import gc
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors_of(*owners: object) -> list[Tensor]:
    """Parameters and buffers of modules; tensors that are attributes of other objects."""
    found: list[Tensor] = []
    for owner in owners:
        values = [*owner.parameters(), *owner.buffers()] if isinstance(owner, nn.Module) else vars(owner).values()
        found += [value for value in values if isinstance(value, Tensor)]
    return found


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once, with what no tensor shows."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def reachable_bytes() -> int:
    """Bytes of every storage that a tensor of this process shows."""
    gc.collect()
    return storage_bytes(item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter) and not item.is_meta)


class LiveStorages(TorchDispatchMode):
    """Bytes alive on ``device`` after every operation: the storages of ``held``, and every other one that it touched.

    A storage counts from its first use until nothing refers to it, so views, tensors written in place and packed weights
    count once.  What a kernel allocates and frees inside one operation does not count, on either side of a comparison.
    """

    def __init__(self, held: Iterable[Tensor], device: str = "cpu"):
        super().__init__()
        self.device = device
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = self.peak = 0  # bytes of what was seen, with some that died since; most bytes alive
        self._count(held)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self._count(value for value in tree_leaves((args, kwargs or {}, out)) if isinstance(value, Tensor))
        return out

    def _count(self, touched: Iterable[Tensor]) -> None:
        for tensor in touched:
            if tensor.device.type != self.device:
                continue
            storage = tensor.untyped_storage()
            known = self._seen.get(storage._cdata)
            if known is None or known[0].expired():
                self._total += storage.nbytes() - (0 if known is None else known[1])
                self._seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        if self._total > self.peak:
            self._seen = {address: entry for address, entry in self._seen.items() if not entry[0].expired()}
            self._total = sum(size for _, size in self._seen.values())
            self.peak = max(self.peak, self._total)


class AttentionOutputs(TorchFunctionMode):
    """On the meta device: attention allocates its output, laid out as flash kernels do; PyTorch would build all scores."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query = args[0] if args else kwargs["query"]
        rows, heads, tokens, width = query.shape
        return query.new_empty(rows, tokens, heads, width).transpose(1, 2)


def meta_peak(held: Iterable[Tensor], run) -> int:
    """Most bytes alive while ``run()`` works on tensors of the meta device."""
    with torch.no_grad(), AttentionOutputs(), LiveStorages(held, "meta") as storages:
        run()
    return storages.peak
