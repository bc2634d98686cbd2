"""The traffic and the arithmetic that the catalogue counts, against what the kernels touch and what PyTorch counts."""

import numpy as np
import pytest
import torch
from interpreted import once_fast
from torch.utils.flop_counter import FlopCounterMode

from segue.kernels.catalogue import Case, Factory, Size, cases
from segue.kernels.triton_runtime import interpreting

SIZES = [
    Size("joint", 1, 64, 33, 192, 6, 2, 4, dual=True),
    Size("one stream", 1, 64, 0, 192, 6, 2, 16),
]
# biases, gates of the fused residual, [K] norm weights, indices and scalars are not counted: a few percent at this width
UNCOUNTED = 0.03
PRODUCTS = ("attention", "linear_gelu", "linear_gated_residual", "grouped_linear", "grouped_linear_gelu", "fp8_linear")
PRODUCTS += ("project_heads", "project_joint_heads")
CASES = [case for size in SIZES for case in cases(size) if case.vendor or not case.alternative]


class Touched:
    """Bytes at distinct addresses that each launch reads, and that it writes, as the interpreter sees them."""

    def __init__(self, monkeypatch):
        from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

        self.bytes = 0
        self._reads, self._writes = [], []
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
        start = GridExecutor.__call__

        def counted_load(builder, pointers, mask, *rest, **options):
            self._note(self._reads, pointers, mask)
            return load(builder, pointers, mask, *rest, **options)

        def counted_store(builder, pointers, value, mask, *rest, **options):
            self._note(self._writes, pointers, mask)
            return store(builder, pointers, value, mask, *rest, **options)

        def counted_start(executor, *arguments, **options):
            start(executor, *arguments, **options)
            self._end_of_launch()

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
        monkeypatch.setattr(GridExecutor, "__call__", counted_start)

    @staticmethod
    def _note(noted: list, pointers, mask) -> None:
        width = pointers.get_element_ty().primitive_bitwidth // 8
        noted.append((width, pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].ravel()))

    def _end_of_launch(self) -> None:
        for noted in (self._reads, self._writes):
            for width in {width for width, _ in noted}:
                self.bytes += width * len(np.unique(np.concatenate([at for other, at in noted if other == width])))
            noted.clear()


@pytest.mark.skipif(not interpreting(), reason="counts in Triton's interpreter")
@pytest.mark.parametrize("case", once_fast([case for case in CASES if not case.vendor]), ids=lambda case: case.name)
def test_bytes_moved_are_those_that_a_kernel_touches(case: Case, device, seed, monkeypatch):
    """Each launch once: what it reads again comes from a cache."""
    arguments = case.arguments(Factory(device, torch.float16, seed))
    touched = Touched(monkeypatch)
    case.kernel(*arguments)
    assert touched.bytes == pytest.approx(case.bytes_moved, rel=UNCOUNTED)


@pytest.mark.parametrize("case", [case for case in CASES if case.operation in PRODUCTS], ids=lambda case: case.name)
def test_flops_of_products_are_those_that_pytorch_counts(case: Case):
    arguments = case.arguments(Factory(torch.device("meta"), torch.float16))
    with FlopCounterMode(display=False) as counter:
        case.reference(*arguments)
    assert case.flops == counter.get_total_flops()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_counts_something(case: Case):
    """Only a gather computes nothing, and a head split without a norm."""
    assert case.bytes_moved > 0
    copies = case.operation in ("gather_rows", "gather_modulation") or (
        case.operation == "joint_heads_norm" and case.variant == "without norm"
    )
    assert (case.flops > 0) == (not copies)
