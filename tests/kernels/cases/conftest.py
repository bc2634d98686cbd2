"""What every kernel case needs: a device, dtypes, NaN-poisoned allocations, and the comparison with fp64.

These files are run by ``tests/kernels/test_interpreter.py`` in a process of their own, where Triton interprets kernels on
the CPU, and by its GPU twin on a CUDA device.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segue.kernels import judgement
from segue.kernels.contracts import contract, judges_bias, magnitude_of_summands, shared_dimensions
from segue.kernels.triton_runtime import interpreting

# the interpreter computes in numpy, which has no bf16; on a GPU it is the dtype that matters
DTYPES = (torch.float32, torch.float16) if interpreting() else (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if interpreting() else "cuda")


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


class Poison(TorchDispatchMode):
    """Memory starts as NaN, so that an element that a kernel does not write fails the comparison."""

    ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")

    def __init__(self):
        super().__init__()
        self.made: set[int] = set()  # addresses of what was allocated

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in self.ALLOCATIONS:
            self.made.add(made.untyped_storage().data_ptr())
            if made.element_size() == 1:
                made.view(torch.uint8).fill_(0x7F)
            else:
                made.fill_(float("nan") if made.is_floating_point() else torch.iinfo(made.dtype).min // 3)
        return made


@pytest.fixture(autouse=True)
def poison():
    with Poison() as mode:
        yield mode


@pytest.fixture
def normal(device, seed):
    """``normal(shape, dtype)``: seeded unit normal numbers on the device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return draw


def twin(value):
    """A copy in the same layout, with whatever lies between and around the elements: ``clone`` would make it dense."""
    if not torch.is_tensor(value):
        return value
    storage = value.untyped_storage().clone()
    return value.new_empty(0).set_(storage, value.storage_offset(), value.shape, value.stride())


def clones(values):
    return [twin(value) for value in values]


def dense_clones(values):
    """Copies in which nothing lies beside the elements: PyTorch's own attention reads the padding of rows, and is spoiled."""
    return [value.clone(memory_format=torch.contiguous_format) if torch.is_tensor(value) else value for value in values]


def as_tuple(result) -> tuple[torch.Tensor, ...]:
    return tuple(tree_leaves(result))


@pytest.fixture
def judge():
    """``judge(kernel, reference, *arguments)``: against fp64, the kernel errs at most twice as much as the reference, and
    its errors do not lean to one side.

    ``exact`` replaces the fp64 oracle, by default the reference on fp64 copies; in-place arguments are compared too.
    ``operation`` is looked up in the table of contracts: a bit-exact one must give the bits of the reference.
    """

    def check(kernel, reference, *arguments, exact=None, operation=None):
        ours_in, eager_in = clones(arguments), dense_clones(arguments)
        doubled = [value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in arguments]
        oracle = as_tuple((exact or reference)(*clones(doubled)))
        ours, eager = as_tuple(kernel(*ours_in)), as_tuple(reference(*eager_in))
        assert len(ours) == len(eager) == len(oracle)
        summands = magnitude_of_summands(operation, arguments) if operation else 0.0
        for mine, theirs, truth in zip(ours, eager, oracle, strict=True):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            assert not mine.isnan().any(), "an element was not written"
            if operation and contract(operation).kind == "bit-exact":
                assert torch.equal(mine, theirs), "not the bits of the reference"
            error, bound = (mine.double() - truth.double()).abs().max(), judgement.error_bound(theirs, truth, summands)
            assert error <= bound, f"error {error:.2e} against fp64; {bound:.2e} is twice that of eager and two roundings"
            # not where the reference has no such precision (noise, quantised rows), nor where tensor cores sum in fp32
            if truth.dtype == torch.float64 and judges_bias(operation, mine, arguments):
                bias = judgement.bias(mine, truth, shared_dimensions(operation, mine.dim()))
                assert bias.passed, str(bias)

    return check
