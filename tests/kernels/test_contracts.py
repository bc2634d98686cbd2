"""Every operation and backend has its contract, the page shows them, and the judgement of a bias can fail."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from segue.kernels import adaln, dispatch, fp8, judgement
from segue.kernels.contracts import CONTRACTS, OF_BACKENDS, Contract, contract, judges_bias, page, shared_dimensions
from segue.kernels.sparse_attention import query_spread, usual_budget

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"
ADVICE = "one line in kernels/contracts.py is missing"


@pytest.fixture
def generator(seed):
    return torch.Generator().manual_seed(seed)


def backends(operation: str) -> set[str]:
    """Every name that a request may give for an operation."""
    own = {"reference"} if operation in dispatch.WITHOUT_TRITON else set(dispatch.BACKENDS)
    return own | set(dispatch.MORE_BACKENDS.get(operation, ()))


@pytest.mark.parametrize("operation", dispatch.OPERATIONS)
def test_every_backend_of_every_operation_has_a_contract(operation):
    assert operation in CONTRACTS, ADVICE
    for backend in backends(operation):
        assert contract(operation, backend).argument, ADVICE


def test_no_contract_is_of_something_that_does_not_exist():
    assert set(CONTRACTS) == set(dispatch.OPERATIONS)
    assert all(backend in backends(operation) for operation, backend in OF_BACKENDS)


def test_what_has_no_contract_is_refused():
    for operation, backend in (("attention", "cuda"), ("softmax", "reference"), ("gather_rows", "sdpa")):
        with pytest.raises(ValueError, match=f"backend '{backend}' of '{operation}' has no contract"):
            contract(operation, backend)


def test_the_page_is_the_table():
    """After a change: ``python -m segue.kernels.contracts > docs/numerics.md``."""
    assert PAGE.read_text() == page()
    named = [line.split("`")[1] for line in page().splitlines() if line.startswith("| `")]
    assert set(named) == set(dispatch.OPERATIONS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "close"}, "got 'close'"), ({"argument": ""}, "needs an argument"), ({"bound": 0.1}, "and no other"),
        ({"kind": "approximate"}, "states a bound: approximate, got None"),
        ({"kind": "approximate", "bound": 2.0}, "between 0 and 1, got 2.0"),
    ],
)  # fmt: skip
def test_a_contract_that_says_nothing_is_refused(change, message):
    good = Contract("within rounding", "one rounding")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **change)


def test_references_that_are_equal_to_the_bit(generator):
    """What the table says of the norms, of the reference functions; adaln_cases says it of the kernels."""
    h, y = torch.randn(2, 2, 7, 200, generator=generator).bfloat16()
    gate, shift, scale, shift2, scale2 = torch.randn(5, 2, 1, 200, generator=generator).bfloat16()
    one, two = adaln.modulated_norm2(h, shift, scale, shift2, scale2)
    assert torch.equal(one, adaln.modulated_norm(h, shift, scale)) and torch.equal(two, adaln.modulated_norm(h, shift2, scale2))
    state, n = adaln.residual_modulated_norm(h.clone(), y, gate, shift, scale)
    assert torch.equal(state, adaln.gated_residual(h.clone(), y, gate))
    assert torch.equal(n, adaln.modulated_norm(state, shift, scale))


# --- error and bias ----------------------------------------------------------------------------------------------------


def toward_zero(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp64 numbers to the next number of ``dtype`` that is no larger in magnitude."""
    nearest = x.to(dtype)
    bits = nearest.view(torch.int32 if dtype.itemsize == 4 else torch.int16)
    return torch.where(nearest.double().abs() > x.abs(), bits - 1, bits).view(dtype)


