"""The tuner's own judgement: a right kernel passes, a wrong one does not."""

import pytest
import torch

from segue.kernels.catalogue import Factory, Size, cases
from segue.kernels.dispatch import FP8_OPERATIONS
from segue.kernels.trial import Trial
from segue.kernels.triton_runtime import interpreting

SMALL = Size("small", 1, 9, 5, 32, 2, 2, 4, dual=True, single=True)


@pytest.mark.parametrize("case", list(cases(SMALL)), ids=lambda case: case.name)
def test_every_case_of_the_catalogue_agrees_with_its_reference(case, dtype, device, seed):
    if interpreting() and case.operation in FP8_OPERATIONS:
        pytest.skip(
            "the interpreter's own rounding to fp8 is wrong at powers of two; adaln_fp8_cases and fp8_cases look closer"
        )
    if case.vendor and (device.type == "cpu" or dtype != torch.bfloat16):
        pytest.skip("the vendor's fp8 product needs its device, and gives bf16")
    if case.alternative:
        pytest.skip("shorter sums err more than the reference does")
    assert Trial(case, Factory(device, dtype, seed)).agrees(case.kernel)


@pytest.mark.parametrize("operation", ["modulated_norm", "attention", "grouped_linear", "solver_update", "gather_rows"])
def test_a_wrong_kernel_does_not_agree(operation, device, seed):
    case = next(case for case in cases(SMALL) if case.operation == operation)

    def wrong(*arguments):
        """One element of the result is off by a thousandth of the largest."""
        result = case.kernel(*arguments)
        first = result[0] if isinstance(result, tuple) else arguments[0] if result is None else result
        first[(-1,) * first.dim()] += 1e-3 * first.abs().max()
        return result

    assert not Trial(case, Factory(device, torch.float32, seed)).agrees(wrong)
