"""The fused norms that are quantised by rows, against fp64 and against the norms and the quantisation apart."""

import pytest
import torch
from fp8_rows import check_rows, same_bits
from interpreted import slow_interpreted
from norm_operands import OPERATIONS, SHAPES, operands

from segue.kernels import adaln, adaln_fp8
from segue.kernels.fp8 import Fp8Rows, quantize_rows_triton
from segue.kernels.triton_runtime import interpreting, observe_launches

NORMS = {  # name: outputs
    "modulated_norm": 1,
    "modulated_norm2": 2,
    "residual_modulated_norm": 1,
    "residual_modulated_norm2": 2,
    "residual2_modulated_norm": 1,
}
RESIDUAL = [name for name in NORMS if "residual" in name]


def run(name: str, arguments: list, **options) -> tuple[torch.Tensor, list]:
    """The state after an operation, written in place or as it was, and what the norm became."""
    result = getattr(adaln_fp8 if "fp8" in name else adaln, name)(*arguments, **options)
    made = [*result] if isinstance(result, tuple) and not isinstance(result, Fp8Rows) else [result]
    if "residual" in name:
        assert made.pop(0) is arguments[0]
    return arguments[0], made


def clones(arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    return [value.clone() for value in arguments]


def modulations(name: str, arguments: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """(shift, scale) of every output."""
    vectors = arguments[-2 * NORMS[name] :]
    return [vectors[i : i + 2] for i in range(0, len(vectors), 2)]


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES[:2], *map(slow_interpreted, SHAPES[2:])], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_against_fp64(name, shape, outliers, dtype, normal):
    """Of the state that was written: that it is right is said of the plain norms, whose state it is to the bit."""
    arguments = operands(normal, shape, dtype, name)
    if outliers:
        h = arguments[0]
        h[..., [3, shape[2] // 2, -2]] *= torch.tensor([30.0, 100.0, 60.0], device=h.device).to(dtype)
    state, made = run(f"{name}_fp8_triton", arguments)
    for rows, (shift, scale) in zip(made, modulations(name, arguments), strict=True):
        check_rows(rows, adaln.modulated_norm(state.double(), shift.double(), scale.double()))


@pytest.mark.parametrize("name, biased", [*((name, False) for name in NORMS), *((name, True) for name in RESIDUAL)])
def test_fused_equals_separate_to_the_bit(name, biased, dtype, normal):
    """The state is that of the plain norm, and each output what the norm alone gives.

    Quantised apart from a norm in fp32 the bits are the same too where a sum has one order: on a card it follows the widths of
    loads and stores.
    """
    arguments = operands(normal, (2, 7, 200), dtype, name)
    bias = {"bias": normal(200, dtype=dtype)} if biased else {}
    state, plain = run(f"{name}_triton", clones(arguments), **bias)
    again, made = run(f"{name}_fp8_triton", clones(arguments), **bias)
    assert torch.equal(state, again) and len(made) == len(plain) == NORMS[name]
    for rows, n, modulation in zip(made, plain, modulations(name, arguments), strict=True):
        assert same_bits(rows, adaln_fp8.modulated_norm_fp8_triton(state, *modulation))
        if dtype == torch.float32 and interpreting():
            assert same_bits(rows, quantize_rows_triton(n))


@pytest.mark.parametrize("name", NORMS)
def test_a_number_that_is_not_finite_shows(name, normal):
    """A NaN in the state is a NaN in the scales of its row, which the product multiplies with; other rows keep theirs."""
    arguments = operands(normal, (2, 5, 136), torch.float32, name)
    _, clean = run(f"{name}_fp8_triton", clones(arguments))
    arguments[0][1, 3, 135] = float("nan")
    _, made = run(f"{name}_fp8_triton", arguments)
    for rows, before in zip(made, clean, strict=True):
        assert rows.scale[1, 3].isnan() and rows.scale.isnan().sum() == 1
        kept = ~rows.scale.isnan()
        assert same_bits(Fp8Rows(rows.values[kept], rows.scale[kept]), Fp8Rows(before.values[kept], before.scale[kept]))


@pytest.mark.parametrize("name", NORMS)
def test_strided_operands_are_read_and_written_in_place(name, dtype, normal):
    arguments = operands(normal, (2, 9, 48), dtype, name)
    strided = [value.transpose(1, 2).contiguous().transpose(1, 2) for value in arguments]
    assert strided[0].stride(-1) != 1
    state, made = run(f"{name}_fp8_triton", clones(arguments))
    again, others = run(f"{name}_fp8_triton", strided)
    assert torch.equal(state, again) and all(map(same_bits, made, others))


@pytest.mark.parametrize("name", NORMS)
def test_it_is_one_launch(name, normal):
    with observe_launches() as launches:
        run(f"{name}_fp8_triton", operands(normal, (2, 3, 16), torch.float32, name))
    assert [launch.name for launch in launches] == ["adaln_kernel"]


def test_every_norm_has_a_form_in_fp8():
    assert set(NORMS) == {name for name in OPERATIONS if "modulated_norm" in name}