def downward(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp64 numbers to the next number of ``dtype`` that is no larger."""
    zero = toward_zero(x, dtype)
    away = (zero.view(torch.int16) + 1).view(dtype)
    return torch.where(zero.double() > x, away, zero)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 199, 64), (2, 63, 192), (4096, 16)], ids=str)
def test_rounding_to_nearest_has_no_bias_and_truncation_has(shape, dtype, generator):
    """Truncation errs by at most two roundings of eager's and passed the bound on the error alone."""
    truth = torch.randn(shape, generator=generator).double()
    eager = truth.to(dtype)
    assert judgement.bias(eager, truth).passed
    for wrong in (toward_zero(truth, dtype), downward(truth, dtype)):
        assert (wrong.double() - truth).abs().max() <= judgement.error_bound(eager, truth)
        found = judgement.bias(wrong, truth)
        assert not found.passed and 0.6 < found.ratio < 0.9


def test_the_bound_of_the_bias_is_a_quarter(generator):
    """Independent errors around a mean: just below, and just above, with little left to chance."""
    truth = torch.randn(4096, 64, generator=generator).double()
    for ratio, passes in ((0.2, True), (0.35, False)):
        error = torch.randn(4096, 64, generator=generator).double() * 1e-3
        error += 1e-3 * ratio / math.sqrt(1 - ratio**2)
        found = judgement.bias(truth + error, truth)
        assert found.passed == passes and found.ratio == pytest.approx(ratio, abs=0.02)
        assert found.bound == pytest.approx(0.25, abs=0.025)


def test_an_error_that_many_values_share_is_chance_until_it_is_seen_often(generator):
    """A factor common to a sample leans to one side in each; over many samples the sides differ, or they do not."""
    for samples, factors, passes in (
        (2, torch.tensor([1e-6, 3e-6]), True),
        (512, 1e-6 * torch.randn(512, generator=generator), True),
        (512, 1e-6 * torch.rand(512, generator=generator), False),
    ):
        truth = torch.randn(samples, 4, 8, 8, generator=generator).double()
        value = truth * (1 + factors.double()[:, None, None, None])
        assert judgement.bias(value, truth, shared_dimensions("moments", 4)).passed == passes
    assert shared_dimensions("moments", 4) == 3 and shared_dimensions("solver_update", 4) == 1


def test_spreads_that_tensor_cores_sum_lean_as_they_do_on_a_card(generator):
    """Sums of 16 products that drop what does not fit in fp32 lean by .72 (an H200 measured .71), rounded ones do not."""
    q, k = (torch.randn(2, 16, 256, 72, generator=generator).bfloat16().double() for _ in range(2))
    count = usual_budget(256)
    truth, chosen = query_spread(q, k, count), k[:, :, torch.arange(count) * 256 // count].mT

    def spread(rounded) -> torch.Tensor:
        total = torch.zeros(2, 16, 256, count, dtype=torch.float64)
        for first in range(0, 72, 16):
            products = q[..., first : first + 16] @ chosen[..., first : first + 16, :]
            total = rounded(total + products, torch.float32).double()
        scores = (total.float() * 72**-0.5).double()
        return (scores.amax(-1) - scores.mean(-1)).float()

    cut = judgement.bias(spread(toward_zero), truth, shared_dimensions("query_spread", 3))
    assert not cut.passed and cut.ratio == pytest.approx(0.72, abs=0.03)
    assert judgement.bias(spread(lambda x, dtype: x.to(dtype)), truth, shared_dimensions("query_spread", 3)).passed


@pytest.mark.parametrize("operation", ["query_spread", "attention_lse", "moments", None])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("output", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_is_not_judged_where_tensor_cores_sum_and_nothing_rounds_after_them(operation, device, dtype, output):
    with FakeTensorMode():
        operands, result = torch.empty(2, dtype=dtype, device=device), torch.empty(2, dtype=output, device=device)
    tensor_cores = operation in ("query_spread", "attention_lse") and device == "cuda" and dtype == torch.bfloat16
    assert judges_bias(operation, result, (operands, 3)) == (not tensor_cores or output == torch.bfloat16)


def test_exact_results_have_no_bias_and_nan_does_not_pass(generator):
    truth = torch.randn(8, 16, generator=generator).double()
    assert judgement.bias(truth, truth).passed
    assert not judgement.Bias(float("nan"), 0.25).passed


@pytest.mark.parametrize("gelu", [False, True])
def test_quantised_rows_have_no_bias(gelu, generator):
    """Rounding to e4m3 is approximate and still to nearest; with outliers, which set the scale of every row."""
    x = torch.randn(4, 63, 192, generator=generator)
    x[..., [3, 96, 190]] *= torch.tensor([30.0, 100.0, 60.0])
    values, scale = fp8.quantize_rows(x, gelu)
    truth = torch.nn.functional.gelu(x.double(), approximate="tanh") if gelu else x.double()
    assert judgement.bias(values.double() * scale[..., None].double(), truth).passed
