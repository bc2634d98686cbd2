"""The interpreter that is made quick refuses and computes as Triton's own does; compiled kernels have no such checks."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from segue.kernels.triton_runtime import interpreting

pytestmark = pytest.mark.skipif(not interpreting(), reason="of the interpreter alone")
MOST = 2**31 - 1


@triton.jit
def integer_kernel(x_pointer, y_pointer, out_pointer, OPERATION: tl.constexpr):
    lane = tl.arange(0, 2)
    x, y = tl.load(x_pointer + lane), tl.load(y_pointer + lane)
    out = x + y if OPERATION == "add" else x - y if OPERATION == "sub" else x * y
    tl.store(out_pointer + lane, out)


def integers(operation: str, x: list[int], y: list[int], dtype=torch.int32) -> list[int]:
    operands = [torch.tensor(values, dtype=dtype) for values in (x, y)]
    out = torch.empty(2, dtype=dtype)
    integer_kernel[(1,)](*operands, out, operation)
    return out.tolist()


@pytest.mark.parametrize(
    ("operation", "x", "y"), [("add", MOST, 1), ("sub", -MOST, 2), ("mul", 2**16, 2**15), ("mul", -(2**16), 2**15 + 1)]
)
def test_an_integer_that_overflows_is_found_in_any_lane(operation, x, y):
    with pytest.raises(InterpreterError, match=f"int32 overflow detected for operation {operation}"):
        integers(operation, [0, x], [0, y])


def test_integers_that_just_fit_are_exact():
    assert integers("add", [MOST - 1, -MOST], [1, -1]) == [MOST, -MOST - 1]
    assert integers("mul", [2**15, -(2**16)], [2**15, 2**15]) == [2**30, -MOST - 1]
    assert integers("add", [2**62, 1], [2**61, 1], torch.int64) == [2**62 + 2**61, 2]


@triton.jit
def shape_kernel(out_pointer, LENGTH: tl.constexpr):
    lane = tl.arange(0, 16)
    tl.store(out_pointer + lane, tl.zeros((LENGTH,), tl.float32) + lane)


def test_a_block_that_is_no_power_of_two_is_refused():
    shape_kernel[(1,)](torch.empty(16), 16)
    with pytest.raises(InterpreterError, match="power of 2"):
        shape_kernel[(1,)](torch.empty(16), 12)
