"""The tuner's judge on operations whose results are in fp8, of which PyTorch can do no arithmetic."""

import pytest
import torch

from segue.kernels.catalogue import Factory, cases
from segue.kernels.catalogue_sizes import Size
from segue.kernels.trial import Trial

SMALL = Size("small", 1, 9, 5, 32, 2, 2, 4)
QUANTISED = [
    case for case in cases(SMALL) if case.operation in ("modulated_norm_fp8", "residual_modulated_norm_fp8", "quantize_rows")
]


@pytest.mark.parametrize("case", QUANTISED, ids=lambda case: case.name)
def test_quantised_rows_are_judged(case, seed):
    trial = Trial(case, Factory(torch.device("cpu"), torch.bfloat16, seed))
    assert trial.agrees(case.reference)

    def wrong(*arguments):
        """The scale of one row is twice what it should be."""
        *others, scale = case.reference(*arguments)
        scale[0, 3] *= 2
        return *others, scale

    assert not trial.agrees(wrong)
