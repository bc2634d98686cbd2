"""Rows that went through transformer blocks, counted as they run, and the rows that a plan says."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

BLOCKS = ("Block", "JointBlock", "JointTransformerBlock")  # SiT's, our MMDiT's, diffusers'


@contextmanager
def counted_rows() -> Iterator[list[int]]:
    """The batch size of every block call, in order, of any network that runs meanwhile."""
    rows: list[int] = []

    def count(module, inputs, output):
        if type(module).__name__ in BLOCKS:
            rows.append(len(output if isinstance(output, Tensor) else output[1]))

    handle = register_module_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def planned_rows(plan, batch: int) -> list[int]:
    """The batch size of every block call of a plan for ``batch`` samples, in order."""
    return [
        batch * sum(segment.stop - segment.start for segment in group)
        for live in plan.live
        for layer in plan.layout(live).layers
        for group in layer.groups
    ]
