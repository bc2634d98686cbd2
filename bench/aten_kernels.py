"""Which kernels an operation of PyTorch starts on a CUDA device, from its arguments.

A matrix product is one kernel: whether the vendor's library splits a sum over K, which takes a second, is not known before
it runs.  An operation that is in no table here is refused, so that none is left out of a census.
"""

from math import ceil, prod

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from segue.kernels.triton_runtime import Chip

from .kernel_record import ATTENTION, COPY, PRODUCT, PYTORCH, Kernel

NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "detach"}
NOTHING |= {"scalar_tensor"}  # a number that is assigned: on CUDA the argument of a fill
COPIES = {"copy", "clone", "_to_copy"}
ONE = {"arange", "cat", "fill", "full", "index", "index_select", "new_zeros", "ones", "zero", "zeros"}
ONE |= {"repeat", "_softmax", "stack", "zeros_like", "ones_like", "full_like", "new_full", "new_ones"}
ATTENTIONS = {  # with a log-sum-exp, by the kernel that runs them
    f"_scaled_dot_product_{backend}_attention": backend for backend in ("cudnn", "flash", "efficient")
}
# operation: which arguments are the matrices, and whether a bias goes before them
MATRICES = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "_addmm_activation": 1, "_scaled_mm": 0}


def dtype_text(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def touched(tensor: Tensor) -> int:
    """Bytes at distinct addresses: a dimension repeated by stride counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size if stride or size == 0 else 1 for size, stride in sizes) * tensor.element_size()


def text(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "1"


def aten_kernels(function, args: tuple, kwargs: dict, out, chip: Chip) -> list[Kernel]:
    """The kernels of one call of an ATen operation; copies between tensors of one layout are of kind ``copy``.

    Raises ``ValueError`` for an operation whose kernels are not known.
    """
    name = function.overloadpacket.__name__.rstrip("_")  # in place or not
    results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
    if function.is_view or name in NOTHING or not any(result.numel() for result in results):
        return []
    if name == "cat" and len(parts := [part for part in args[0] if part.numel()]) == 1:  # a single part is copied
        return [_copy(name, results[0], parts[0])]
    if name in COPIES:
        return [_copy(name, *((args[0], args[1]) if name == "copy" else (results[0], args[0])))]
    if name in ATTENTIONS:
        return attention_kernels(*args[:3], ATTENTIONS[name], chip, lse=True)
    if name in MATRICES:
        return _product(name, args, results[0])
    if name == "convolution":
        return _convolution(args, results[0], chip)
    if name == "native_layer_norm":
        return _layer_norm(args, results[0])
    if name in ONE or {torch.Tag.pointwise, torch.Tag.reduction} & set(function.tags):
        given = () if name in ("fill", "zero") else (args, {key: value for key, value in kwargs.items() if key != "out"})
        read = [value for value in tree_leaves(given) if isinstance(value, Tensor)]
        return [_pass(name, read, results)]
    raise ValueError(f"the census does not know which kernels PyTorch starts for {function}; see bench/aten_kernels.py")


def _pass(name: str, read: list[Tensor], written: list[Tensor]) -> Kernel:
    """One kernel that reads its operands and writes its results."""
    moved = sum(map(touched, read)) + sum(map(touched, written))
    return Kernel(PYTORCH, name, text(written[0]), 0, moved, dtype_text(written[0]))


def _copy(name: str, target: Tensor, source: Tensor) -> Kernel:
    """The copy engine's where nothing changes on the way, else a kernel."""
    if touched(source) == source.element_size() and target.numel() > 1:  # a number
        return _pass("fill", [], [target])
    used = [i for i, size in enumerate(target.shape) if size > 1]
    same = target.shape == source.shape and all(target.stride(i) == source.stride(i) for i in used)
    plain = target.dtype == source.dtype and same and _dense(target)
    moved = touched(source) + touched(target)
    return Kernel(COPY if plain else PYTORCH, name, text(target), 0, moved, dtype_text(target))


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill an interval of memory, in whatever order."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _layer_norm(args: tuple, out: Tensor) -> list[Kernel]:
    """One kernel over contiguous rows, which others are copied to; its statistics are not counted."""
    x, vectors = args[0], [value for value in args[2:4] if value is not None]
    before = [] if x.is_contiguous() else [_pass("copy", [x], [out])]
    return [*before, _pass("native_layer_norm", [out, *vectors], [out])]


def _product(name: str, args: tuple, out: Tensor) -> list[Kernel]:
    first = MATRICES[name]
    a, b = args[first], args[first + 1]
    (m, k), n, count = a.shape[-2:], b.shape[-1], a.shape[0] if a.dim() == 3 else 1
    bias = args[0] if first else None
    moved = touched(a) + touched(b) + touched(out) + (0 if bias is None else touched(bias))
    sizes = f"{f'{count} x ' * (count > 1)}{m} x {k} -> {n}"
    product = Kernel(PRODUCT, name, sizes, 2 * count * m * k * n, moved, dtype_text(a), PRODUCT, ((count, m, k, n),))
    if bias is None or (bias.dim() == 1 and bias.is_contiguous()):  # a vector is added by the product's epilogue
        return [product]
    return [_pass("copy", [bias], [out]), product]


def _convolution(args: tuple, out: Tensor, chip: Chip) -> list[Kernel]:
    """cuDNN's kernel and the bias; without cuDNN the bias first, then one unfolding and one product per sample.

    cuDNN may start more, to change layouts: which is not known before it runs.
    """
    x, weight, bias = args[:3]
    flops = 2 * out.numel() * prod(weight.shape[1:])
    dtype = dtype_text(x)
    if chip.cudnn:
        moved = touched(x) + touched(weight) + touched(out)
        kernels = [Kernel(PYTORCH, "convolution", f"{text(x)} -> {weight.shape[0]}", flops, moved, dtype)]
        return kernels if bias is None else [*kernels, _pass("convolution bias", [out, bias], [out])]
    kernels = [] if bias is None else [_pass("convolution bias", [bias], [out])]
    m, k, n = prod(out.shape[2:]), prod(weight.shape[1:]), weight.shape[0]
    sizes, problem = f"{m} x {k} -> {n}", ((1, m, k, n),)
    columns = m * k * x.element_size()
    for sample, result in zip(x, out, strict=True):
        kernels.append(Kernel(PYTORCH, "im2col", f"{m} x {k}", 0, touched(sample) + columns, dtype))
        moved = columns + touched(weight) + touched(result)
        kernels.append(Kernel(PRODUCT, "convolution", sizes, flops // len(x), moved, dtype, PRODUCT, problem))
    return kernels


def attention_kernels(q: Tensor, k: Tensor, v: Tensor, backend: str, chip: Chip, lse: bool = False) -> list[Kernel]:
    """Of ``scaled_dot_product_attention`` by ``cudnn``, ``flash`` or ``efficient``.  q [R, H, T, K]; k, v [R, H, S, K].

    ``lse``: the log-sum-exp of every query is written too, in fp32.
    """
    rows, heads, queries, head_dim = q.shape
    keys = k.shape[2]
    moved = 2 * touched(q) + touched(k) + touched(v) + 4 * rows * heads * queries * lse
    sizes = f"{rows} x {heads} x {queries} x {head_dim}, {keys} keys"
    flops = 4 * rows * heads * queries * keys * head_dim
    problem = ((rows * heads, queries, keys, head_dim),)
    kernels = [Kernel(ATTENTION, f"{backend} attention", sizes, flops, moved, dtype_text(q), ATTENTION, problem)]
    splits = flash_splits(rows * heads, queries, keys, head_dim, chip.processors) if backend == "flash" else 1
    if splits > 1:  # partial outputs in fp32
        partial = 4 * splits * q.numel() + touched(q)
        kernels.append(Kernel(ATTENTION, "flash attention combine", f"{splits} parts of {text(q)}", 0, partial, "float32"))
    return kernels


def flash_splits(heads: int, queries: int, keys: int, head_dim: int, processors: int) -> int:
    """Into how many parts FlashAttention-2 cuts the keys; a second kernel joins more than one.

    Source: ``num_splits_heuristic`` and ``set_params_splitkv`` of its ``flash_api.cpp``, which PyTorch follows.
    """
    slots, blocks = 2 * processors, ceil(keys / (256 if head_dim <= 64 else 128 if head_dim <= 128 else 64))
    programs = heads * ceil(queries / 64)
    if programs >= 0.8 * slots:
        return 1
    efficiency = {}
    for splits in range(1, min(128, slots, blocks) + 1):
        if splits == 1 or ceil(blocks / splits) != ceil(blocks / (splits - 1)):
            waves = programs * splits / slots
            efficiency[splits] = waves / ceil(waves)
    best = max(efficiency.values())
    return next(splits for splits, value in efficiency.items() if value >= 0.85 * best)
