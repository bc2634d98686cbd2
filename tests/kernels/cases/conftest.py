"""What every kernel case needs: a device, dtypes, NaN-poisoned allocations, and the comparison with fp64.

These files are run by ``tests/kernels/test_interpreter.py`` in a process of their own, where Triton interprets kernels on
the CPU, and by its GPU twin on a CUDA device.
"""

import pytest
import torch

from segue.kernels.triton_runtime import interpreting
from tests.tolerances import KERNEL_AGAINST_EAGER, KERNEL_FLOOR

# the interpreter computes in numpy, which has no bf16; on a GPU it is the dtype that matters
DTYPES = (torch.float32, torch.float16) if interpreting() else (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if interpreting() else "cuda")


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Outputs start as NaN, so an element that a kernel does not write fails the comparison."""
    allocate = torch.empty

    def poisoned(*arguments, **options):
        made = allocate(*arguments, **options)
        return made.view(torch.uint8).fill_(0x7F).view(made.dtype) if made.element_size() == 1 else _fill(made)

    monkeypatch.setattr(torch, "empty", poisoned)


def _fill(made: torch.Tensor) -> torch.Tensor:
    return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(torch.iinfo(made.dtype).min // 3)


@pytest.fixture
def normal(device, seed):
    """``normal(shape, dtype)``: seeded unit normal numbers on the device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return draw


def clones(values):
    return [value.clone(memory_format=torch.preserve_format) if torch.is_tensor(value) else value for value in values]


def as_tuple(result) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


@pytest.fixture
def judge():
    """``judge(kernel, reference, *arguments)``: against fp64, the kernel errs at most twice as much as the reference.

    ``exact`` replaces the fp64 oracle, by default the reference on fp64 copies; in-place arguments are compared too.
    """

    def check(kernel, reference, *arguments, exact=None):
        ours_in, eager_in = clones(arguments), clones(arguments)
        doubled = [value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in arguments]
        oracle = as_tuple((exact or reference)(*clones(doubled)))
        ours, eager = as_tuple(kernel(*ours_in)), as_tuple(reference(*eager_in))
        assert len(ours) == len(eager) == len(oracle)
        for mine, theirs, truth in zip(ours, eager, oracle, strict=True):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            assert not mine.isnan().any(), "an element was not written"
            largest = truth.abs().max().clamp_min(1e-30)
            error = (mine.double() - truth).abs().max() / largest
            theirs_error = (theirs.double() - truth).abs().max() / largest
            floor = KERNEL_FLOOR * torch.finfo(mine.dtype).eps
            bound = KERNEL_AGAINST_EAGER * theirs_error + floor
            assert error <= bound, f"relative error {error:.2e} against fp64; eager makes {theirs_error:.2e}"

    return check
