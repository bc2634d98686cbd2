"""Every operation of the catalogue at odd sizes and at the widths of real models, in the layouts that a model passes.

Operands lie in frames of NaN: what is read beside them spoils the result, what is written beside them is found.
"""

from dataclasses import dataclass
from math import isqrt

import pytest
import torch
from interpreted import once_fast, slow_interpreted
from torch.utils._pytree import tree_leaves

from segue.kernels.catalogue import Case, Factory, Size, cases
from segue.kernels.dispatch import FOLLOWERS, QUANTISED, WITHOUT_TRITON
from segue.kernels.fp8 import FP8
from segue.kernels.record import OPERATIONS
from segue.kernels.triton_runtime import interpreting, observe_launches


@dataclass(frozen=True)
class Oblong(Size):
    """A latent of any number of patches; long sequences have one row instead of two."""

    @property
    def rows(self) -> int:
        return 1 if self.tokens > INTERPRETED_TOKENS else 2

    @property
    def latent(self) -> tuple[int, int, int, int]:
        height = next(count for count in range(isqrt(self.tokens), 0, -1) if self.tokens % count == 0)
        return self.samples, self.channels, height * self.patch, self.tokens // height * self.patch


def oblong(tokens: int, text: int, width: int, head_dim: int, channels: int = 4) -> Oblong:
    name = f"{tokens} + {text} tokens, {width // head_dim} heads of {head_dim}"
    return Oblong(name, 1, tokens, text, width, width // head_dim, 2, channels, dual=True)


INTERPRETED_TOKENS = 1000  # beyond, the interpreter takes minutes for an operation: in fp16 only, whose tiles are larger
SIZES = [
    oblong(63, 5, 96, 32),
    oblong(3, 0, 216, 72),
    oblong(1, 0, 64, 16),
    oblong(5, 2, 256, 128, channels=16),
]
# every length, width and head dim of the models and their odd neighbours, each at least once
LARGE = [
    oblong(63, 5, 192, 32),
    oblong(199, 0, 64, 64),
    oblong(333, 1, 32, 16, channels=3),
    oblong(1, 2, 1536, 128, channels=16),
    oblong(3, 5, 2432, 64, channels=16),
    oblong(199, 33, 1152, 72),
    oblong(63, 333, 1536, 64, channels=16),
    oblong(63, 0, 2432, 128),
    oblong(4096, 333, 64, 64, channels=16),
]


def dense(x: torch.Tensor) -> torch.Tensor:
    return x


def prefix(x: torch.Tensor) -> torch.Tensor:
    """The first rows but one of a larger buffer."""
    frame = torch.full((len(x) + 3, *x.shape[1:]), float("nan"), dtype=x.dtype, device=x.device)
    frame[1 : len(x) + 1] = x
    return frame[1 : len(x) + 1]


def padded(x: torch.Tensor) -> torch.Tensor:
    """Rows that are further apart than they are long."""
    frame = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"), dtype=x.dtype, device=x.device)
    frame[..., 2:-3] = x
    return frame[..., 2:-3]


def strided(x: torch.Tensor) -> torch.Tensor:
    """Every other element."""
    frame = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype, device=x.device)
    frame[..., ::2] = x
    return frame[..., ::2]


LAYOUTS = (dense, prefix, padded, strided)
# operands that are written in place, by position, and the layouts that a launcher takes for them
IN_PLACE = {
    "embed_patches": {4: (dense, prefix)},
    "gather_modulation": {5: (dense, prefix, padded)},
    "linear_gated_residual": {0: (dense, prefix, padded)},
    "solver_update": {0: (dense, prefix), 2: (dense, prefix), 6: (dense, prefix)},
    "readout_update": {0: (dense, prefix), 1: (dense, prefix), 13: (dense, prefix)},
}


def laid_out(case: Case, arguments: tuple, layout) -> tuple:
    """The arguments of a case with every floating-point tensor in a layout, or in a prefix where that is refused."""
    allowed = IN_PLACE.get(case.operation, {})

    def place(index: int, value):
        if isinstance(value, tuple):
            return tuple(place(-1, part) for part in value)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == FP8:
            return value
        return layout(value) if layout in allowed.get(index, LAYOUTS) else prefix(value)

    return tuple(place(index, value) for index, value in enumerate(arguments))


def around(x: torch.Tensor) -> torch.Tensor:
    """What lies in the storage of a view and is not part of it."""
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    outside = torch.ones_like(whole, dtype=torch.bool)
    outside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(False)
    return whole[outside]


