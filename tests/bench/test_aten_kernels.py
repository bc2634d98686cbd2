"""Which kernels PyTorch's operations start, by what its CUDA sources do; and what they move, counted by hand."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from segue.bench.aten_kernels import aten_kernels, attention_kernels, flash_splits, touched
from segue.kernels.attention_lse import attention_lse_sdpa
from segue.kernels.triton_runtime import Chip

WITH_CUDNN, WITHOUT = Chip("sm_90", 132, 91501), Chip("sm_90", 132)


class Seen(TorchDispatchMode):
    def __init__(self, chip: Chip):
        super().__init__()
        self.chip, self.kernels = chip, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.kernels += aten_kernels(function, args, kwargs or {}, out, self.chip)
        return out


def seen(call, chip: Chip = WITH_CUDNN):
    with Seen(chip) as mode:
        call()
    return mode.kernels


def meta(*shape: int, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


X, W, B = meta(2, 5, 16), meta(24, 16), meta(24)


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (lambda: X.transpose(1, 2)[:, 3:].unflatten(1, (13, 1)), []),
        (lambda: torch.empty_like(X), []),
        (lambda: X + X, ["pytorch"]),
        (lambda: X.add_(1), ["pytorch"]),
        (lambda: X.zero_(), ["pytorch"]),
        (lambda: X.mean(dim=2), ["pytorch"]),
        (lambda: X.float(), ["pytorch"]),
        (lambda: X.softmax(dim=-1), ["pytorch"]),
        (lambda: meta(2, 5, 16).copy_(X), ["copy"]),
        (lambda: X.clone(), ["copy"]),
        (lambda: X[:, 0].contiguous(), ["pytorch"]),
        (lambda: X.transpose(0, 1).clone(memory_format=torch.preserve_format), ["copy"]),
        (lambda: X.transpose(0, 1).contiguous(), ["pytorch"]),
        (lambda: X[:0] + 1, []),
        (lambda: F.layer_norm(X, (16,)), ["pytorch"]),
        (lambda: F.layer_norm(X.transpose(0, 1), (16,)), ["pytorch", "pytorch"]),
        (lambda: torch.cat([X, X]), ["pytorch"]),
        (lambda: torch.cat([X, X[:0]]), ["copy"]),
        (lambda: X[1].__setitem__(slice(None), 0), ["pytorch"]),
        (lambda: F.linear(X, W, B), ["product"]),
        (lambda: F.linear(X[:1, :4], W, B), ["product"]),
        (lambda: F.linear(X[:, :4], W, B), ["product", "pytorch"]),  # no rows of one matrix: batched, and the bias apart
        (lambda: torch._addmm_activation(B, X.flatten(0, 1), W.t(), use_gelu=True), ["product"]),
        (lambda: torch.addmm(meta(10, 24), X.flatten(0, 1), W.t()), ["pytorch", "product"]),
        (lambda: attention_lse_sdpa(*[meta(1, 300, 2, 64).transpose(1, 2)] * 3, (SDPBackend.CUDNN_ATTENTION,)), ["attention"]),
        (lambda: F.conv2d(meta(3, 16, 8, 8), meta(32, 16, 2, 2), meta(32), stride=2), ["pytorch", "pytorch"]),
        (lambda: F.conv2d(meta(3, 16, 8, 8), meta(32, 16, 2, 2), stride=2), ["pytorch"]),
    ],
)
def test_kinds_of_kernels(call, kinds):
    assert [kernel.kind for kernel in seen(call)] == kinds


def test_a_convolution_without_cudnn_unfolds_sample_by_sample():
    kernels = seen(lambda: F.conv2d(meta(3, 16, 8, 8), meta(32, 16, 2, 2), meta(32), stride=2), WITHOUT)
    assert [kernel.name for kernel in kernels] == ["convolution bias"] + 3 * ["im2col", "convolution"]
    flops = 3 * 2 * 16 * 64 * 32  # 4 x 4 patches of 2 x 2 x 16 numbers
    assert sum(kernel.flops for kernel in kernels) == flops
    assert sum(kernel.flops for kernel in seen(lambda: F.conv2d(meta(3, 16, 8, 8), meta(32, 16, 2, 2), stride=2))) == flops


@pytest.mark.parametrize(
    ("call", "moved"),
    [
        (lambda: X + X, 3 * 320),
        (lambda: X.add_(1), 2 * 320),
        (lambda: X.zero_(), 320),
        (lambda: F.layer_norm(X, (16,), meta(16)), 2 * 320 + 32),
        (lambda: X * meta(16), 2 * 320 + 32),
        (lambda: meta(1, 5, 16).expand(2, 5, 16) + X, 160 + 2 * 320),  # what is repeated by stride is read once
        (lambda: torch.add(X, X, out=meta(2, 5, 16)), 3 * 320),
        (lambda: torch.addcmul(X, X, meta(1, 1, 16), out=X), 3 * 320 + 32),
        (lambda: X.float(), 320 + 640),
        (lambda: F.linear(X, W, B), 320 + 2 * 24 * 16 + 2 * 24 + 2 * 10 * 24),
        (lambda: torch.bmm(X, W.t().expand(2, 16, 24)), 320 + 2 * 24 * 16 + 2 * 10 * 24),
    ],
)
def test_bytes(call, moved):
    (kernel,) = seen(call)
    assert kernel.bytes == moved


def test_flops_of_products():
    (kernel,) = seen(lambda: torch.bmm(X, meta(2, 16, 24)))
    assert (kernel.flops, kernel.problems) == (2 * 2 * 5 * 16 * 24, ((2, 5, 16, 24),))


def test_touched_counts_addresses():
    assert [touched(x) for x in (X, X[:, ::2], X[:1].expand(7, 5, 16), X[:0], meta())] == [320, 192, 160, 0, 2]


def test_an_operation_that_nobody_described_is_refused():
    with pytest.raises(ValueError, match=r"does not know which kernels PyTorch starts for aten.sort"):
        seen(lambda: X.sort())


def naive_splits(heads: int, queries: int, keys: int, head_dim: int, processors: int) -> int:
    """As FlashAttention's C++ writes it: every number of parts in turn."""
    slots = 2 * processors
    block = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    n_blocks, m_blocks = ceil(keys / block), heads * ceil(queries / 64)
    if m_blocks >= 0.8 * slots:
        return 1
    efficiency = []
    for splits in range(1, min(128, slots, n_blocks) + 1):
        if splits > 1 and ceil(n_blocks / splits) == ceil(n_blocks / (splits - 1)):
            efficiency.append(0.0)
        else:
            waves = m_blocks * splits / slots
            efficiency.append(waves / ceil(waves))
    for splits, value in enumerate(efficiency, start=1):
        if value and value >= 0.85 * max(efficiency):
            return splits
    raise AssertionError("one part is always possible")


def test_flash_cuts_the_keys_where_there_are_few_queries():
    sizes = [
        (16, 256, 256, 72),
        (32, 256, 256, 72),
        (24, 4429, 4429, 64),
        (6, 64, 64, 32),
        (1, 1, 9000, 64),
        (3, 63, 5000, 128),
    ]
    assert [flash_splits(*size, 132) for size in sizes] == [naive_splits(*size, 132) for size in sizes]
    assert flash_splits(16, 256, 256, 72, 132) == 2 and flash_splits(24, 4429, 4429, 64, 132) == 1


@pytest.mark.parametrize(("backend", "names"), [("cudnn", 1), ("efficient", 1), ("flash", 2)])
def test_attention(backend, names):
    q, k = meta(1, 16, 256, 72), meta(1, 16, 256, 72)
    kernels = attention_kernels(q, k, k, backend, WITH_CUDNN)
    assert len(kernels) == names
    assert sum(kernel.flops for kernel in kernels) == 4 * 16 * 256 * 256 * 72
    assert kernels[0].bytes == 4 * 16 * 256 * 72 * 2  # q, k, v in, the result out
