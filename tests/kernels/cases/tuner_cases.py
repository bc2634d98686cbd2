"""The tuner's own judgement: a right kernel passes, a wrong one does not, and the fastest right candidate is taken."""

from dataclasses import replace

import pytest
import torch

from segue.kernels import tune
from segue.kernels.catalogue import Factory, Size, cases
from segue.kernels.dispatch import FP8_OPERATIONS
from segue.kernels.launch import FlatLaunch, launch_config
from segue.kernels.triton_runtime import interpreting

SMALL = Size("small", 1, 9, 5, 32, 2, 2, 4, dual=True, single=True)


@pytest.mark.parametrize("case", list(cases(SMALL)), ids=lambda case: case.name)
def test_every_case_of_the_catalogue_agrees_with_its_reference(case, dtype, device, seed):
    if interpreting() and case.operation in FP8_OPERATIONS:
        pytest.skip("the interpreter's own rounding to fp8 is wrong at powers of two; adaln_cases and fp8_cases look closer")
    assert tune.agrees(case, Factory(device, dtype, seed))


@pytest.mark.parametrize("operation", ["modulated_norm", "attention", "grouped_linear", "solver_update", "gather_rows"])
def test_a_wrong_kernel_does_not_agree(operation, device, seed):
    case = next(case for case in cases(SMALL) if case.operation == operation)

    def wrong(*arguments):
        """One element of the result is off by a thousandth of the largest."""
        result = case.kernel(*arguments)
        first = result[0] if isinstance(result, tuple) else arguments[0] if result is None else result
        first[(-1,) * first.dim()] += 1e-3 * first.abs().max()
        return result

    assert not tune.agrees(replace(case, kernel=wrong), Factory(device, torch.float32, seed))


def test_the_fastest_right_candidate_is_taken(monkeypatch, device):
    """With compilation and the clock replaced: the quickest candidate is wrong, the next is taken."""
    key, configs = ("solver", "any"), (FlatLaunch(1024, 4), FlatLaunch(2048, 8), FlatLaunch(512, 4))
    time = dict(zip(configs, (3.0, 1.0, 2.0), strict=True))

    def in_use() -> FlatLaunch:
        return launch_config(*key, "sm_90")

    monkeypatch.setattr(tune, "fitting", lambda served, only, jobs: {key: configs})
    monkeypatch.setattr(
        tune, "users", lambda served: {key: [case for case in cases(SMALL) if case.operation == "solver_update"]}
    )
    monkeypatch.setattr(tune, "agrees", lambda case, make: in_use() != configs[1])
    monkeypatch.setattr(tune, "seconds", lambda function, case, make: time[in_use()])
    assert tune.timed(device, "sm_90", set(), 1) == {key: configs[2]}
    monkeypatch.setattr(tune, "agrees", lambda case, make: False)
    with pytest.raises(ValueError, match=r"no candidate for \('solver', 'any'\) .* gives the right numbers"):
        tune.timed(device, "sm_90", set(), 1)