def check(case: Case, dtype, device, seed, layout, judge, poison) -> None:
    """Against fp64; and what is launched, allocated, and found beside the operands afterwards."""
    arguments = laid_out(case, case.arguments(Factory(device, dtype, seed)), layout)

    def observed(*arguments):
        given = [value for value in arguments if isinstance(value, torch.Tensor)]
        beside = [around(value) for value in given]
        poison.made.clear()
        with observe_launches() as launches:
            result = case.kernel(*arguments)
        assert launches, "nothing was launched"
        for value, before in zip(given, beside, strict=True):
            assert torch.allclose(around(value), before, rtol=0, atol=0, equal_nan=True), "written beside an operand"
        owned = {value.untyped_storage().data_ptr() for value in given} | poison.made
        for out in () if result is None else tree_leaves(result):
            assert out.untyped_storage().data_ptr() in owned, "an output was not poisoned"
        return result

    if interpreting() and case.operation in QUANTISED:  # whose own rounding to fp8 is wrong at powers of two: fp8_rows.py
        observed(*arguments)
    else:
        judge(in_place(case, observed), in_place(case, case.reference), *arguments, operation=case.operation)


def in_place(case: Case, function):
    """An operation that returns nothing, as one that returns the operands it wrote."""
    if case.operation not in ("solver_update", "readout_update"):
        return function

    def call(*arguments):
        result = function(*arguments)
        written = tuple(arguments[index] for index in IN_PLACE[case.operation] if index < len(arguments))
        return written if result is None else (result, *written)

    return call


def named(sizes: list[Size]) -> list[Case]:
    """Those of our own kernels; the vendor's need their device, and bf16."""
    return [case for size in sizes for case in cases(size) if not case.vendor]


@pytest.mark.parametrize("case", once_fast(named(SIZES)), ids=lambda case: case.name)
def test_every_operation(case, dtype, device, seed, judge, poison):
    check(case, dtype, device, seed, dense, judge, poison)


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize(
    "case",
    [*named([oblong(7, 3, 48, 24)]), *map(slow_interpreted, named([oblong(5, 0, 40, 20)]))],
    ids=lambda case: case.name,
)
def test_every_layout(case, layout, dtype, device, seed, judge, poison):
    check(case, dtype, device, seed, layout, judge, poison)


@pytest.mark.slow
@pytest.mark.parametrize("case", named(LARGE), ids=lambda case: case.name)
def test_every_operation_at_large_sizes(case, dtype, device, seed, judge, poison):
    if interpreting() and dtype == torch.float32 and case.size.tokens > INTERPRETED_TOKENS:
        pytest.skip("the interpreter takes minutes")
    check(case, dtype, device, seed, padded, judge, poison)


def test_the_sizes_are_those_that_matter():
    everything = [*SIZES, *LARGE]
    lengths = {length for size in everything for length in (size.tokens, size.text, size.tokens + size.text)}
    assert lengths >= {1, 63, 199, 333, 4429}
    assert {size.width for size in everything} >= {64, 192, 1152, 1536, 2432}
    assert {size.head_dim for size in everything} >= {16, 32, 64, 72, 128}


def test_every_kernel_has_a_case():
    """A new entry of the record needs a case in the catalogue, and has with it all that is tested here."""
    following = set(FOLLOWERS) - {"attention_lse"}  # of which one alone has a kernel of its own
    assert {case.operation for case in named(SIZES)} == set(OPERATIONS) - following - set(WITHOUT_TRITON)


# --- the sweep can fail ------------------------------------------------------------------------------------------------


def some_case(operation: str) -> Case:
    return next(case for case in named(SIZES[1:2]) if case.operation == operation)


def leaves_the_last_element(h, shift, scale):
    from segue.kernels.adaln import modulated_norm

    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    out.view(-1)[:-1] = modulated_norm(h, shift, scale).view(-1)[:-1]
    return out


def reads_the_neighbour(h, shift, scale):
    from segue.kernels.adaln import modulated_norm

    return modulated_norm(h, shift, scale) + 0 * h.as_strided((1,), (1,), h.storage_offset() + h.shape[-1])


@pytest.mark.parametrize("wrong, layout", [(leaves_the_last_element, dense), (reads_the_neighbour, padded)])
def test_a_kernel_that_reads_or_leaves_what_it_should_not_is_caught(wrong, layout, device, seed, judge):
    case = some_case("modulated_norm")
    arguments = laid_out(case, case.arguments(Factory(device, torch.float32, seed)), layout)
    judge(case.kernel, case.reference, *arguments)
    with pytest.raises(AssertionError, match="an element was not written"):
        judge(wrong, case.reference, *arguments)


def test_a_write_beside_an_operand_is_seen(device):
    x = padded(torch.zeros(3, 4, device=device))
    assert around(x).isnan().all() and len(around(x)) == 3 * 5
    x.as_strided((1,), (1,), x.storage_offset() + 4).fill_(1)
    assert not around(x).isnan().all()
