"""The tuner's judge on operations whose results are in fp8, of which PyTorch can do no arithmetic."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from segue.kernels.catalogue import Factory, cases
from segue.kernels.catalogue_sizes import Size
from segue.kernels.dispatch import QUANTISED
from segue.kernels.trial import Trial

SMALL = Size("small", 1, 9, 5, 32, 2, 2, 4, dual=1)
CASES = [case for case in cases(SMALL) if case.operation in QUANTISED]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_quantised_rows_are_judged(case, seed):
    trial = Trial(case, Factory(torch.device("cpu"), torch.bfloat16, seed))
    assert trial.agrees(case.reference)

    def wrong(*arguments):
        """The scale of one row is twice what it should be."""
        result = case.reference(*arguments)
        tree_leaves(result)[-1][0, 3] *= 2
        return result

    assert not trial.agrees(wrong)
